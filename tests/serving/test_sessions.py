"""Sequences, cameras over a websocket, parallel workers, typed answers."""

import io
import json
import threading
import time
from base64 import b64encode

import cv2
import numpy as np
import pytest
from serving_tools import FakeLocalizer, ask, encoded

from reloc_core.interfaces import Estimator
from reloc_core.localizer import Localizer
from reloc_core.pipeline import Pipeline
from reloc_core.serving.sessions import RequestError, Sessions
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Correspondences, Query

POINTS = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 4], (80, 3))


class Slow(Estimator):
    """A camera at the origin; each image takes a while in which the interpreter is free."""

    produces = Correspondences

    def __init__(self, seconds=0.0):
        self.seconds, self.asked, self.error = seconds, [], None

    def fit(self, dataset, run): ...

    def load(self, scene_map, runtime): ...

    def estimate(self, query):
        if self.error is not None:
            raise self.error
        self.asked.append(query)
        time.sleep(self.seconds)
        k = query.camera
        pixels = POINTS[:, :2] / POINTS[:, 2:] * k.fx + [k.cx, k.cy]
        return Correspondences(pixels, POINTS, kind="sparse")


def localizer(seconds=0.0, workers=1):
    pipelines = [Pipeline(Slow(seconds), PnpSolver(PnpConfig())) for _ in range(workers)]
    return Localizer(pipelines[0], pipelines[1:])


def picture(shift=0):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (12, 40), np.uint8), (300, 90))[:, shift : shift + 160]
    return cv2.imencode(".png", image)[1].tobytes()


def test_workers_work_at_the_same_time():
    def seconds(workers):
        shared, found = localizer(0.2, workers), []
        query = Query("q", camera(), image=np.zeros((48, 64, 3), np.uint8))
        threads = [
            threading.Thread(target=lambda: found.append(shared.localize_query(query)))
            for _ in range(4)
        ]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(f.localized for f in found)
        return time.perf_counter() - begin

    assert seconds(1) >= 0.8
    assert seconds(4) < 0.7


def camera():
    from reloc_core import Camera

    return Camera.pinhole(50.0, 64, 48)


def test_a_sequence_stays_with_the_pipeline_that_remembers_it():
    shared = localizer(workers=3)
    starts = []
    shared.pipeline.start_sequence = lambda: starts.append(1)
    image = np.zeros((48, 64, 3), np.uint8)
    for sequence in ("walk", None, "walk", "walk"):
        shared.localize(image, 50.0, sequence=sequence)
    assert starts == [1]  # the image on its own went to a copy
    assert len(shared.pipeline.estimator.asked) == 3


def test_frames_of_a_sequence_are_tracked(serve):
    shared = localizer()
    service, port = serve({"room": shared}, camera=100.0)
    for i in range(8):
        path = f"/localize?sequence=walk&timestamp={i / 30}&name=f{i}"
        status, _, answer = ask(port, path=path, body=picture())
        assert (status, answer["status"]) == (200, "localized")
        assert (answer["name"], answer["timestamp"]) == (f"f{i}", pytest.approx(i / 30))
        assert "track" in answer["seconds"]
    assert len(shared.pipeline.estimator.asked) < 4
    assert len(service.sessions) == 1
    ask(port, path="/localize", body=picture())
    assert len(service.sessions) == 1


def test_sessions_are_bounded_and_forgotten():
    now = [0.0]
    sessions, shared = Sessions(2, 10.0, lambda: now[0]), localizer()
    with sessions.tracker("m", "a", shared) as first, pytest.raises(RequestError) as busy:
        sessions.tracker("m", "a", shared).__enter__()
    assert busy.value.status == 409
    with sessions.tracker("m", "b", shared):
        pass
    with pytest.raises(RequestError) as full, sessions.tracker("m", "c", shared):
        pass  # pragma: no cover
    assert full.value.status == 503
    now[0] = 5.0
    with sessions.tracker("m", "a", shared) as again:
        assert again is first
    now[0] = 12.0
    with sessions.tracker("m", "c", shared):
        assert len(sessions) == 2  # b was forgotten
    sessions.end("m", "c")
    assert len(sessions) == 1
    sessions.close()
    assert len(sessions) == 0


def test_a_sequence_that_ends_amid_a_frame_leaves_no_thread():
    sessions, shared = Sessions(2, 10.0), localizer()
    with sessions.tracker("m", "a", shared) as tracker:
        ended = []
        tracker.close = lambda: ended.append(True)
        sessions.end("m", "a")
        assert len(sessions) == 0
        assert not ended  # it is still at work
    assert ended == [True]


def test_priors_reach_the_estimator(serve):
    shared = localizer()
    _, port = serve({"room": shared}, camera=100.0)
    pose = np.eye(4)
    pose[:3, 3] = 0.01, 0.02, 0.03
    numbers = ",".join(str(v) for v in pose.ravel())
    assert ask(port, path=f"/localize?prior={numbers}&prior_std=2,0.1", body=picture())[0] == 200
    prior = shared.pipeline.estimator.asked[0].prior
    np.testing.assert_array_equal(prior.world_from_cam, pose)
    std = [np.radians(2)] * 3 + [0.1] * 3
    np.testing.assert_allclose(np.sqrt(np.diag(prior.covariance)), std)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("focall=50", "no parameter 'focall'. Did you mean 'focal'?"),
        ("focal=50&camera=map", "either camera=map"),
        ("camera=map", "No camera of the mapping images"),
        ("prior=1,2,3", "16 numbers"),
        ("prior=" + ",".join(["1"] * 16), "prior is no pose"),
        ("timestamp=nan", "timestamp"),
        ("sequence=", "sequence"),
    ],
)
def test_bad_parameters(serve, query, message):
    _, port = serve({"room": localizer()})
    status, _, answer = ask(port, path=f"/localize?{query}", body=picture())
    assert status == 422
    assert message in answer["error"]


def test_the_description_types_every_answer(serve):
    _, port = serve()
    description = ask(port, "GET", "/openapi.json")[2]
    schemas = description["components"]["schemas"]
    operation = description["paths"]["/localize"]["post"]
    good = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert good == {"$ref": "#/components/schemas/Answer"}
    for status in ("404", "413", "503"):
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith("Refusal")
    _, _, answer = ask(port, body=encoded())
    assert set(answer) == set(schemas["Answer"]["properties"])
    assert ask(port, "GET", "/maps?x=1")[0] == 422


def test_a_batch_with_depth(serve):
    shared = localizer()
    _, port = serve({"room": shared}, camera=100.0)
    depth = np.arange(90 * 160, dtype=np.uint16).reshape(90, 160)
    images = [
        {"image": base64(picture()), "name": "a", "depth": base64(png(depth)), "timestamp": 2.5},
        {"image": base64(b"no image"), "name": "b"},
        {"image": base64(picture()), "focal": 90.0},
        {"image": base64(picture()), "depth": base64(png(depth[1:]))},
        {"image": base64(picture()), "depth": base64(picture())},
    ]
    json_type = {"Content-Type": "application/json"}
    body = json.dumps({"images": images})
    status, _, answers = ask(port, path="/localize/batch", body=body, headers=json_type)
    assert status == 200
    assert [a.get("status") for a in answers] == ["localized", None, "localized", None, None]
    assert (answers[0]["name"], answers[0]["timestamp"]) == ("a", 2.5)
    assert "no JPEG" in answers[1]["error"]
    assert "another size" in answers[3]["error"]
    assert "no depth map" in answers[4]["error"]
    first, third = shared.pipeline.estimator.asked
    np.testing.assert_allclose(first.depth, depth / 1000, atol=1e-6)
    assert (first.camera.fx, third.camera.fx) == (100, 90)
    for wrong, words in (
        ({"images": []}, "images"),
        ({"images": [{"image": 5}]}, "images.0.image"),
        ({"images": images, "mapp": "x"}, "mapp"),
        ({"images": [{"image": "", "focal": -1}]}, "focal"),
    ):
        answer = ask(port, path="/localize/batch", body=json.dumps(wrong), headers=json_type)
        assert answer[0] == 422
        assert words in answer[2]["error"]
    assert ask(port, path="/localize/batch", body=picture())[0] == 415


def test_the_pixels_of_a_batch_are_bounded_together(serve):
    _, port = serve({"room": FakeLocalizer()}, megapixels=64 * 48 / 1e6)
    image = {"image": base64(encoded())}
    for count, wanted in ((4, 200), (5, 413)):
        body = json.dumps({"images": [image] * count})
        status, _, answer = ask(
            port, path="/localize/batch", body=body, headers={"Content-Type": "application/json"}
        )
        assert status == wanted
    assert "megapixels together" in answer["error"]


def base64(data):
    return b64encode(data).decode()


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def test_an_estimator_that_lets_stop_iteration_out_is_answered(serve):
    shared = localizer()
    shared.pipeline.estimator.error = StopIteration()
    _, port = serve({"room": shared}, camera=100.0)
    status, _, answer = ask(port, body=picture(), timeout=10)
    assert status == 500
    assert "StopIteration" not in json.dumps(answer)


def test_a_camera_over_a_websocket(serve):
    client = pytest.importorskip("websockets.sync.client")
    shared = localizer()
    service, port = serve({"room": shared}, camera=None)
    with client.connect(f"ws://127.0.0.1:{port}/track") as socket:
        socket.send(picture())
        assert "focal length is unknown" in json.loads(socket.recv(10))["error"]
        socket.send(json.dumps({"focal": 100.0}))
        for i in range(5):
            socket.send(json.dumps({"timestamp": i / 30, "name": f"f{i}"}))
            socket.send(picture())
            answer = json.loads(socket.recv(10))
            assert (answer["status"], answer["name"]) == ("localized", f"f{i}")
        for said in ("{", '{"focus": 1}', '{"focal": -1}', '{"focal": "x"}', "[]"):
            socket.send(said)
            assert json.loads(socket.recv(10))["status"] == 422
        socket.send(b"no image")
        assert json.loads(socket.recv(10))["status"] == 415
        assert len(service.sessions) == 1
    deadline = time.monotonic() + 5
    while len(service.sessions) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(service.sessions) == 0
    with client.connect(f"ws://127.0.0.1:{port}/track?map=nowhere") as socket:
        assert "no map" in json.loads(socket.recv(10))["error"]
    with client.connect(f"ws://127.0.0.1:{port}/track?mapp=room") as socket:
        refused = json.loads(socket.recv(10))
    assert refused["status"] == 422
    assert "no parameter 'mapp'. Did you mean 'map'?" in refused["error"]


def test_a_slow_jpeg_is_refused_before_it_is_decoded(serve):
    """Six hundred scans over 47 megapixels in a quarter of a megabyte."""
    Image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    Image.new("L", (6900, 6900), 128).save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()
    scan = data[data.rfind(b"\xff\xda") : -2]
    _, port = serve({"room": FakeLocalizer()})
    begin = time.monotonic()
    status, _, answer = ask(port, body=data[:-2] + scan * 600 + b"\xff\xd9")
    assert status == 413
    assert "scans" in answer["error"]
    assert time.monotonic() - begin < 3

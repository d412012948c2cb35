"""Requests of strangers to the server, damaged at random: an answer or a refusal, never a defect."""

import asyncio
import json
from base64 import b64encode
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest
from fuzzing import MEGABYTES, hold, mutated_bytes, mutated_json, peak_megabytes

from reloc_core.interfaces import Estimator
from reloc_core.localizer import Localizer
from reloc_core.pipeline import Pipeline
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Correspondences

pytest.importorskip("fastapi")
COUNTS = [pytest.param(120, id="short"), pytest.param(10_000, marks=pytest.mark.long, id="long")]
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
SEED = 11
LOOP = asyncio.new_event_loop()
POINTS = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 4], (40, 3))
TYPES = ["image/jpeg", "image/png", "application/octet-stream", "application/json",
         "multipart/form-data; boundary=x", "multipart/form-data", "text/html", "", "\xff/\0", "a" * 5000]  # fmt: skip
VALUES = ["", "0", "-1", "50", "1e308", "1e-308", "-0.0", "nan", "inf", "9" * 400, "room", "map", "../x", "\0", "é",
          "PINHOLE", "OPENCV", "OPENCV_FISHEYE", "50,50,15.5,11.5", "50,50,15.5,11.5,9,9,9,9", "1e308,1,0,0",
          "1,2", "32", "24", "true", "[]", ",".join("0" * 16), ",".join(map(str, np.eye(4).ravel()))]  # fmt: skip
PARAMETERS = {
    "map": "room", "camera": "map", "focal": "50", "model": "PINHOLE", "params": "50,50,15.5,11.5", "width": "32",
    "height": "24", "name": "a.png", "sequence": "walk", "timestamp": "0.5",
    "prior": ",".join(map(str, np.eye(4).ravel())), "prior_std": "5,0.5",
}  # fmt: skip
USUAL = [(), ("focal",), ("model", "params", "width", "height"), ("focal", "prior", "prior_std"),
         ("focal", "sequence", "timestamp"), ("camera",), ("map", "name")]  # fmt: skip


class Scripted(Estimator):
    """A camera at the origin, whatever the picture."""

    produces = Correspondences

    def fit(self, dataset, run): ...

    def load(self, scene_map, runtime): ...

    def estimate(self, query):
        k = query.camera
        pixels = POINTS[:, :2] / POINTS[:, 2:] * k.fx + [k.cx, k.cy]
        return Correspondences(pixels, POINTS, kind="sparse")


@pytest.fixture
def app():
    from reloc_core.serving.app import create_app
    from reloc_core.serving.limits import Limits
    from reloc_core.serving.service import LocalizationService

    localizer = Localizer(Pipeline(Scripted(), PnpSolver(PnpConfig())))
    service = LocalizationService({"room": localizer}, Limits(megabytes=0.05, megapixels=0.1), 50.0)
    yield create_app(service)
    service.close()


def pictures():
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    depth = np.full((24, 32), 2000, np.uint16)
    return [cv2.imencode(kind, i)[1].tobytes()
            for kind, i in ((".jpg", image), (".png", image), (".png", depth))]  # fmt: skip


def spoken(app, scope, messages):
    """What the app sends to a client that sends these messages and goes away."""
    left, sent = iter(messages), []
    away = {"type": f"{scope['type']}.disconnect", "code": 1000}

    async def receive():
        return next(left, away)

    async def send(message):
        sent.append(message)

    base = {"asgi": {"version": "3.0"}, "http_version": "1.1", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "root_path": ""}  # fmt: skip
    LOOP.run_until_complete(app({**base, **scope}, receive, send))
    return sent


def asked(app, method, path, query, headers, body, cut=False):
    """Status and content of an answer; with `cut`, the client goes away in the middle of the body."""
    scope = {"type": "http", "scheme": "http", "method": method, "path": path, "raw_path": path.encode(),
             "query_string": query, "headers": headers}  # fmt: skip
    half = len(body) // 2
    parts = [{"type": "http.request", "body": body[:half], "more_body": True},
             {"type": "http.request", "body": body[half:], "more_body": False}]  # fmt: skip
    sent = spoken(app, scope, parts[:1] if cut else parts)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def damaged_picture(rng, originals):
    data = originals[int(rng.integers(len(originals)))]
    kind = rng.random()
    if kind < 0.4:
        return data
    if kind < 0.7:
        head = int(rng.integers(8, 120))
        return mutated_bytes(data[:head], rng) + data[head:]
    return mutated_bytes(data, rng)


def some_query(rng):
    chosen = {key: PARAMETERS[key] for key in USUAL[int(rng.integers(len(USUAL)))]}
    if rng.random() < 0.4:
        key = list(PARAMETERS)[int(rng.integers(len(PARAMETERS)))]
        chosen[key] = VALUES[int(rng.integers(len(VALUES)))]
    query = urlencode(chosen).encode()
    return mutated_bytes(query, rng) if rng.random() < 0.1 else query


def some_headers(rng, kind):
    if rng.random() < 0.2:
        kind = TYPES[int(rng.integers(len(TYPES)))]
    headers = [(b"content-type", kind.encode("latin-1"))]
    if rng.random() < 0.2:
        length = VALUES[int(rng.integers(len(VALUES)))]
        headers.append((b"content-length", length.encode("latin-1")))
    if rng.random() < 0.1:
        headers[0] = (headers[0][0], mutated_bytes(headers[0][1], rng))
    return headers


def run(count, make, valid):
    """All cases, some of which are answered; `make(rng)` gives a case that returns whether it was."""
    rng, before = np.random.default_rng(SEED), peak_megabytes()
    answers = []
    for case in range(count):
        work = make(rng)
        assert hold(lambda work=work: answers.append(work()), case, SEED)
    assert sum(answers) >= valid * count
    assert sum(answers) < count
    assert peak_megabytes() - before < MEGABYTES


def answered(status, content):
    """Whether it is an answer; anything but one and a refusal with its reason is a defect."""
    assert status in (200, 503) or 400 <= status < 500, f"{status}: {content[:200]}"
    if status != 200:
        assert json.loads(content)["error"]
    return status == 200


@pytest.mark.parametrize("count", COUNTS)
def test_images_parameters_and_headers(app, count):
    originals = pictures()

    def make(rng):
        body, kind = damaged_picture(rng, originals), "image/png"
        if rng.random() < 0.1:
            kind = "multipart/form-data; boundary=x"
            prior = {"world_from_cam": np.eye(4).tolist()}
            head = b"--x\r\nContent-Disposition: form-data; name="
            body = (head + b'"image"; filename="a.png"\r\n\r\n' + body + b"\r\n"
                    + head + b"prior\r\n\r\n" + json.dumps(mutated_json(prior, rng)).encode() + b"\r\n"
                    + head + b"depth\r\n\r\n" + damaged_picture(rng, originals[2:]) + b"\r\n--x--\r\n")  # fmt: skip
            if rng.random() < 0.5:
                body = mutated_bytes(body, rng)
        elif rng.random() < 0.03:
            body = body * 100  # beyond the limit
        method = "POST" if rng.random() < 0.97 else str(rng.choice(["GET", "PUT", "BREW"]))
        query, headers, cut = some_query(rng), some_headers(rng, kind), rng.random() < 0.05
        return lambda: answered(*asked(app, method, "/localize", query, headers, body, cut))

    run(count, make, 0.1)


@pytest.mark.parametrize("count", COUNTS)
def test_batches(app, count):
    originals = pictures()

    def make(rng):
        def picture():
            return b64encode(damaged_picture(rng, originals)).decode()

        content = {"map": "room", "images": [{"image": picture(), "name": "a", "timestamp": 0.5},
                                             {"image": picture(), "focal": 40.0, "depth": None}]}  # fmt: skip
        if rng.random() < 0.4:
            content["images"][1]["depth"] = picture()
        if rng.random() < 0.5:
            content = mutated_json(content, rng)
        body = json.dumps(content).encode()
        if rng.random() < 0.2:
            body = mutated_bytes(body, rng)
        headers = some_headers(rng, "application/json")
        query = some_query(rng) if rng.random() < 0.05 else b""
        return lambda: answered(*asked(app, "POST", "/localize/batch", query, headers, body))

    run(count, make, 0.1)


@pytest.mark.parametrize("count", COUNTS)
def test_cameras_over_a_websocket(app, count):
    originals = pictures()
    said = {"focal": 50, "timestamp": 0.5, "name": "a", "depth": b64encode(originals[2]).decode(),
            "prior": {"world_from_cam": np.eye(4).tolist(), "covariance": np.eye(6).tolist()}}  # fmt: skip

    def make(rng):
        messages = [{"type": "websocket.connect"}]
        for _ in range(3):
            data = json.dumps(mutated_json(said, rng)).encode()
            if rng.random() < 0.3:
                data = mutated_bytes(data, rng)
            text = data.decode("utf-8", "replace")
            messages.append({"type": "websocket.receive", "text": text})
            picture = damaged_picture(rng, originals)
            messages.append({"type": "websocket.receive", "bytes": picture})

        def work():
            scope = {"type": "websocket", "scheme": "ws", "path": "/track", "raw_path": b"/track",
                     "query_string": b"", "headers": [], "subprotocols": []}  # fmt: skip
            sent = spoken(app, scope, messages)
            answers = [
                json.loads(m["text"].encode()) for m in sent if m["type"] == "websocket.send"
            ]
            assert sum("status" in a for a in answers) == len(answers) >= 3
            return all("error" not in a for a in answers)

        return work

    run(count, make, 0.0)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"focal": 1' + "0" * 400 + "}", '{"name": "\\ud800"}', '{"timestamp": 1e999}'],
    ids=["nested", "long number", "half a character", "infinite"],
)
def test_odd_words_over_a_websocket(app, text):
    scope = {"type": "websocket", "scheme": "ws", "path": "/track", "raw_path": b"/track",
             "query_string": b"", "headers": [], "subprotocols": []}  # fmt: skip
    messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": text},
                {"type": "websocket.receive", "bytes": pictures()[1]}]  # fmt: skip
    sent = spoken(app, scope, messages)
    answers = [json.loads(m["text"].encode()) for m in sent if m["type"] == "websocket.send"]
    # The words are refused or do no harm; the picture after them is localized.
    assert answers[-1]["status"] == "localized"

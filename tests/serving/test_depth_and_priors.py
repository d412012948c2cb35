"""Depth and priors of requests: forms, batches and a camera's messages, on scenes that only they decide."""

import json
from base64 import b64encode

import cv2
import numpy as np
import pytest
from serving_tools import ask, encoded

from reloc_core.interfaces import Estimator
from reloc_core.localizer import Localizer
from reloc_core.pipeline import Pipeline, Stage
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Correspondences

WALL, APART = 8.0, 10.0
GRID = np.stack(np.meshgrid(np.arange(4, 160, 12), np.arange(4, 90, 12)), -1).reshape(-1, 2) * 1.0
RIPPLE = 0.3 * np.sin(GRID[:, 0])


class Corridors(Estimator):
    """Corridors that look alike, APART along x, whose rippled wall lies at z = WALL; a camera that looks along z.

    Depth tells how far the wall is (4 without), and the prior which corridor it is (the first without).
    """

    produces = Correspondences
    uses_prior = True

    def fit(self, dataset, run): ...

    def load(self, scene_map, runtime): ...

    def estimate(self, query):
        k, far = query.camera, 4.0
        if query.depth is not None:
            far = float(np.median(query.depth))
        which = 0
        if query.prior is not None:
            which = round(query.prior.world_from_cam[0, 3] / APART)
        z = far + RIPPLE
        x, y = ((GRID - [k.cx, k.cy]) / k.fx * z[:, None]).T
        return Correspondences(
            GRID, np.stack([x + APART * which, y, z + WALL - far], 1), kind="sparse"
        )


@pytest.fixture
def port(serve):
    pipeline = Pipeline(Corridors(), PnpSolver(PnpConfig()))
    return serve({"room": Localizer(pipeline)}, camera=100.0)[1]


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


PICTURE = png(cv2.resize(np.random.default_rng(0).integers(0, 256, (12, 24), np.uint8), (160, 90)))
DEPTH = png(np.full((90, 160), 2500, np.uint16))


def form(**parts):
    """Body and headers of a form; a part is bytes, or JSON."""
    body = b""
    for name, part in parts.items():
        data = part if isinstance(part, bytes) else json.dumps(part).encode()
        body += b'--limit\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (
            name.encode(), data,
        )  # fmt: skip
    return {
        "body": body + b"--limit--\r\n",
        "headers": {"Content-Type": "multipart/form-data; boundary=limit"},
    }


def prior(x, std=0.01, z=0.0):
    pose = np.eye(4)
    pose[[0, 2], 3] = x, z
    return {"world_from_cam": pose.tolist(), "covariance": (std**2 * np.eye(6)).tolist()}


def place(answer):
    assert answer["status"] == "localized", answer
    return [row[3] for row in answer["world_from_cam"][:3]]


@pytest.mark.parametrize("sequence", ["", "?sequence=walk"])
def test_forms(port, sequence):
    def answered(**parts):
        status, _, answer = ask(port, path=f"/localize{sequence}", **form(**parts))
        assert status == 200
        return place(answer)

    assert answered(image=PICTURE, depth=DEPTH, prior=prior(2 * APART)) == pytest.approx(
        [2 * APART, 0, WALL - 2.5], abs=0.01
    )
    if not sequence:  # a video would remember
        assert answered(image=PICTURE) == pytest.approx([0, 0, WALL - 4], abs=1e-3)
        assert answered(image=PICTURE, prior=prior(APART))[0] == pytest.approx(APART, abs=1e-3)
        assert answered(image=PICTURE, depth=DEPTH)[2] == pytest.approx(WALL - 2.5, abs=1e-3)


def test_a_prior_alone_tells_where_a_video_goes_on_in_the_dark(port):
    """The picture is black, so that the pose is that of the prior, and no surer."""
    known = prior(0.05, 1e-3, WALL - 4)
    ask(port, path="/localize?sequence=walk&timestamp=0", body=PICTURE)
    black = png(np.zeros((90, 160), np.uint8))
    path = "/localize?sequence=walk&timestamp=0.1"
    answer = ask(port, path=path, **form(image=black, prior=known))[2]
    assert place(answer) == pytest.approx([0.05, 0, WALL - 4], abs=1e-3)
    assert np.sqrt(np.diag(answer["covariance"])) == pytest.approx([1e-3] * 6, rel=0.1)


class Blind(Corridors):
    uses_prior = False


def test_what_is_not_used_is_said(serve):
    stages = [Stage("blind", reads_depth=False), Stage("pnp", reads_depth=False)]
    pipeline = Pipeline(Blind(), PnpSolver(PnpConfig()), stages=stages)
    port = serve({"room": Localizer(pipeline)}, camera=100.0)[1]
    sent = form(image=PICTURE, depth=DEPTH, prior=prior(0))
    notes = [
        ask(port, path=path, **sent)[2]["note"] for path in ("/localize", "/localize?sequence=walk")
    ]
    # The poses of a sequence are filtered, and the filter looks at the prior.
    assert notes == [
        f"{what} given, but not used by blind + pnp"
        for what in ("depth and the prior pose", "depth")
    ]
    assert ask(port, body=PICTURE)[2]["note"] == ""


def test_an_answer_can_be_the_next_prior(port):
    answer = ask(port, **form(image=PICTURE, prior=prior(APART)))[2]
    known = {key: answer[key] for key in ("world_from_cam", "covariance")}
    assert place(ask(port, **form(image=PICTURE, prior=known))[2])[0] == pytest.approx(APART)


def test_batches(port):
    images = [{"image": PICTURE, "prior": prior(APART)}, {"image": PICTURE, "depth": DEPTH}]
    body = json.dumps({"images": images}, default=lambda b: b64encode(b).decode())
    headers = {"Content-Type": "application/json"}
    first, second = ask(port, path="/localize/batch", body=body, headers=headers)[2]
    assert place(first) == pytest.approx([APART, 0, WALL - 4], abs=1e-3)
    assert place(second) == pytest.approx([0, 0, WALL - 2.5], abs=1e-3)


def test_messages_of_a_camera(port):
    client = pytest.importorskip("websockets.sync.client")
    with client.connect(f"ws://127.0.0.1:{port}/track") as socket:

        def answered(image=PICTURE, **said):
            socket.send(json.dumps(said, default=lambda b: b64encode(b).decode()))
            socket.send(image)
            return json.loads(socket.recv(10))

        found = answered(prior=prior(APART), depth=DEPTH, timestamp=0.0, name="a")
        assert place(found) == pytest.approx([APART, 0, WALL - 2.5], abs=0.01)
        found = answered(prior=prior(APART + 0.005, 1e-4, 5.5), timestamp=0.1)
        assert 0.002 < place(found)[0] - APART < 0.0051  # it is fused with what was believed
        assert found["name"] == ""  # said of one image
        assert "another size" in answered(depth=png(np.ones((9, 16), np.uint16)))["error"]
        socket.send(json.dumps({"prior": {"world_from_cam": np.ones((4, 4)).tolist()}}))
        refused = json.loads(socket.recv(10))
        assert refused["status"] == 422
        assert "prior: the upper-left 3x3 block is no rotation" in refused["error"]


def bad_prior(**members):
    return {"image": PICTURE, "prior": prior(0) | members}


INDEFINITE = np.diag([1.0, 1, 1, 1, 1, -1]).tolist()


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ({"depth": DEPTH}, 422, "no part 'image'"),
        ({"image": PICTURE, "photo": PICTURE}, 422, "no part 'photo' of the form: image, depth, prior"),
        ({"image": PICTURE, "depth": DEPTH[:50]}, 422, "depth map"),
        ({"image": PICTURE, "depth": b"text"}, 415, "The depth map is no JPEG or PNG"),
        ({"image": PICTURE, "depth": PICTURE}, 422, "no depth map"),
        ({"image": PICTURE, "depth": png(np.ones((9, 16), np.uint16))}, 422, "another size"),
        ({"image": b"", "depth": DEPTH}, 415, "The image is no JPEG or PNG"),
        ({"image": PICTURE, "prior": b"{"}, 422, "prior: Invalid JSON"),
        ({"image": PICTURE, "prior": b"[1]"}, 422, "prior: Input should be an object"),
        ({"image": PICTURE, "prior": {}}, 422, "prior: world_from_cam: Field required"),
        (bad_prior(world_from_cam=np.eye(3).tolist()), 422, "prior: world_from_cam"),
        (bad_prior(world_from_cam=(2 * np.eye(4)).tolist()), 422, "no rotation"),
        (bad_prior(world_from_cam=np.full((4, 4), np.nan).tolist()), 422, "finite"),
        (bad_prior(covariance=np.eye(5).tolist()), 422, "prior: covariance"),
        (bad_prior(covariance=np.triu(np.ones((6, 6))).tolist()), 422, "not symmetric"),
        (bad_prior(covariance=INDEFINITE), 422, "not positive definite"),
        (bad_prior(covarianse=INDEFINITE), 422, "prior: covarianse: Extra inputs"),
    ],
)  # fmt: skip
def test_bad_forms(port, parts, status, words):
    answer = ask(port, **form(**parts))
    assert (answer[0], words in answer[2]["error"]) == (status, True), answer


GOOD = form(image=PICTURE)["body"]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (GOOD, "multipart/form-data", "needs boundary="),
        (GOOD, "multipart/form-data; boundary=" + "x" * 71, "70 characters"),
        (GOOD, "multipart/form-data; boundary=other", "ends early"),
        (GOOD[:-60], "multipart/form-data; boundary=limit", "ends early"),
        (GOOD[:-11] + GOOD, "multipart/form-data; boundary=limit", "two parts 'image'"),
        (GOOD[:-11] * 9 + GOOD, "multipart/form-data; boundary=limit", "more parts"),
        (b"--limit\r\n\r\n--limit--", "multipart/form-data; boundary=limit", "no headers"),
        (b"--limit\r\nA: b\r\n\r\n\r\n--limit--", "multipart/form-data; boundary=limit", "no part"),
    ],
)
def test_forms_that_are_none(port, body, kind, words):
    status, _, answer = ask(port, body=body, headers={"Content-Type": kind})
    assert (status, words in answer["error"]) == (422, True), answer


def test_a_prior_is_given_once(port):
    numbers = ",".join(map(str, np.eye(4).ravel()))
    answer = ask(port, path=f"/localize?prior={numbers}", **form(image=PICTURE, prior=prior(0)))
    assert (answer[0], answer[2]["error"]) == (422, "prior is given twice.")


def test_the_description_can_be_resolved(port):
    """Every reference leads somewhere, and forms and messages are typed."""
    description = ask(port, "GET", "/openapi.json")[2]
    references = []

    def look(node):
        if isinstance(node, dict):
            references.extend([node["$ref"]] if "$ref" in node else [])
            node = node.values()
        for child in node if not isinstance(node, str | int | float | bool | None) else ():
            look(child)

    look(description)
    for reference in references:
        node = description
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
    body = description["paths"]["/localize"]["post"]["requestBody"]["content"]
    parts = body["multipart/form-data"]["schema"]["properties"]
    assert set(parts) == {"image", "depth", "prior"}
    assert parts["prior"]["$ref"] in references
    schemas = description["components"]["schemas"]
    for kind in ("BatchImage", "CameraMessage"):
        assert {"depth", "prior", "timestamp", "focal"} <= set(schemas[kind]["properties"])
    assert set(schemas["Prior"]["properties"]) == {"world_from_cam", "covariance"}
    assert "POST /localize" in ask(port, "GET", "/docs")[2]


def test_a_form_needs_no_extras(port):
    """Text around the parts, quoted boundaries and headers of any kind, as clients send them."""
    body = (b'preamble\r\n--a b\r\nContent-Type: image/jpeg\r\ncontent-disposition: form-data; filename="a.jpg"; '
            b'name=image\r\n\r\n' + encoded(width=160, height=90) + b"\r\n--a b--\r\nepilogue")  # fmt: skip
    headers = {"Content-Type": 'Multipart/Form-Data; boundary="a b"'}
    assert place(ask(port, body=body, headers=headers)[2]) == pytest.approx([0, 0, 4], abs=1e-3)

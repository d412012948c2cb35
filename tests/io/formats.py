"""Strategies and comparisons that the tests of file formats share."""

import struct
import zlib

import numpy as np
from hypothesis import strategies as st

from reloc_core.geometry import project, rotation_from_quaternion
from reloc_core.types import CAMERA_MODELS, Camera, Frame

MODELS = sorted(CAMERA_MODELS)
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
_COEFFICIENT = st.floats(-0.05, 0.05)


@st.composite
def cameras(draw, models=MODELS):
    model = draw(st.sampled_from(models))
    width, height = draw(st.integers(16, 4000)), draw(st.integers(16, 4000))
    focal = st.floats(0.4 * width, 4 * width)
    params = []
    for name in CAMERA_MODELS[model]:
        if name in ("f", "fx", "fy"):
            params.append(draw(focal))
        elif name in ("cx", "cy"):
            size = width if name == "cx" else height
            params.append(draw(st.floats(0.2 * size, 0.8 * size)))
        else:
            params.append(draw(_COEFFICIENT))
    return Camera(model, width, height, tuple(params))


@st.composite
def poses(draw):
    quaternion = np.array([draw(st.floats(-1, 1)) for _ in range(4)])
    if np.linalg.norm(quaternion) < 1e-3:
        quaternion = np.array([1.0, 0, 0, 0])
    pose = np.eye(4)
    pose[:3, :3] = rotation_from_quaternion(quaternion)
    pose[:3, 3] = [draw(st.floats(-2000, 2000)) for _ in range(3)]
    return pose


@st.composite
def scenes(draw, models=MODELS, timed=False, unposed=False, folder="part "):
    """A few frames; some share a camera."""
    count = draw(st.integers(1, 5))
    lenses = draw(st.lists(cameras(models), min_size=1, max_size=3))
    frames = []
    for i in range(count):
        pose = None if unposed and draw(st.booleans()) else draw(poses())
        stamp = round(0.1 * i + draw(st.floats(0, 0.05)), 9) if timed else None
        sequence = draw(st.sampled_from([None, "seq-01", "walk two"])) if timed else None
        frames.append(
            Frame(
                f"{folder}{i % 2}/img_{i:03d}.png", lenses[i % len(lenses)], pose, stamp, sequence
            )
        )
    return frames


def write_header(path, camera):
    """A PNG that ends after its header: enough for everything that does not read pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"IHDR" + struct.pack(">IIBBBBB", camera.width, camera.height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    path.write_bytes(data + struct.pack(">I", zlib.crc32(header)))


def assert_same_projection(found, expected, world_from_cam=None):
    """The same pixels for points that the camera sees, to 1e-6 px."""
    rng = np.random.default_rng(0)
    z = rng.uniform(0.5, 20, 40)
    x = rng.uniform(-0.4, 0.4, 40) * expected.width / expected.fx * z
    y = rng.uniform(-0.4, 0.4, 40) * expected.height / expected.fy * z
    points = np.stack([x, y, z], -1)
    np.testing.assert_allclose(project(found, points)[0], project(expected, points)[0], atol=1e-6)


def assert_same_frames(found, expected):
    """Poses to 1e-9 and projections to 1e-6 px, in the same order under the same names."""
    assert [f.name for f in found] == [f.name for f in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.camera.width, a.camera.height) == (b.camera.width, b.camera.height)
        assert_same_projection(a.camera, b.camera)
        if b.world_from_cam is None:
            assert a.world_from_cam is None
            continue
        np.testing.assert_allclose(a.world_from_cam[:3, :3], b.world_from_cam[:3, :3], atol=1e-9)
        # Translations are compared relative to the size of the world that was drawn.
        np.testing.assert_allclose(
            a.world_from_cam[:3, 3], b.world_from_cam[:3, 3], rtol=0, atol=1e-9
        )

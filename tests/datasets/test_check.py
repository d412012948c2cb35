import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
from rich.console import Console

from reloc_core.datasets.check import check_dataset, nearest_views
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.epipolar import CONVENTIONS, Pair, reinterpret, sampson
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.geometry import OPENCV_FROM_OPENGL, inverse, project, transform, unproject
from reloc_core.interfaces import Dataset
from reloc_core.io.images import read_image
from reloc_core.types import Camera, Query


class Changed(Dataset):
    """A dataset with every frame changed."""

    def __init__(self, dataset, **changes):
        self.dataset, self.changes = dataset, changes
        self.queries = {}

    def _apply(self, frame):
        values = {}
        if "pose" in self.changes:
            values["world_from_cam"] = self.changes["pose"](frame.world_from_cam)
        if "focal" in self.changes:
            camera = frame.camera
            values["camera"] = Camera.pinhole(
                camera.fx * self.changes["focal"], camera.width, camera.height
            )
        if isinstance(frame, Query):
            if "depth" in self.changes:
                values["depth"] = self.changes["depth"](frame.depth)
            if "image" in self.changes:
                values["image"] = self.changes["image"](frame.image)
        return replace(frame, **values)

    name = property(lambda self: self.dataset.name)
    frames = property(lambda self: [self._apply(f) for f in self.dataset.frames])
    has_depth = property(lambda self: self.dataset.has_depth)
    unit = property(lambda self: self.changes.get("unit", "metre"))

    def __getitem__(self, index):
        if index not in self.queries:
            self.queries[index] = self._apply(self.dataset[index])
        return self.queries[index]


@pytest.fixture(scope="module")
def room():
    options = {"width": 400, "height": 300, "train_frames": 60, "test_frames": 10}
    # Wrapped to keep the rendered frames for all tests.
    return tuple(
        Changed(SyntheticDataset(SyntheticConfig(split=s, **options))) for s in ("train", "test")
    )


def finding(report, check):
    found = [f for f in report.findings if f.check == check]
    assert found, f"no finding about {check}: {report.findings}"
    return max(found, key=lambda f: ("ok", "warning", "error").index(f.level))


def test_a_good_dataset_is_ok(room, tmp_path):
    report = check_dataset(*room, tmp_path / "out")
    assert report.level == "ok", report.findings
    for check in ("axes", "focal length", "depth", "scale", "coverage", "world frame"):
        assert finding(report, check).level == "ok"
    assert report.picture == tmp_path / "out" / "data_check.png"
    assert read_image(report.picture).std() > 10
    console = Console(record=True, width=120)
    console.print(report)
    assert "coverage" in console.export_text()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (inverse, "world-to-camera"),
        (lambda p: p @ OPENCV_FROM_OPENGL, "OpenGL axes"),
        (lambda p: inverse(p @ OPENCV_FROM_OPENGL), "world-to-camera with OpenGL axes"),
    ],
)
def test_wrong_conventions_are_named(room, change, name):
    report = check_dataset(Changed(room[0], pose=change), None, None)
    found = finding(report, "axes")
    assert found.level == "error"
    assert f"look like {name}:" in found.message
    assert found.advice == CONVENTIONS[name]
    pose = room[0].frames[5].world_from_cam
    np.testing.assert_allclose(reinterpret(change(pose), name), pose, atol=1e-12)


@pytest.mark.parametrize("factor", [0.75, 1.33])
def test_a_wrong_focal_length_is_found(room, factor):
    found = finding(check_dataset(Changed(room[0], focal=factor), None, None), "focal length")
    assert found.level == "warning"
    proposed = float(found.message.split(" px")[0])
    assert proposed == pytest.approx(room[0].frames[0].camera.fx, rel=0.05)


def test_depth_of_another_scale(room):
    found = finding(check_dataset(Changed(room[0], depth=lambda d: d * 1.2), None, None), "depth")
    assert found.level == "warning"
    assert "0.83" in found.message


def test_unregistered_depth(room):
    shifted = Changed(room[0], depth=lambda d: np.roll(d, 40, 1))
    assert finding(check_dataset(shifted, None, None), "depth").level == "warning"
    empty = Changed(room[0], depth=np.zeros_like)
    assert finding(check_dataset(empty, None, None), "depth").level == "error"


def test_translations_in_millimetres(room):
    def millimetres(pose):
        pose = pose.copy()
        pose[:3, 3] *= 1000
        return pose

    report = check_dataset(Changed(room[0], pose=millimetres), None, None)
    assert finding(report, "scale").level == "warning"
    free = check_dataset(Changed(room[0], pose=millimetres, unit="scene unit"), None, None)
    assert finding(free, "scale").level == "ok"


def test_splits_of_different_worlds(room):
    turn = np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    turn[:3, 3] = 5.2, -0.4, 0  # another world, but near enough to be compared
    train, test = room
    report = check_dataset(train, Changed(test, pose=lambda p: turn @ p), None)
    assert finding(report, "world frame").level != "ok"


def test_uncovered_queries(room):
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])

    def away(pose):
        return pose @ turn  # upside down

    assert (
        finding(check_dataset(room[0], Changed(room[1], pose=away), None), "coverage").level
        == "warning"
    )


def test_identical_and_dark_images(room):
    first = room[0][0].image
    same = Changed(room[0], image=lambda _: first)
    assert finding(check_dataset(same, None, None), "images").level == "warning"
    dark = Changed(room[0], image=lambda i: i // 40)
    assert finding(check_dataset(dark, None, None), "images").level == "warning"


def test_poses_that_say_nothing(room, tmp_path):
    unposed = check_dataset(Changed(room[0], pose=lambda _: None), None, tmp_path)
    assert finding(unposed, "poses").level == "warning"
    assert unposed.picture.is_file()
    still = check_dataset(Changed(room[0], pose=lambda _: np.eye(4)), None, None)
    assert finding(still, "poses").level == "error"


@pytest.fixture
def exact_pair():
    """Noise-free matches of random points between two known views."""
    rng = np.random.default_rng(0)
    camera = Camera("OPENCV", 400, 300, (300, 310, 200, 150, 0.05, -0.02, 0.001, 0.002))
    points = rng.uniform((-1, -1, 3), (1, 1, 6), (60, 3))
    second_from_first = np.eye(4)
    angle = 0.1
    second_from_first[:3, :3] = [
        [np.cos(angle), 0, np.sin(angle)],
        [0, 1, 0],
        [-np.sin(angle), 0, np.cos(angle)],
    ]
    second_from_first[:3, 3] = 0.4, 0.1, -0.2
    image = np.zeros((300, 400, 3), np.uint8)
    queries = [
        Query("a", camera, np.eye(4), image=image),
        Query("b", camera, inverse(second_from_first), image=image),
    ]
    moved = transform(second_from_first, points)
    pixels = np.stack([project(camera, points)[0], project(camera, moved)[0]])
    rays = np.stack([p / p[:, 2:] for p in (points, moved)])
    return Pair(*queries, pixels, rays), second_from_first, points, moved


def test_epipolar_error_is_zero_for_exact_matches_and_measures_pixels(exact_pair):
    pair, motion, _, _ = exact_pair
    np.testing.assert_allclose(sampson(pair, motion), 0, atol=1e-9)
    # Move the second ray by 1 px across its epipolar line: the error shared by both images is 1/sqrt(2)
    # where the two gradients are equal.
    rays = pair.rays.copy()
    line = rays[0] @ (np.cross(np.eye(3), -motion[:3, 3]) @ motion[:3, :3]).T
    normal = line[:, :2] / np.linalg.norm(line[:, :2], axis=1, keepdims=True)
    rays[1, :, :2] += normal / pair.first.camera.fx
    errors = sampson(replace(pair, rays=rays), motion)
    assert ((errors > 0.6) & (errors < 0.85)).all()


def test_nearest_view_weighs_angle_against_distance():
    here, far, turned = np.tile(np.eye(4), (3, 1, 1))
    far[0, 3] = 0.3
    turned[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    coverage = nearest_views(np.stack([turned, far]), here[None], depth=2.0)
    assert coverage.index[0] == 1
    assert coverage.distance[0] == pytest.approx(0.3)
    assert not coverage.uncovered[0]
    assert nearest_views(turned[None], here[None], 2.0).uncovered[0]


def test_focal_lengths_of_their_own(room):
    """Photos that were each zoomed: their own focal lengths fit, and a common factor is found."""

    class Zoomed(Changed):
        """Every other frame is cropped by a tenth and enlarged; `factor` is how wrong it is told."""

        factor = 1.0
        has_depth = False

        def _apply(self, frame):
            number = int(frame.name.rpartition("/")[2])
            zoom = 1.1 if number % 2 else 1.0
            camera = frame.camera
            told = Camera(
                "SIMPLE_PINHOLE", camera.width, camera.height,
                (self.factor * zoom * camera.fx, camera.cx, camera.cy),
            )  # fmt: skip
            if not isinstance(frame, Query):
                return replace(frame, camera=told)
            matrix = np.array(
                [[zoom, 0, (1 - zoom) * camera.cx], [0, zoom, (1 - zoom) * camera.cy]]
            )
            image = cv2.warpAffine(frame.image, matrix, (camera.width, camera.height))
            return replace(frame, camera=told, image=image, depth=None)

    right = Zoomed(room[0].dataset)
    found = finding(check_dataset(right, None, None), "focal length")
    assert found.level == "ok"
    fx = room[0].frames[0].camera.fx
    assert f"the images' own focal lengths, {fx:.0f} to {1.1 * fx:.0f} px, fit" in found.message
    assert float(found.message.rpartition("by ")[2].removesuffix(" px")) < 1.0
    wrong = Zoomed(room[0].dataset)
    wrong.factor = 0.75
    found = finding(check_dataset(wrong, None, None), "focal length")
    assert found.level == "warning"
    factor = float(found.message.partition(" times")[0])
    assert factor == pytest.approx(1 / 0.75, rel=0.05)
    assert f"({0.75 * fx:.0f} to {0.75 * 1.1 * fx:.0f} px) fits better" in found.message


class ThroughFisheye(Changed):
    """Views as a fisheye shows them, to whose corners no ray comes."""

    camera = Camera("OPENCV_FISHEYE", 420, 320, (113.0, 113.0, 209.5, 159.5, 0.02, -0.01, 0.0, 0.0))
    has_depth = False

    def __init__(self, dataset):
        super().__init__(dataset)
        pixels = np.moveaxis(np.indices((320, 420))[::-1], 0, -1)
        self.rays = np.nan_to_num(unproject(self.camera, pixels), nan=-9.0)
        assert (self.rays[0, 0, :2] == -9).all()

    def _apply(self, frame):
        if not isinstance(frame, Query):
            return replace(frame, camera=self.camera)
        k, x, y = frame.camera, self.rays[..., 0], self.rays[..., 1]
        x, y = (k.fx * x + k.cx).astype(np.float32), (k.fy * y + k.cy).astype(np.float32)
        image = cv2.remap(frame.image, x, y, cv2.INTER_LINEAR)
        return replace(frame, camera=self.camera, image=image, depth=None)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_pictures_of_a_fisheye(room, tmp_path):
    report = check_dataset(*map(ThroughFisheye, room), tmp_path)
    assert "OPENCV_FISHEYE" in finding(report, "frames").message
    for check in ("axes", "world frame"):
        assert finding(report, check).level == "ok"
    assert read_image(report.picture).std() > 10


def test_nearest_views_of_many_are_those_of_few():
    rng = np.random.default_rng(0)
    train, test = np.tile(np.eye(4), (90, 1, 1)), np.tile(np.eye(4), (600, 1, 1))
    train[:, :3, 3], test[:, :3, 3] = rng.normal(size=(90, 3)), rng.normal(size=(600, 3))
    together = nearest_views(train, test, 2.0)
    for first in (0, 255, 256, 599):
        alone = nearest_views(train, test[first : first + 1], 2.0)
        assert together.index[first] == alone.index[0]
        assert together.distance[first] == alone.distance[0]
        assert together.uncovered[first] == alone.uncovered[0]


def test_memory_of_nearest_views_does_not_grow_with_their_product():
    poses = np.tile(np.eye(4), (3000, 1, 1))
    tracemalloc.start()
    nearest_views(poses, poses, 2.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # 3000 x 3000 x 3 differences alone are 216


def test_coverage_in_scene_units_is_told_as_a_share_of_the_depth(room):
    loose = [Changed(part, unit="scene unit") for part in room]
    message = finding(check_dataset(*loose, None), "coverage").message
    assert "% of the depth" in message
    assert "units" not in message

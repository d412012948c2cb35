"""Conformance of datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from reloc_core.config import TARGET, build, typed_config
from reloc_core.datasets.subset import Subset
from reloc_core.errors import RelocError
from reloc_core.geometry import inverse, lift, project, rotation_angle_deg, transform
from reloc_core.interfaces import Dataset
from reloc_core.maps import dataset_identity
from reloc_core.testing.common import ComponentConformance, check_rigid
from reloc_core.testing.tools import room
from reloc_core.types import Float64Array, ImageArray, Query

MISSING = "???"
_READ = 8  # images that the slower tests read


class DatasetConformance(ComponentConformance):
    """Holds a dataset to its promises.

    A dataset of files overrides `write`, which gets an empty folder and the small room, writes the
    room in the dataset's format and returns the options that read it, such as `{"root": str(folder)}`.

    Attributes:
        frames: images of the room that `write` is given.
        max_reprojection_px: with depth: median distance, in pixels, between the same scene point
            in neighbouring images by their poses and depths (the check that finds wrong axes, wrong
            pixel conventions and unregistered depth).
    """

    interface: ClassVar[str] = "dataset"
    frames: ClassVar[int] = 6
    max_reprojection_px: ClassVar[float] = 1.0

    def write(self, folder: Path, scene: Dataset) -> Mapping[str, Any]:
        """Write `scene` to `folder`; returns the options of the dataset that reads it."""
        return {}

    def scene(self) -> Dataset:
        """The part of the room that is written; its neighbouring images see the same things."""
        return Subset(room("train", 90), range(self.frames))

    def buildable_options(self) -> Mapping[str, Any]:
        """Options with placeholders for required ones; construction is tested on real files."""
        component = self.described()
        required = {
            name: "nowhere"
            for name, default in vars(component.config()).items()
            if default == MISSING
        }
        return {**required, **self.options}

    def test_builds_from_a_config(self) -> None:
        """A wrong path is an error that says so; `make` builds from a right one."""
        component = self.described()
        if any(default == MISSING for default in vars(component.config()).values()):
            with pytest.raises(RelocError):
                build({TARGET: self.component, **self.buildable_options()}, "dataset")
        else:
            super().test_builds_from_a_config()

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        """The dataset under test."""
        options = {**self.options, **self.write(tmp_path / "scene", self.scene())}
        built: Dataset = build({TARGET: self.component, **options}, "dataset")
        return built

    def test_frames_describe_the_images(self, dataset: Dataset) -> None:
        assert len(dataset) == len(dataset.frames) > 0
        assert dataset.name
        assert dataset.unit in ("metre", "scene unit")
        names = [frame.name for frame in dataset.frames]
        assert len(set(names)) == len(names), "names must be unique"
        for index, frame in enumerate(dataset.frames[:_READ]):
            if frame.world_from_cam is not None:
                check_rigid(frame.world_from_cam)
            query = dataset[index]
            assert isinstance(query, Query)
            assert query.name == frame.name
            assert query.camera == frame.camera
            assert query.timestamp == frame.timestamp
            assert query.sequence == frame.sequence
            np.testing.assert_array_equal(
                np.asarray(query.world_from_cam is None), frame.world_from_cam is None
            )
            if query.world_from_cam is not None:
                np.testing.assert_array_equal(query.world_from_cam, frame.world_from_cam)

    def test_depth_is_as_promised(self, dataset: Dataset) -> None:
        query = dataset[0]
        assert (query.depth is not None) == dataset.has_depth
        if query.depth is not None:
            assert query.depth.dtype == np.float32
            assert np.isfinite(query.depth).all()
            assert (query.depth >= 0).all()
            assert (query.depth > 0).any()

    def test_reading_twice_gives_the_same(self, dataset: Dataset) -> None:
        first = dataset[0]
        image = first.image.copy()
        first.image[:] = 0  # whoever has an image may change it
        np.testing.assert_array_equal(dataset[0].image, image)

    def test_threads_may_read_at_the_same_time(self, dataset: Dataset) -> None:
        count = min(len(dataset), _READ)
        alone = [dataset[i].image.copy() for i in range(count)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda i: dataset[i].image, list(range(count)) * 2))
        for image, expected in zip(together, alone * 2, strict=True):
            np.testing.assert_array_equal(image, expected)

    def test_iteration_ends(self, dataset: Dataset) -> None:
        assert sum(1 for _ in dataset) == len(dataset)
        with pytest.raises(IndexError):
            dataset[len(dataset)]
        assert dataset[-1].name == dataset.frames[-1].name

    def test_identity_is_stable(self, dataset: Dataset) -> None:
        assert dataset_identity(dataset) == dataset_identity(dataset)

    def test_poses_depths_and_pixels_agree(self, dataset: Dataset) -> None:
        """Scene points of an image, by its depth, have the same colour in the next image."""
        if not dataset.has_depth or len(dataset) < 2:
            pytest.skip("needs depth and two images")
        a, b = dataset[0], dataset[1]
        if a.world_from_cam is None or b.world_from_cam is None:
            pytest.skip("needs poses")
        assert a.depth is not None
        assert b.depth is not None
        rows, columns = np.nonzero(a.depth > 0)
        chosen = np.linspace(0, len(rows) - 1, 2000).astype(int)
        pixels = np.stack([columns[chosen], rows[chosen]], 1).astype(float)
        points = transform(
            a.world_from_cam, lift(a.camera, pixels, a.depth[rows[chosen], columns[chosen]])
        )
        in_b = transform(inverse(b.world_from_cam), points)
        seen, valid = project(b.camera, in_b)
        inside = valid & (seen >= 0).all(1)
        inside &= (seen <= [b.camera.width - 1, b.camera.height - 1]).all(1)
        assert inside.mean() > 0.3, "neighbouring images must overlap"
        column, row = np.rint(seen[inside]).astype(int).T
        measured = b.depth[row, column]
        known = measured > 0
        back = transform(b.world_from_cam, lift(b.camera, seen[inside][known], measured[known]))
        offset = np.linalg.norm(back - points[inside][known], axis=1)
        pixels_off = offset / in_b[inside][known, 2] * b.camera.fx
        assert np.median(pixels_off) <= self.max_reprojection_px

    def test_every_image_has_its_own_pose_and_depth(self, dataset: Dataset) -> None:
        """Colours agree between images best where each is taken with its own pose and depth."""
        count = min(len(dataset), _READ)
        queries = [dataset[i] for i in range(count)]
        if not dataset.has_depth or count < 4 or any(q.world_from_cam is None for q in queries):
            pytest.skip("needs depth, poses and four images")
        if len({q.image.shape for q in queries}) > 1:
            pytest.skip("needs images of one size")
        own = []
        for i in range(count - 2):
            scores = {
                shift: _agreement(queries[i], queries[i + 2], queries[i + shift].image,
                                  queries[i + 2 + shift].image)
                for shift in (-1, 0, 1) if i + shift >= 0 and i + 2 + shift < count
            }  # fmt: skip
            own.append(scores[0] >= max(scores.values()) and scores[0] > 0.3)
        assert np.mean(own) > 0.75, "images are paired with the poses or depths of others"

    def test_reads_what_was_written(self, tmp_path: Path) -> None:
        """Every image is that of the room at its pose, and so is its depth."""
        scene = self.scene()
        options = {**self.options, **self.write(tmp_path / "scene", scene)}
        if not any(tmp_path.iterdir()):
            pytest.skip("`write` wrote nothing")
        dataset: Dataset = build({TARGET: self.component, **options}, "dataset")
        read, written = list(dataset)[:_READ], list(scene)
        seen = [int(np.argmax([_likeness(a.image, b.image) for b in written])) for a in read]
        assert len(set(seen)) == len(seen), "two images are the same"
        if any(query.world_from_cam is None for query in read) or len(read) < 2:
            pytest.skip("needs poses")
        # Whatever frame and unit the dataset has, one similarity takes all poses to the room's.
        found = _relative([query.world_from_cam for query in read])
        truth = _relative([written[i].world_from_cam for i in seen])
        scale = 1.0
        if dataset.unit != "metre":
            scale = float(np.linalg.norm(truth[:, :3, 3]) / np.linalg.norm(found[:, :3, 3]))
        message = "images are paired with the poses of others"
        assert rotation_angle_deg(found[:, :3, :3], truth[:, :3, :3]).max() < 0.5, message
        offset = np.linalg.norm(scale * found[:, :3, 3] - truth[:, :3, 3], axis=1)
        assert offset.max() < 0.1 * np.linalg.norm(truth[:, :3, 3], axis=1).max(), message
        for query, i in zip(read, seen, strict=True):
            depth = written[i].depth
            if query.depth is None or depth is None or query.depth.shape != depth.shape:
                continue
            both = (query.depth > 0) & (depth > 0)
            off = np.abs(scale * query.depth[both] / depth[both] - 1)
            assert np.median(off) < 0.02, "images are paired with the depth of others"

    def test_missing_options_are_named(self) -> None:
        component = self.described()
        required = [n for n, default in vars(component.config()).items() if default == MISSING]
        if not required:
            pytest.skip("no option is required")
        with pytest.raises(RelocError, match=required[0]):
            typed_config(component, {})


def _likeness(image: ImageArray, other: ImageArray) -> float:
    """Correlation of two images at a common small size."""
    import cv2

    size = (64, 48)
    small = [
        cv2.resize(i, size, interpolation=cv2.INTER_AREA).astype(float) for i in (image, other)
    ]
    return float(np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1])


def _relative(poses: Sequence[Float64Array | None]) -> Float64Array:
    """Poses (N, 4, 4) in the frame of the first."""
    known = np.stack([pose for pose in poses if pose is not None])
    return np.asarray(inverse(known[0]) @ known, np.float64)


def _agreement(a: Query, b: Query, image_a: ImageArray, image_b: ImageArray) -> float:
    """Correlation of grey values at the same scene points, by the poses and depth of two queries."""
    assert a.depth is not None
    assert a.world_from_cam is not None
    assert b.world_from_cam is not None
    rows, columns = np.nonzero(a.depth > 0)
    chosen = np.linspace(0, len(rows) - 1, 4000).astype(int)
    rows, columns = rows[chosen], columns[chosen]
    pixels = np.stack([columns, rows], 1).astype(float)
    points = transform(a.world_from_cam, lift(a.camera, pixels, a.depth[rows, columns]))
    seen, valid = project(b.camera, transform(inverse(b.world_from_cam), points))
    valid &= (seen >= 0).all(1) & (seen <= [b.camera.width - 1, b.camera.height - 1]).all(1)
    if valid.sum() < 100:
        return 0.0
    column, row = np.rint(seen[valid]).astype(int).T
    first = image_a[rows[valid], columns[valid]].mean(1)
    second = image_b[row, column].mean(1)
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])

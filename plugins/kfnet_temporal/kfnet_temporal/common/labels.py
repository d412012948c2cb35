"""Scene coordinate labels of mapping images: from depth, from their neighbours, or from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from kfnet_temporal.common.formats import read_label, read_lists, scene_transform
from kfnet_temporal.measurement_config import LabelConfig
from reloc_core.errors import DataError
from reloc_core.geometry import transform, unproject
from reloc_core.interfaces import Dataset, Run
from reloc_core.types import BoolArray, Camera, DepthArray, Float64Array, Query

_TRANSFORM_STEP = 10


class Labels(Protocol):
    """Where the scene coordinates come from that everything is learned from."""

    def at(self, index: int, query: Query, pixels: Float64Array) -> Float64Array:
        """Scene coordinates (N, 3) float64 of pixels (N, 2); NaN where unknown.

        Args:
            index: of the image in the mapping dataset.
            query: that image.
            pixels: positions.
        """


class DepthLabels:
    """Labels from measured depth and the pose."""

    def at(self, index: int, query: Query, pixels: Float64Array) -> Float64Array:
        """See `Labels.at`."""
        return labels_at(query, pixels)


class StereoLabels:
    """Labels from the images and poses alone; see `StereoDepth`."""

    def __init__(self, dataset: Dataset, run: Run, config: LabelConfig) -> None:
        from kfnet_temporal.common.grid import FeatureExtractor
        from kfnet_temporal.common.stereo import StereoDepth

        extractor = FeatureExtractor(config.resolution, run.runtime.device)
        self.depth = StereoDepth(dataset, extractor, config.assumed_distance)
        if self.depth.assumed is not None:
            run.log("assumed_distance", metres=self.depth.assumed)

    def at(self, index: int, query: Query, pixels: Float64Array) -> Float64Array:
        """See `Labels.at`: each pixel takes the distance of the cell it lies in."""
        assert query.world_from_cam is not None
        found = self.depth.distances(index, query)
        x, y = self.depth.extractor(query).cells(pixels).T
        distance = found[y, x]
        rays = unproject(query.camera, pixels)
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        return transform(query.world_from_cam, rays * distance[:, None])


class FileLabels:
    """Label maps of `label_list.txt`, one for each mapping image.

    Raises:
        DataError: the lists are missing or do not name every mapping image.
    """

    def __init__(self, dataset: Dataset, folder: str) -> None:
        pairs = read_lists(folder)
        by_name = {image.name: label for image, label in pairs}
        try:
            self.files = [by_name[Path(f.name).name] for f in dataset.frames]
        except KeyError as error:
            raise DataError(
                f"{folder}/image_list.txt does not name the mapping image {error} of {dataset.name}."
            ) from None
        self._last: tuple[int, Float64Array, BoolArray] | None = None

    def at(self, index: int, query: Query, pixels: Float64Array) -> Float64Array:
        """See `Labels.at`.

        Raises:
            DataError: the label map is missing or of another resolution than the image.
        """
        height, width = query.image.shape[:2]
        if self._last is None or self._last[0] != index:
            self._last = (index, *read_label(self.files[index], height, width))
        points = self._last[1]
        # Reduced maps hold the values of every eighth pixel.
        stride = 1 if points.shape[:2] == (height, width) else 8
        return interpolate(points, pixels / stride)


def interpolate(points: Float64Array, places: Float64Array) -> Float64Array:
    """Bilinear samples (N, 3) of a map (h, w, 3) at places (N, 2), x first; NaN next to NaN."""
    height, width = points.shape[:2]
    x, y = places[:, 0].clip(0, width - 1), places[:, 1].clip(0, height - 1)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    result = np.zeros((len(places), 3))
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (x - x0 if dx else 1 - x + x0) * (y - y0 if dy else 1 - y + y0)
            corner = points[(y0 + dy).clip(0, height - 1), (x0 + dx).clip(0, width - 1)]
            result += np.where(weight[:, None] > 0, weight[:, None] * corner, 0)
    return result


def make_labels(dataset: Dataset, config: LabelConfig, run: Run) -> Labels:
    """The labels that a config asks for; a component inside another uses those of the outer one.

    Raises:
        DataError: depth or files are asked for and missing, or no image has a pose.
    """
    shared: Labels | None = getattr(run, "labels", None)
    if shared is not None:
        return shared
    if not any(f.world_from_cam is not None for f in dataset.frames):
        raise DataError(f"{dataset.name} has no poses; mapping needs them.")
    source = config.source
    if source == "auto":
        source = "depth" if dataset.has_depth else "stereo"
    if source == "files":
        return FileLabels(dataset, config.folder)
    if source == "stereo":
        return StereoLabels(dataset, run, config)
    if not dataset.has_depth:
        raise DataError(
            f"{dataset.name} has no depth images. Add depth/, or set estimator.labels.source=stereo."
        )
    return DepthLabels()


def principal_axes(
    dataset: Dataset, labels: Labels, cells: Callable[[Query], Float64Array]
) -> Float64Array:
    """The normalised scene frame (4, 4) from the world, of the labels of every tenth image.

    Args:
        dataset: the mapping images.
        labels: theirs.
        cells: pixels (N, 2) of an image at which they are taken.

    Raises:
        DataError: there are none.
    """
    points = []
    for i in range(0, len(dataset), _TRANSFORM_STEP):
        query = dataset[i]
        points.append(labels.at(i, query, cells(query)))
    found = np.concatenate(points)
    if not np.isfinite(found).all(1).any():
        raise DataError(f"{dataset.name} has no scene coordinate labels to learn from.")
    return scene_transform(found)


def labels_at(query: Query, pixels: Float64Array) -> Float64Array:
    """Scene coordinates (N, 3) float64 of pixels (N, 2); NaN where depth or pose is unknown.

    The depth of the nearest pixel is taken: interpolating across a depth edge makes points that do
    not exist.
    """
    if query.depth is None or query.world_from_cam is None:
        return np.full((len(pixels), 3), np.nan)
    return lift_labels(query.camera, query.depth, query.world_from_cam, pixels)


def lift_labels(
    camera: Camera, depth: DepthArray, world_from_cam: Float64Array, pixels: Float64Array
) -> Float64Array:
    """Scene coordinates (N, 3) of pixels (N, 2) of a depth map (H, W) in metres; NaN where it is 0."""
    nearest = np.rint(pixels).astype(np.int64)
    x = nearest[:, 0].clip(0, depth.shape[1] - 1)
    y = nearest[:, 1].clip(0, depth.shape[0] - 1)
    measured = depth[y, x].astype(np.float64)
    rays = unproject(camera, pixels)
    with np.errstate(invalid="ignore", divide="ignore"):
        points = rays / rays[:, 2:] * measured[:, None]
    world = transform(world_from_cam, points)
    world[~(measured > 0)] = np.nan
    return world

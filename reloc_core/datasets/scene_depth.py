"""How far the scene is from its cameras: the length that errors are measured by where units say nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reloc_core.datasets.base import FileDataset
from reloc_core.datasets.epipolar import Matcher, Pair, relative
from reloc_core.errors import RelocError
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Dataset
from reloc_core.mapping.triangulation import two_view_depths
from reloc_core.types import Float64Array

_CAMERAS = 30  # that are looked at
_POINTS = 20_000
_DEPTH_MAPS = 8
_PAIRS = 10
_PARALLAX = np.radians(0.5)


def scene_depth(
    dataset: Dataset, pairs: Sequence[Pair] | None = None, matching: bool = True
) -> float | None:
    """Median depth of the scene along the optical axes of its cameras, in the unit of the poses.

    Args:
        dataset: with poses. A model's points are used where it has some, else its depth maps, else
            matches between frames.
        pairs: matched frames of the dataset, where they are known already; they go before depth maps,
            whose unit may be another one.
        matching: whether frames may be read and matched for it.

    Returns:
        the depth, or None where nothing tells it.
    """
    points = _model_points(dataset)
    depth = _of_points(dataset, points) if len(points) else None
    if depth is None and pairs:
        depth = _of_pairs(pairs)
    if depth is None and dataset.has_depth:
        depth = _of_depth_maps(dataset)
    if depth is None and pairs is None and matching:
        depth = _of_pairs(Matcher(dataset).neighbours(_PAIRS))
    return depth


def _model_points(dataset: Dataset) -> Float64Array:
    if not isinstance(dataset, FileDataset):
        return np.zeros((0, 3))
    try:
        return dataset.model_points()
    except RelocError:  # a damaged model, or no pycolmap: the poses were readable without it
        return np.zeros((0, 3))


def _of_points(dataset: Dataset, points: Float64Array) -> float | None:
    """Over cameras, of the points that lie in front of them and inside their images."""
    points = points[:: max(len(points) // _POINTS, 1)]
    posed = [f for f in dataset.frames if f.world_from_cam is not None]
    chosen = np.linspace(0, len(posed) - 1, min(len(posed), _CAMERAS), dtype=int)
    depths = []
    for frame in (posed[i] for i in chosen):
        assert frame.world_from_cam is not None
        inside = transform(inverse(frame.world_from_cam), points)
        inside = inside[inside[:, 2] > 0]
        pixels, valid = project(frame.camera, inside)
        size = np.array([frame.camera.width, frame.camera.height])
        seen = valid & (pixels >= -0.5).all(1) & (pixels <= size - 0.5).all(1)
        depths.append(inside[seen, 2])
    return _median(depths)


def _of_depth_maps(dataset: Dataset) -> float | None:
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), _DEPTH_MAPS), dtype=int)
    maps = [dataset[int(i)].depth for i in chosen]
    return _median([depth[depth > 0].astype(np.float64) for depth in maps if depth is not None])


def _of_pairs(pairs: Sequence[Pair]) -> float | None:
    depths = []
    for pair in pairs:
        z, parallax = two_view_depths(pair.rays, relative(pair))
        depths.append(z[0][(parallax > _PARALLAX) & (z > 0).all(0)])
    return _median(depths)


def _median(depths: Sequence[Float64Array]) -> float | None:
    found = np.concatenate(depths) if len(depths) else np.zeros(0)
    return float(np.median(found)) if len(found) else None

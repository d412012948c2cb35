"""Scene coordinate labels of image positions from depth and pose."""

from __future__ import annotations

import numpy as np

from reloc_core.geometry import transform, unproject
from reloc_core.types import Camera, DepthArray, Float64Array, Query


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

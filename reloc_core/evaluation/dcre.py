"""Dense correspondence reprojection error: how far pixels move when the pose is wrong.

Every pixel with measured depth is lifted with the true pose and projected with the estimated one; the
error is the distance between the two pixels. Unlike metres and degrees it weighs both by what they do to
the image, at the depth of this very scene.

Sources: Wald, Sattler, Golodetz, Cavallari, Tombari, "Beyond Controlled Environments", ECCV 2020; the
limits of depth (0.3 m to 10 m) and the mean and maximum in pixels follow the evaluation code of
Brachmann et al., "On the Limits of Pseudo Ground Truth", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from reloc_core.geometry import inverse, lift, project, transform
from reloc_core.interfaces import Dataset
from reloc_core.types import Camera, DepthArray, Float64Array, FloatArray

NEAREST, FARTHEST = 0.3, 10.0
"""Depths that count, metres."""


def dcre(
    camera: Camera,
    depth: DepthArray,
    estimated: FloatArray,
    truth: FloatArray,
    step: int = 1,
) -> tuple[float, float]:
    """Mean and maximum error of one image in pixels.

    Args:
        camera: intrinsics of the image and its depth map.
        depth: (height, width) metres, 0 where unknown.
        estimated: `world_from_cam` (4, 4).
        truth: `world_from_cam` (4, 4).
        step: use every n-th row and column.

    Returns:
        (mean, maximum); both inf where a pixel falls behind the estimated camera, NaN where no pixel
        has a usable depth.
    """
    v, u = np.mgrid[0 : depth.shape[0] : step, 0 : depth.shape[1] : step]
    z = np.asarray(depth[::step, ::step], np.float64)
    usable = (z > NEAREST) & (z < FARTHEST)
    if not usable.any():
        return np.nan, np.nan
    pixels = np.stack([u[usable], v[usable]], -1).astype(np.float64)
    points = lift(camera, pixels, z[usable])
    moved, front = project(camera, transform(inverse(estimated) @ np.asarray(truth), points))
    if not front.all():
        return np.inf, np.inf
    error = np.linalg.norm(moved - pixels, axis=1)
    return float(error.mean()), float(error.max())


def dcre_of_all(
    dataset: Dataset,
    estimates: Mapping[str, Mapping[str, Float64Array]],
    step: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Float64Array]:
    """Errors of several methods, reading every depth map once.

    Args:
        dataset: with depth and ground truth.
        estimates: `world_from_cam` by image, by method.
        step: use every n-th row and column.
        advance: called after every image.

    Returns:
        (N, 2) mean and maximum in pixels by method, in the dataset's order of posed frames; inf where
        the method has no pose.
    """
    rows: dict[str, list[tuple[float, float]]] = {label: [] for label in estimates}
    for index, frame in enumerate(dataset.frames):
        if frame.world_from_cam is None:
            continue
        depth = dataset[index].depth
        for label, poses in estimates.items():
            pose = poses.get(frame.name)
            if pose is None:
                rows[label].append((np.inf, np.inf))
            elif depth is None:
                rows[label].append((np.nan, np.nan))
            else:
                rows[label].append(dcre(frame.camera, depth, pose, frame.world_from_cam, step))
        advance()
    return {label: np.array(errors).reshape(-1, 2) for label, errors in rows.items()}

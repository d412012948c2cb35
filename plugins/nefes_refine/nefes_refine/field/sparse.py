"""The extent of a scene without depth images: key points triangulated with the known poses."""

from __future__ import annotations

import numpy as np

from nefes_refine.config import ViewConfig
from nefes_refine.field.views import make_view
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import inverse, project, unproject
from reloc_core.interfaces import Dataset, Run
from reloc_core.types import Camera, Float64Array

_IMAGES, _NEIGHBOURS, _KEYPOINTS = 60, 4, 512
_MIN_SIMILARITY = 0.8
_MAX_ERROR = 3.0  # px
_MIN_PARALLAX = 1.5  # degrees


def triangulated_points(
    dataset: Dataset, indices: np.ndarray, config: ViewConfig, run: Run
) -> Float64Array:
    """Scene points (M, 3) seen by at least two of the images.

    Args:
        dataset: posed images.
        indices: (N,) of which at most sixty are used, evenly spread.
        config: working resolution.
        run: for progress.
    """
    chosen = indices[np.unique(np.linspace(0, len(indices) - 1, _IMAGES).round().astype(int))]
    detector = KeypointDetector(config.resolution)
    poses = np.stack([dataset.frames[int(i)].world_from_cam for i in chosen])  # type: ignore[misc]
    cameras, pixels, descriptors = [], [], []
    with run.progress("Measuring the scene", len(chosen)) as progress:
        for index in chosen:
            view = make_view(dataset[int(index)], config)
            (found,) = detector.detect([view.image], _KEYPOINTS)
            cameras.append(view.camera)
            pixels.append(found.pixels)
            descriptors.append(found.descriptors.numpy())
            progress.advance()
    points = [np.zeros((0, 3))]
    for i, j in _pairs(poses):
        similarity = descriptors[i] @ descriptors[j].T
        if not similarity.size:
            continue
        forward, backward = similarity.argmax(1), similarity.argmax(0)
        first = np.flatnonzero(
            (backward[forward] == np.arange(len(forward))) & (similarity.max(1) > _MIN_SIMILARITY)
        )
        points.append(
            _triangulate(
                (cameras[i], cameras[j]), (poses[i], poses[j]),
                (pixels[i][first], pixels[j][forward[first]]),
            )
        )  # fmt: skip
    return np.concatenate(points)


def _pairs(poses: Float64Array) -> list[tuple[int, int]]:
    """Pairs of images that look into similar directions from different places."""
    centers, axes = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    spread = np.median(distance) + 1e-12
    usable = (axes @ axes.T > np.cos(np.radians(45))) & (distance > 0.05 * spread)
    cost = np.where(usable, distance, np.inf)
    result = set()
    for i in range(len(poses)):
        for j in np.argsort(cost[i])[:_NEIGHBOURS]:
            if np.isfinite(cost[i, j]):
                result.add((min(i, int(j)), max(i, int(j))))
    return sorted(result)


def _triangulate(
    cameras: tuple[Camera, Camera],
    poses: tuple[Float64Array, Float64Array],
    pixels: tuple[Float64Array, Float64Array],
) -> Float64Array:
    """Midpoints (M, 3) of the viewing rays of matched pixels that agree with both images."""
    rays = [
        unproject(camera, pixel) @ pose[:3, :3].T
        for camera, pixel, pose in zip(cameras, pixels, poses, strict=True)
    ]
    a, b = (r / np.linalg.norm(r, axis=-1, keepdims=True) for r in rays)
    base = poses[1][:3, 3] - poses[0][:3, 3]
    cosine = (a * b).sum(-1)
    wide = cosine < np.cos(np.radians(_MIN_PARALLAX))
    scale = np.where(wide, 1 - cosine**2, 1)
    along_a, along_b = a @ base, b @ base
    s, t = (along_a - cosine * along_b) / scale, (cosine * along_a - along_b) / scale
    points = (poses[0][:3, 3] + s[:, None] * a + poses[1][:3, 3] + t[:, None] * b) / 2
    good = wide & (s > 0) & (t > 0)
    for camera, pixel, pose in zip(cameras, pixels, poses, strict=True):
        moved = inverse(pose)
        seen, front = project(camera, points @ moved[:3, :3].T + moved[:3, 3])
        error = np.linalg.norm(np.where(front[:, None], seen, np.inf) - pixel, axis=-1)
        good &= error < _MAX_ERROR
    result: Float64Array = points[good]
    return result

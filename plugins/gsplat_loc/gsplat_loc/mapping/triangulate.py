"""Scene points from XFeat matches between posed images, where neither depth nor an SfM model is there."""

from __future__ import annotations

import numpy as np
import torch

from gsplat_loc.views import Views, spread
from reloc_core.errors import DataError
from reloc_core.features.keypoints import KeypointDetector, Keypoints
from reloc_core.geometry import unproject
from reloc_core.interfaces import Dataset, Run
from reloc_core.types import Camera, Float64Array

_IMAGES, _KEYPOINTS, _RESOLUTION = 150, 1024, 480
_PARTNERS = 4
_MIN_SIMILARITY = 0.75
_MAX_ERROR_PX = 2.0
_MIN_PARALLAX = np.radians(1.5)
_MAX_TURN = np.cos(np.radians(50))


def triangulated_points(
    dataset: Dataset, views: Views, run: Run
) -> tuple[Float64Array, np.ndarray]:
    """Points (N, 3) and colours (N, 3) uint8 of matched key points.

    Raises:
        DataError: fewer than two images.
    """
    frames = views.frames[spread(len(views), _IMAGES)]
    if len(frames) < 2:
        raise DataError(f"{dataset.name} has {len(frames)} image; triangulation needs at least 2.")
    detector = KeypointDetector(_RESOLUTION).to(run.runtime.device)
    found: list[Keypoints] = []
    rays, colors = [], []
    poses = np.stack([dataset.frames[int(f)].world_from_cam for f in frames])  # type: ignore[arg-type]
    cameras: list[Camera] = []
    with run.progress("Describing images", len(frames)) as progress:
        for number, frame in enumerate(frames):
            query = dataset[int(frame)]
            keypoints = detector.detect([query.image], _KEYPOINTS)[0]
            found.append(keypoints)
            direction = unproject(query.camera, keypoints.pixels) @ poses[number, :3, :3].T
            rays.append(direction / np.linalg.norm(direction, axis=1, keepdims=True))
            pixel = np.rint(keypoints.pixels).astype(int)
            colors.append(query.image[pixel[:, 1].clip(0, query.camera.height - 1),
                                      pixel[:, 0].clip(0, query.camera.width - 1)])  # fmt: skip
            cameras.append(query.camera)
            progress.advance()
    points, rgb = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)]
    pairs = partners(poses)
    with run.progress("Matching images", len(pairs)) as progress:
        for i, j in pairs:
            first, second = mutual_matches(found[i].descriptors, found[j].descriptors)
            scale = min(cameras[i].width, cameras[i].height) / _RESOLUTION
            place, good = two_view_points(
                poses[i, :3, 3], rays[i][first], poses[j, :3, 3], rays[j][second],
                _MAX_ERROR_PX * max(scale, 1e-3) / cameras[i].fx,
            )  # fmt: skip
            points.append(place[good])
            rgb.append(colors[i][first[good]])
            progress.advance()
    return np.concatenate(points), np.concatenate(rgb)


def partners(poses: Float64Array) -> list[tuple[int, int]]:
    """Pairs that look the same way from different places: nearest beyond a short baseline."""
    centers, directions = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(centers[:, None] - centers, axis=2)
    spread_of = np.median(distance[distance > 0]) if (distance > 0).any() else 1.0
    usable = (directions @ directions.T > _MAX_TURN) & (distance > 0.1 * spread_of)
    result = set()
    for i, row in enumerate(np.where(usable, distance, np.inf)):
        for j in np.argsort(row, kind="stable")[:_PARTNERS]:
            if np.isfinite(row[j]):
                result.add((min(i, int(j)), max(i, int(j))))
    return sorted(result)


@torch.inference_mode()
def mutual_matches(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Indices of mutually nearest descriptors above the similarity threshold."""
    if not len(a) or not len(b):
        return np.zeros(0, int), np.zeros(0, int)
    similarity = (a @ b.T).cpu().numpy()
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    index = np.arange(len(similarity))
    kept = (backward[forward] == index) & (similarity[index, forward] > _MIN_SIMILARITY)
    return index[kept], forward[kept]


def two_view_points(
    center_a: Float64Array,
    rays_a: Float64Array,
    center_b: Float64Array,
    rays_b: Float64Array,
    max_angle: float,
) -> tuple[Float64Array, np.ndarray]:
    """Midpoints of pairs of rays, and which of them both rays see.

    Args:
        center_a: (3,).
        rays_a: (N, 3) unit.
        center_b: (3,).
        rays_b: (N, 3) unit.
        max_angle: largest angle, radians, between a ray and the direction of its point.
    """
    baseline = center_b - center_a
    cosine = np.einsum("ni,ni->n", rays_a, rays_b)
    determinant = np.maximum(1 - cosine**2, 1e-12)
    along_a, along_b = rays_a @ baseline, rays_b @ baseline
    s = (along_a - cosine * along_b) / determinant
    t = (cosine * along_a - along_b) / determinant
    at_a, at_b = center_a + s[:, None] * rays_a, center_b + t[:, None] * rays_b
    gap = np.linalg.norm(at_a - at_b, axis=1) / 2
    good = (s > 0) & (t > 0) & (np.arccos(np.clip(cosine, -1, 1)) > _MIN_PARALLAX)
    good &= gap < max_angle * np.minimum(s, t)
    return (at_a + at_b) / 2, good

"""Two-view checks: SIFT matches between frames and how well poses and focal lengths explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from reloc_core.geometry import OPENCV_FROM_OPENGL, inverse, skew, unproject
from reloc_core.interfaces import Dataset
from reloc_core.mapping.matching import mutual_matches
from reloc_core.mapping.triangulation import two_view_depths
from reloc_core.types import Float64Array, FloatArray, ImageArray, Query

_MAX_SIDE = 800
_FEATURES = 2500
_MIN_MATCHES = 40
_RATIO = 0.8
_MIN_FLOW = 0.02  # of the image width: less motion says nothing about the poses
_GAPS = (24, 12, 6, 3, 1)

CONVENTIONS: Mapping[str, str] = {
    "as given": "",
    "world-to-camera": "Invert the matrices: poses must be camera-to-world.",
    "OpenGL axes": "Negate the second and third column of the matrices: camera axes must be OpenCV's "
    "(x right, y down, z forward).",
    "world-to-camera with OpenGL axes": "Invert the matrices, then negate their second and third "
    "column.",
}
"""What pose files may hold by mistake, and what to do then."""


def reinterpret(poses: Float64Array, convention: str) -> Float64Array:
    """Poses (..., 4, 4) as world_from_cam, if they were given in a convention of `CONVENTIONS`."""
    if convention.startswith("world-to-camera"):
        poses = inverse(poses)
    return poses @ OPENCV_FROM_OPENGL if convention.endswith("OpenGL axes") else poses


@dataclass(frozen=True)
class Pair:
    """Matches between two frames that a fundamental matrix supports.

    Attributes:
        first: the first query.
        second: the second query.
        pixels: (2, N, 2) matched pixels.
        rays: (2, N, 3) their viewing directions with z = 1.
    """

    first: Query
    second: Query
    pixels: Float64Array
    rays: Float64Array

    def poses(self, convention: str = "as given") -> Float64Array:
        """(2, 4, 4) world_from_cam under a convention."""
        assert self.first.world_from_cam is not None
        assert self.second.world_from_cam is not None
        both = np.stack([self.first.world_from_cam, self.second.world_from_cam])
        return reinterpret(both, convention)


@dataclass
class Matcher:
    """SIFT matching of a dataset's frames, with features kept per frame."""

    dataset: Dataset
    _features: dict[int, tuple[Query, Float64Array, FloatArray]] = field(default_factory=dict)

    def features(self, index: int) -> tuple[Query, Float64Array, FloatArray]:
        """The frame, its keypoints (N, 2) in pixels and unit descriptors (N, 128)."""
        if index not in self._features:
            query = self.dataset[index]
            keypoints, descriptors = _sift(query.image)
            self._features[index] = (query, keypoints, descriptors)
        return self._features[index]

    def pair(self, first: int, second: int, other: Matcher | None = None) -> Pair | None:
        """Match two frames (the second may be another dataset's); None with too few matches."""
        query_a, points_a, descriptors_a = self.features(first)
        query_b, points_b, descriptors_b = (other or self).features(second)
        if min(len(points_a), len(points_b)) < _MIN_MATCHES:
            return None
        ours, theirs, _ = mutual_matches(descriptors_a, descriptors_b, ratio=_RATIO)
        if len(ours) < _MIN_MATCHES:
            return None
        a, b = points_a[ours], points_b[theirs]
        rays = np.stack([unproject(query_a.camera, a), unproject(query_b.camera, b)])
        finite = np.isfinite(rays).all((0, 2))
        if finite.sum() < _MIN_MATCHES:
            return None
        a, b, rays = a[finite], b[finite], rays[:, finite]
        scale = np.array([query_a.camera.fx, query_b.camera.fx])[:, None, None]
        ideal = rays[:, :, :2] * scale
        cv2.setRNGSeed(1)
        _, mask = cv2.findFundamentalMat(ideal[0], ideal[1], cv2.FM_RANSAC, 1.5, 0.999, 2000)
        if mask is None or mask.sum() < _MIN_MATCHES:
            return None
        keep = mask.ravel() > 0
        return Pair(query_a, query_b, np.stack([a[keep], b[keep]]), rays[:, keep])

    def neighbours(self, count: int) -> list[Pair]:
        """Up to `count` pairs of posed frames with visible motion, spread over the dataset."""
        frames = self.dataset.frames
        posed = [i for i, f in enumerate(frames) if f.world_from_cam is not None]
        pairs = []
        for k in range(min(count, len(posed) - 1)):
            start = k * (len(posed) - 1) // min(count, len(posed) - 1)
            for gap in _GAPS:
                if start + gap >= len(posed):
                    continue
                a, b = posed[start], posed[start + gap]
                if frames[a].sequence != frames[b].sequence:
                    continue
                pair = self.pair(a, b)
                if pair is not None:
                    flow = np.median(np.linalg.norm(pair.pixels[1] - pair.pixels[0], axis=1))
                    if flow > _MIN_FLOW * frames[a].camera.width:
                        pairs.append(pair)
                    break
        return pairs


def _sift(image: ImageArray) -> tuple[Float64Array, FloatArray]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = min(_MAX_SIDE / max(grey.shape), 1.0)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    keypoints, descriptors = cv2.SIFT.create(
        _FEATURES, enable_precise_upscale=True
    ).detectAndCompute(grey, None)
    if not keypoints:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    points = np.array([k.pt for k in keypoints], np.float64)
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    unit = np.asarray(descriptors / np.maximum(lengths, 1e-9), np.float32)
    return (points + 0.5) / scale - 0.5, unit


def relative(pair: Pair, convention: str = "as given") -> Float64Array:
    """second_from_first (4, 4)."""
    poses = pair.poses(convention)
    return np.asarray(inverse(poses[1]) @ poses[0])


def sampson(pair: Pair, second_from_first: Float64Array, focal_factor: float = 1.0) -> Float64Array:
    """First-order epipolar error of the matches in pixels, (N,).

    Args:
        pair: matches.
        second_from_first: (4, 4); only the direction of the translation matters.
        focal_factor: multiplies both cameras' focal lengths.

    Source: Hartley and Zisserman, Multiple View Geometry, 2nd edition, 11.4.3.
    """
    essential = skew(second_from_first[:3, 3]) @ second_from_first[:3, :3]
    rays = pair.rays.copy()
    rays[:, :, :2] /= focal_factor
    line_b, line_a = rays[0] @ essential.T, rays[1] @ essential
    residual = (rays[1] * line_b).sum(1)
    gradient = (line_a[:, :2] ** 2).sum(1) + (line_b[:, :2] ** 2).sum(1)
    focal = 0.5 * (pair.first.camera.fx + pair.second.camera.fx) * focal_factor
    return np.asarray(focal * np.abs(residual) / np.sqrt(np.maximum(gradient, 1e-18)))


def convention_errors(pairs: Sequence[Pair]) -> dict[str, float]:
    """Median epipolar error in pixels over the pairs for each of `CONVENTIONS`.

    The epipolar error ignores the sign of the translation; a convention that puts most of the matched
    points behind the cameras is charged double.
    """
    result = {}
    for convention in CONVENTIONS:
        errors = []
        for pair in pairs:
            motion = relative(pair, convention)
            error = float(np.median(sampson(pair, motion)))
            depths, parallax = two_view_depths(pair.rays, motion)
            telling = parallax > np.radians(0.5)
            behind = (
                telling.sum() >= 20 and ((depths > 0).all(0) & telling).sum() < telling.sum() / 2
            )
            errors.append(2 * error if behind else error)
        result[convention] = float(np.median(errors))
    return result


def focal_errors(pairs: Sequence[Pair], factors: Sequence[float]) -> list[float]:
    """Median epipolar error in pixels over the pairs for each factor of the focal length."""
    return [
        float(np.median([np.median(sampson(p, relative(p), factor)) for p in pairs]))
        for factor in factors
    ]

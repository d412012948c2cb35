"""Tracked points whose distance is known: how the camera moved over many frames.

Flow between neighbouring frames adds up its errors; points followed by Lucas and Kanade's method from
one anchor frame drift an order of magnitude less over ten frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from reloc_core.geometry import inverse, pose_minus, transform, unproject
from reloc_core.interfaces import Runtime
from reloc_core.mapping.views import working_grey
from reloc_core.refiners.motion_fit import Fit, fit_motion
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Camera, Correspondences, Float64Array, FloatArray, ImageArray

_WINDOW = {"winSize": (15, 15), "maxLevel": 3}
_ROUND_TRIP = 0.4  # pixels
_QUALITY, _SPACING = 0.005, 6
_SHARP = 0.1
CONTRAST = 4.0
"""Grey levels; the standard deviation of a picture that shows something."""
_MOST_SAMPLES = 500
_FEWEST_FOLLOWED, _FEWEST_STARTED = 20, 40
_LEAST_KEPT = 0.3  # of the points, from one frame to the next: with less the view has changed
_AROUND, _RADIUS = 9, 12.0  # neighbours, pixels
_CLEARLY_BETTER = 0.99  # of the costs of two fits
_SAME_PIXELS = 2.0


@dataclass(frozen=True)
class Motion:
    """How the camera moved since the last frame whose motion was seen.

    Attributes:
        last_from_cam: (4, 4).
        covariance: (6, 6) in the tangent of `reloc_core.types`, of the pose relative to the anchor.
    """

    last_from_cam: Float64Array
    covariance: Float64Array


class PointTracks:
    """Points of an anchor frame, followed from frame to frame.

    A frame in which they cannot be found leaves them as they are: after a frame that shows nothing they
    are looked for where they were last seen.

    Args:
        count: points at most.
        resolution: shorter side in pixels of the images that they are followed in.

    Attributes:
        number: tells one set of points from the next.
        anchor_from_last: (4, 4) of the last frame that they were followed into.
        covariance: (6, 6) of that, of independent tracking errors.
    """

    def __init__(self, count: int, resolution: int) -> None:
        self.count, self.resolution = count, resolution
        # The localization has checked the focal length; points of one plane cannot. Where few points
        # agree they were not followed, however long one searches.
        self.solver = PnpSolver(PnpConfig(verify_focal=False, max_iterations=_MOST_SAMPLES))
        self.number = 0
        self.reset()

    def reset(self) -> None:
        """Forget all points."""
        self.current: Any = np.zeros((0, 1, 2), np.float32)
        self.points: Float64Array = np.zeros((0, 3))
        self.world_from_anchor: Float64Array = np.eye(4)
        self.anchor_from_last: Float64Array = np.eye(4)
        self.covariance: Float64Array = np.zeros((6, 6))
        self.number += 1
        self.last_motion: Float64Array = np.eye(4)
        self.started, self.age, self.sharpness = 0, 0, 0.0
        self.grey: ImageArray | None = None

    @property
    def share(self) -> float:
        """Of the anchor's points, those that are still followed."""
        return len(self.points) / max(self.started, 1)

    def scaled(self, image: ImageArray) -> ImageArray:
        """Grey picture (h, w) uint8 of an RGB image at the tracks' resolution."""
        return working_grey(image, self.resolution, enlarge=False)[0]

    def shows_something(self, grey: ImageArray) -> bool:
        """Whether a picture has corners about as sharp as those of the anchor."""
        corners: Any = cv2.goodFeaturesToTrack(grey, self.count, _QUALITY, _SPACING)
        if corners is None:
            return False
        sharp = _sharpness(grey, corners[:, 0]) > _SHARP * self.sharpness
        return int(sharp.sum()) >= _FEWEST_STARTED

    def follow(
        self, grey: ImageArray, camera: Camera, runtime: Runtime,
        measured: Float64Array | None = None,
    ) -> Motion | None:  # fmt: skip
        """Follow the points into the next frame; None when they are not found there.

        Args:
            grey: of `scaled`.
            camera: intrinsics of the whole image.
            runtime: for the solver.
            measured: (4, 4) the frame's pose by its evidence, one more start for the motion.
        """
        before = self.grey
        if before is None or len(self.points) < _FEWEST_FOLLOWED or before.shape != grey.shape:
            return None
        moved, found, _ = cv2.calcOpticalFlowPyrLK(before, grey, self.current, None, **_WINDOW)  # type: ignore[call-overload]
        back, again, _ = cv2.calcOpticalFlowPyrLK(grey, before, moved, None, **_WINDOW)  # type: ignore[call-overload]
        trip = np.linalg.norm((back - self.current)[:, 0], axis=1)
        kept = (found[:, 0] > 0) & (again[:, 0] > 0) & (trip < _ROUND_TRIP)
        points, pixels = self.points[kept], original_pixels(moved[kept, 0], grey, camera)
        if len(points) < max(_FEWEST_FOLLOWED, _LEAST_KEPT * len(self.points)):
            return None
        matches = Correspondences(pixels, points, kind="sparse")
        solved = self.solver.solve(matches, camera, runtime)
        if solved.world_from_cam is None or solved.num_inliers < _FEWEST_FOLLOWED:
            return None
        starts = [self.anchor_from_last @ self.last_motion, solved.world_from_cam]
        if measured is not None:
            starts.append(inverse(self.world_from_anchor) @ measured)
        fit = _best_fit(starts, points, pixels, camera)
        if fit is None:
            return None
        self.current, self.points, self.grey = moved[kept], points, grey
        self.age += 1
        self.last_motion = inverse(self.anchor_from_last) @ fit.anchor_from_cam
        self.anchor_from_last, self.covariance = fit.anchor_from_cam, fit.covariance
        return Motion(self.last_motion, fit.covariance)

    def start(
        self, grey: ImageArray, camera: Camera, world_from_cam: Float64Array,
        pixels: FloatArray, points: FloatArray,
    ) -> bool:  # fmt: skip
        """Make a frame the anchor, if enough of it is known.

        Args:
            grey: of `scaled`.
            camera: intrinsics of the whole image.
            world_from_cam: its pose, which the points agree with.
            pixels: (N, 2) of the whole image.
            points: (N, 3) what is seen there, in the world.
        """
        if grey.std() < CONTRAST or not len(points):
            return False
        corners: Any = cv2.goodFeaturesToTrack(grey, self.count, _QUALITY, _SPACING)
        if corners is None:
            return False
        depth = transform(inverse(world_from_cam), points)[:, 2]
        front = depth > 0
        places = scaled_pixels(pixels[front], grey, camera)
        found = nearby(places, depth[front], corners[:, 0].astype(np.float64))
        usable = np.isfinite(found)
        if usable.sum() < _FEWEST_STARTED:
            return False
        seen = original_pixels(corners[usable, 0], grey, camera)
        self.current = corners[usable]
        self.points = unproject(camera, seen) * found[usable, None]
        self.started, self.age, self.grey = int(usable.sum()), 0, grey
        self.sharpness = float(np.median(_sharpness(grey, corners[usable, 0])))
        self.world_from_anchor, self.anchor_from_last = world_from_cam, np.eye(4)
        self.covariance = np.zeros((6, 6))
        self.number += 1
        return True


def _best_fit(
    starts: list[Float64Array], points: Float64Array, pixels: Float64Array, camera: Camera
) -> Fit | None:
    """Refine poses; the first one of which no other is clearly better."""
    rays = unproject(camera, pixels)
    with np.errstate(invalid="ignore", divide="ignore"):
        rays = rays[:, :2] / rays[:, 2:]
    # A strong distortion cannot be inverted everywhere.
    good = np.isfinite(rays).all(1)
    points, rays = points[good], rays[good]
    fits: list[Fit] = []
    for start in starts:
        # From where one has come out one comes there again.
        if any(_about_same(start, fit.anchor_from_cam, points, camera.fx) for fit in fits):
            continue
        fit = fit_motion(start, points, rays, camera.fx)
        if fit is not None:
            fits.append(fit)
    best = min((f.cost for f in fits), default=0.0)
    return next((f for f in fits if _CLEARLY_BETTER * f.cost <= best), None)


def _about_same(
    pose: Float64Array, other: Float64Array, points: Float64Array, focal: float
) -> bool:
    """Whether two poses show the points (N, 3) within two pixels, roughly."""
    moved = pose_minus(pose, other)
    depth = max(float(np.median(points[:, 2])), 1e-9)
    pixels = focal * (np.linalg.norm(moved[:3]) + np.linalg.norm(moved[3:]) / depth)
    return bool(pixels < _SAME_PIXELS)


def _sharpness(grey: ImageArray, pixels: np.ndarray) -> np.ndarray:
    """Shi and Tomasi's measure (N,) of corners at pixels (N, 2)."""
    x, y = np.rint(pixels).astype(np.int64).T
    return np.asarray(cv2.cornerMinEigenVal(grey, 3)[y, x])


def original_pixels(pixels: FloatArray, grey: ImageArray, camera: Camera) -> Float64Array:
    """Pixels (N, 2) of the scaled picture in the whole image."""
    scale = np.array([camera.width, camera.height]) / np.array(grey.shape[::-1])
    return np.asarray((pixels.astype(np.float64) + 0.5) * scale - 0.5)


def scaled_pixels(pixels: FloatArray, grey: ImageArray, camera: Camera) -> Float64Array:
    """Pixels (N, 2) of the whole image in the scaled picture."""
    scale = np.array([camera.width, camera.height]) / np.array(grey.shape[::-1])
    return np.asarray((pixels.astype(np.float64) + 0.5) / scale - 0.5)


def nearby(places: Float64Array, values: Float64Array, wanted: Float64Array) -> Float64Array:
    """Lower median (M,) of the values at the nearest places; NaN where none is within 12 pixels.

    Args:
        places: (N, 2).
        values: (N,).
        wanted: (M, 2).
    """
    result = np.full(len(wanted), np.nan)
    if not len(places):
        return result
    square, nearest = cv2.batchDistance(
        wanted.astype(np.float32), places.astype(np.float32), cv2.CV_32F, normType=cv2.NORM_L2SQR,
        K=min(_AROUND, len(places)),
    )  # fmt: skip
    near = square <= _RADIUS**2
    ordered = np.sort(np.where(near, values[nearest], np.inf), 1)
    known = near.sum(1)
    middle = np.maximum(known - 1, 0) // 2
    found = np.take_along_axis(ordered, middle[:, None], 1)[:, 0]
    return np.where(known > 0, found, np.nan)

"""Tracked points whose distance is known: how the camera moved over many frames.

Flow between neighbouring frames adds up its errors; points followed by Lucas and Kanade's method from
one anchor frame drift an order of magnitude less over ten frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from kfnet_temporal.grid import FeatureGrid
from kfnet_temporal.motion_fit import Fit, fit_motion
from reloc_core.geometry import inverse, transform, unproject
from reloc_core.interfaces import Runtime
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Camera, Correspondences, Float64Array, ImageArray

_WINDOW = {"winSize": (15, 15), "maxLevel": 3}
_ROUND_TRIP = 0.4  # pixels
_QUALITY, _SPACING = 0.005, 6
_FEWEST_FOLLOWED, _FEWEST_STARTED = 20, 40
_NEAREST = 0.05  # metres
_DEPTH_WINDOW = 1  # cells
_CLEARLY_BETTER = 0.99  # of the costs of two fits


@dataclass(frozen=True)
class Relative:
    """Pose of a frame relative to the anchor.

    Attributes:
        anchor_from_cam: (4, 4).
        covariance: (6, 6) in the tangent of `reloc_core.types`.
        last_from_cam: (4, 4) motion since the previous frame.
        pixels: (N, 2) followed points in the image.
        points: (N, 3) the same in the anchor's camera axes, metres.
    """

    anchor_from_cam: Float64Array
    covariance: Float64Array
    last_from_cam: Float64Array
    pixels: Float64Array
    points: Float64Array


class PointTracks:
    """Points of an anchor frame, followed from frame to frame.

    Args:
        count: points at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.solver = PnpSolver(PnpConfig())
        self.reset()

    def reset(self) -> None:
        """Forget all points."""
        self.current: Any = np.zeros((0, 1, 2), np.float32)
        self.points: Float64Array = np.zeros((0, 3))
        self.world_from_anchor: Float64Array = np.eye(4)
        self.anchor_from_last: Float64Array = np.eye(4)
        self.last_motion: Float64Array = np.eye(4)
        self.started, self.age = 0, 0
        self.grey: ImageArray | None = None

    @property
    def share(self) -> float:
        """Of the anchor's points, those that are still followed."""
        return len(self.points) / max(self.started, 1)

    def follow(
        self, grid: FeatureGrid, camera: Camera, runtime: Runtime,
        measured: Float64Array | None = None,
    ) -> Relative | None:  # fmt: skip
        """Follow the points into the next frame; None, and none left, when they are lost.

        Args:
            grid: the frame.
            camera: its intrinsics.
            runtime: for the solver.
            measured: (4, 4) its pose by the scene coordinates alone, one more start for the motion.
        """
        before, self.grey = self.grey, grid.grey
        if before is None or len(self.points) < _FEWEST_FOLLOWED or before.shape != grid.grey.shape:
            self.points = self.points[:0]
            return None
        moved, found, _ = cv2.calcOpticalFlowPyrLK(before, grid.grey, self.current, None, **_WINDOW)  # type: ignore[call-overload]
        back, again, _ = cv2.calcOpticalFlowPyrLK(grid.grey, before, moved, None, **_WINDOW)  # type: ignore[call-overload]
        trip = np.linalg.norm((back - self.current)[:, 0], axis=1)
        kept = (found[:, 0] > 0) & (again[:, 0] > 0) & (trip < _ROUND_TRIP)
        self.current, self.points = moved[kept], self.points[kept]
        self.age += 1
        pixels = original_pixels(self.current[:, 0], grid)
        solved = self.solver.solve(
            Correspondences(pixels, self.points, kind="sparse"), camera, runtime
        )
        if solved.world_from_cam is None or solved.num_inliers < _FEWEST_FOLLOWED:
            self.points = self.points[:0]
            return None
        starts = [self.anchor_from_last @ self.last_motion, solved.world_from_cam]
        if measured is not None:
            starts.append(inverse(self.world_from_anchor) @ measured)
        fit = self._fit(starts, pixels, camera)
        if fit is None:
            self.points = self.points[:0]
            return None
        self.last_motion = inverse(self.anchor_from_last) @ fit.anchor_from_cam
        self.anchor_from_last = fit.anchor_from_cam
        return Relative(fit.anchor_from_cam, fit.covariance, self.last_motion, pixels, self.points)

    def _fit(self, starts: list[Float64Array], pixels: Float64Array, camera: Camera) -> Fit | None:
        """Refine poses; the first one of which no other is clearly better."""
        rays = unproject(camera, pixels)
        with np.errstate(invalid="ignore", divide="ignore"):
            rays = rays[:, :2] / rays[:, 2:]
        # A strong distortion cannot be inverted everywhere.
        good = np.isfinite(rays).all(1)
        points, rays = self.points[good], rays[good]
        focal = float(camera.matrix[0, 0])
        fits = [f for f in (fit_motion(s, points, rays, focal) for s in starts) if f is not None]
        best = min((f.cost for f in fits), default=0.0)
        return next((f for f in fits if _CLEARLY_BETTER * f.cost <= best), None)

    def start(
        self, grid: FeatureGrid, camera: Camera, world_from_cam: Float64Array,
        points: Float64Array, known: np.ndarray,
    ) -> bool:  # fmt: skip
        """Make a frame the anchor, if enough of it is known.

        Args:
            grid: the frame.
            camera: its intrinsics.
            world_from_cam: its pose, which the scene coordinates agree with.
            points: (h * w, 3) scene coordinates of its cells.
            known: (h * w,) bool.
        """
        corners = cv2.goodFeaturesToTrack(grid.grey, self.count, _QUALITY, _SPACING)
        if corners is None:
            return False
        depth = transform(inverse(world_from_cam), points)[:, 2]
        depth = np.where(known & (depth > _NEAREST), depth, np.nan).reshape(grid.shape)
        pixels = original_pixels(corners[:, 0], grid)
        cells = grid.cells(pixels)
        found = smoothed(depth)[cells[:, 1], cells[:, 0]]
        usable = np.isfinite(found)
        if usable.sum() < _FEWEST_STARTED:
            return False
        self.current = corners[usable]
        self.points = unproject(camera, pixels[usable]) * found[usable, None]
        self.started, self.age, self.grey = int(usable.sum()), 0, grid.grey
        self.world_from_anchor, self.anchor_from_last = world_from_cam, np.eye(4)
        return True


def original_pixels(pixels: np.ndarray, grid: FeatureGrid) -> Float64Array:
    """Pixels (N, 2) of the scaled image in the original one."""
    return np.asarray((pixels.astype(np.float64) + 0.5) * grid.scale - 0.5)


def smoothed(depth: Float64Array) -> Float64Array:
    """Median over 3 x 3 cells of a map (h, w) with NaN where unknown; the lower one of an even number."""
    size = 2 * _DEPTH_WINDOW + 1
    padded = np.pad(depth, _DEPTH_WINDOW, constant_values=np.nan)
    patches = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    ordered = np.sort(patches.reshape(*depth.shape, size * size), -1)  # NaN last
    middle = np.maximum(np.isfinite(ordered).sum(-1) - 1, 0) // 2
    return np.asarray(np.take_along_axis(ordered, middle[..., None], -1)[..., 0])

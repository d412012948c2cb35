"""Key points of posed images as viewing rays: what every step after matching works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reloc_core.geometry import unproject
from reloc_core.types import Camera, Float64Array

FAR_PX = 1000.0
"""The error of an observation behind its camera, and the largest one reported."""

_PIECE = 200_000  # observations whose errors are computed at once


@dataclass(frozen=True)
class Observations:
    """M key points of N images.

    Attributes:
        images: (M,) image of each key point, ascending; key points of an image are consecutive rows.
        rays: (M, 3) unit directions in world axes; NaN where the lens model has none.
        centers: (N, 3) camera centres.
        pixel: (N,) angle of one pixel of each image, radians: turns angles into the pixels that
            thresholds are given in.
        depths: (M,) measured distance along the ray in scene units, NaN where there is none; or None.
        depth_noise: standard deviation of `depths` as a share of them.
    """

    images: np.ndarray
    rays: Float64Array
    centers: Float64Array
    pixel: Float64Array
    depths: Float64Array | None = None
    depth_noise: float = 0.02

    def __len__(self) -> int:
        return len(self.rays)

    @classmethod
    def of(
        cls,
        cameras: Sequence[Camera],
        world_from_cam: Float64Array,
        images: np.ndarray,
        pixels: Float64Array,
        depths: Float64Array | None = None,
        resolution: int = 0,
        depth_noise: float = 0.02,
    ) -> Observations:
        """Rays of key points.

        Args:
            cameras: of the N images.
            world_from_cam: (N, 4, 4).
            images: (M,) image of each key point, ascending.
            pixels: (M, 2) in pixels of the stored images.
            depths: (M,) measured depth along the optical axis, NaN or 0 where there is none; or None.
            resolution: shorter side in pixels of the images that thresholds are meant for, which is the
                detector's; 0 for the stored images.
            depth_noise: see the class.
        """
        rays, lengths = np.empty((len(pixels), 3)), np.empty(len(pixels))
        starts = np.searchsorted(images, np.arange(len(cameras) + 1))
        for i, camera in enumerate(cameras):
            rows = slice(starts[i], starts[i + 1])
            directions = unproject(camera, pixels[rows])
            lengths[rows] = np.linalg.norm(directions, axis=1)
            rays[rows] = directions @ world_from_cam[i, :3, :3].T / lengths[rows, None]
        if depths is not None:
            depths = np.where(depths > 0, depths * lengths, np.nan)
        pixel = np.array(
            [(min(c.width, c.height) / resolution if resolution else 1.0) / c.fx for c in cameras]
        )
        return cls(images, rays, world_from_cam[:, :3, 3].copy(), pixel, depths, depth_noise)

    def rows(self, image: int) -> slice:
        """Key points of an image."""
        first, last = np.searchsorted(self.images, [image, image + 1])
        return slice(int(first), int(last))

    def origins(self, rows: np.ndarray) -> Float64Array:
        """Camera centres (K, 3) of key points."""
        return np.asarray(self.centers[self.images[rows]], np.float64)

    def errors(self, points: Float64Array, rows: np.ndarray) -> Float64Array:
        """Angles in pixels (K,) between key points' rays and points (K, 3); `FAR_PX` behind the camera."""
        rays = self.rays[rows]
        offset = points - self.origins(rows)
        along = np.einsum("ni,ni->n", offset, rays)
        across = np.linalg.norm(offset - along[:, None] * rays, axis=1)
        error = across / np.maximum(along, 1e-12) / self.pixel[self.images[rows]]
        seen = (along > 0) & np.isfinite(error)
        return np.asarray(np.where(seen, np.minimum(error, FAR_PX), FAR_PX), np.float64)

    def errors_of(self, points: Float64Array, chosen: np.ndarray, rows: np.ndarray) -> Float64Array:
        """As `errors(points[chosen], rows)`, in pieces: what stays in memory is the result alone."""
        found = np.empty(len(rows))
        for begin in range(0, len(rows), _PIECE):
            piece = slice(begin, begin + _PIECE)
            found[piece] = self.errors(points[chosen[piece]], rows[piece])
        return found

    def epipolar_errors(self, first: np.ndarray, second: np.ndarray) -> Float64Array:
        """Angles in pixels (K,) of second key points' rays to the epipolar planes of the first ones."""
        normal = np.cross(self.rays[first], self.origins(second) - self.origins(first))
        # A vanishing normal means that the ray runs along the baseline: nothing to check.
        length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        sine = np.abs(np.einsum("ni,ni->n", normal, self.rays[second])) / length
        return np.asarray(sine / self.pixel[self.images[second]], np.float64)

"""Images without lens distortion, for methods that assume pinholes."""

from __future__ import annotations

from collections import OrderedDict

import cv2
import numpy as np

from reloc_core.geometry import project
from reloc_core.types import Camera, DepthArray, Float64Array, ImageArray

_CACHED = 4


def pinhole_of(camera: Camera) -> Camera:
    """The pinhole with the same size, focal lengths and principal point."""
    if camera.is_pinhole and camera.model in ("SIMPLE_PINHOLE", "PINHOLE"):
        return camera
    return Camera(
        "PINHOLE", camera.width, camera.height, (camera.fx, camera.fy, camera.cx, camera.cy)
    )


def sampling_positions(camera: Camera) -> Float64Array:
    """Where each pixel of the undistorted image lies in the distorted one, (height, width, 2)."""
    x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack(
        [(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x, np.float64)], -1
    )
    return project(camera, rays)[0]


class Undistorter:
    """Resamples images and depth maps; keeps the tables of the last few cameras."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Camera, tuple[DepthArray, DepthArray]] = OrderedDict()

    def __call__(
        self, camera: Camera, image: ImageArray, depth: DepthArray | None
    ) -> tuple[ImageArray, DepthArray | None]:
        """Undistort an image (bilinear) and its depth map (nearest); black and 0 where unseen.

        Args:
            camera: the lens of the stored image.
            image: (height, width, 3) uint8.
            depth: (height, width) float32 metres, or None. Depth is along the optical axis, so its
                values stay.
        """
        if camera.is_pinhole:
            return image, depth
        table = self._tables.pop(camera, None)  # several readers may share this object
        if table is None:
            positions = sampling_positions(camera).astype(np.float32)
            table = (positions[..., 0].copy(), positions[..., 1].copy())
        self._tables[camera] = table
        while len(self._tables) > _CACHED:
            self._tables.popitem(last=False)
        image = np.asarray(cv2.remap(image, *table, cv2.INTER_LINEAR), np.uint8)
        if depth is not None:
            depth = np.asarray(cv2.remap(depth, *table, cv2.INTER_NEAREST), np.float32)
        return image, depth

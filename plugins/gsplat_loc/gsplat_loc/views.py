"""Images as the field is trained and refined with them: small, undistorted, with their pinholes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from reloc_core.geometry import project
from reloc_core.interfaces import Dataset
from reloc_core.types import BoolArray, Camera, DepthArray, Float64Array, ImageArray, Query


def pinhole(camera: Camera, short_side: int, enlarge: bool = False) -> Camera:
    """The camera of an image resized to a shorter side of `short_side` pixels, without distortion.

    0 leaves the size as it is; smaller images are left so too, unless `enlarge`.
    """
    factor = short_side / min(camera.width, camera.height) if short_side else 1.0
    factor = factor if enlarge else min(factor, 1.0)
    scaled = camera.scaled(
        max(round(camera.width * factor), 8), max(round(camera.height * factor), 8)
    )
    return Camera(
        "PINHOLE", scaled.width, scaled.height, (scaled.fx, scaled.fy, scaled.cx, scaled.cy)
    )


@lru_cache(maxsize=16)
def _undistortion(camera: Camera, target: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each pixel of `target` lies in the distorted image resized to its size, and the mask."""
    resized = camera.scaled(target.width, target.height)
    y, x = np.mgrid[: target.height, : target.width].astype(np.float64)
    rays = np.stack([(x - target.cx) / target.fx, (y - target.cy) / target.fy, np.ones_like(x)], -1)
    pixels, _ = project(resized, rays)
    inside = (pixels >= -0.5).all(-1) & (pixels < [target.width - 0.5, target.height - 0.5]).all(-1)
    return pixels[..., 0].astype(np.float32), pixels[..., 1].astype(np.float32), inside


def resized(camera: Camera, target: Camera, image: ImageArray) -> tuple[ImageArray, BoolArray]:
    """An image as `target` would have taken it, and the mask of pixels that were seen."""
    size = (target.width, target.height)
    if (image.shape[1], image.shape[0]) != size:
        shrink = size[0] < image.shape[1]
        image = cv2.resize(
            image, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )
    if camera.is_pinhole:
        return image, np.ones(image.shape[:2], bool)
    map_x, map_y, inside = _undistortion(camera, target)
    image = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return image, inside


def resized_depth(camera: Camera, target: Camera, depth: DepthArray) -> DepthArray:
    """Depth of the pixel nearest to each pixel of `target`, 0 where unknown."""
    full = camera.scaled(target.width, target.height)
    if camera.is_pinhole:
        y, x = np.mgrid[: target.height, : target.width].astype(np.float64)
    else:
        map_x, map_y, _ = _undistortion(camera, target)
        x, y = map_x.astype(np.float64), map_y.astype(np.float64)
    column = np.rint((x + 0.5) * camera.width / full.width - 0.5).astype(int)
    row = np.rint((y + 0.5) * camera.height / full.height - 0.5).astype(int)
    inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    found = depth[row.clip(0, camera.height - 1), column.clip(0, camera.width - 1)]
    kept = inside & np.isfinite(found) & (found > 0)
    return np.where(kept, found, 0).astype(np.float32)


@dataclass(frozen=True)
class View:
    """One posed image.

    Attributes:
        camera: pinhole.
        world_from_cam: (4, 4).
        image: (H, W, 3) uint8.
        mask: (H, W) where the image has content, or None for everywhere.
        depth: (H, W) float32, 0 where unknown, or None.
    """

    camera: Camera
    world_from_cam: Float64Array
    image: ImageArray
    mask: BoolArray | None
    depth: DepthArray | None


def view_of(query: Query, short_side: int, world_from_cam: Float64Array) -> View:
    """The view of a query at a resolution."""
    target = pinhole(query.camera, short_side)
    image, inside = resized(query.camera, target, query.image)
    depth = None if query.depth is None else resized_depth(query.camera, target, query.depth)
    return View(target, world_from_cam, image, None if inside.all() else inside, depth)


def spread(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` things, evenly spread."""
    return np.unique(np.arange(min(count, most)) * count // max(min(count, most), 1))


class Views(Sequence[View]):
    """Views of chosen frames of a dataset, kept in memory as far as they fit.

    Args:
        dataset: posed.
        frames: indices.
        short_side: see `pinhole`.
        cache_mb: memory for views.
    """

    def __init__(
        self, dataset: Dataset, frames: np.ndarray, short_side: int, cache_mb: int
    ) -> None:
        self.dataset, self.frames, self.short_side = dataset, frames, short_side
        self._free = cache_mb * 1e6
        self._kept: dict[int, View] = {}

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def poses(self) -> Float64Array:
        """(N, 4, 4)."""
        every = self.dataset.frames
        return np.stack([every[int(i)].world_from_cam for i in self.frames])  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> View:  # type: ignore[override]
        if index in self._kept:
            return self._kept[index]
        query = self.dataset[int(self.frames[index])]
        assert query.world_from_cam is not None
        view = view_of(query, self.short_side, query.world_from_cam)
        size = view.image.nbytes + (0 if view.depth is None else view.depth.nbytes)
        if self._free >= size:
            self._free -= size
            self._kept[index] = view
        return view


def half(view: View) -> View:
    """The same view at half the resolution."""
    target = view.camera.scaled(view.camera.width // 2, view.camera.height // 2)
    image = cv2.resize(view.image, (target.width, target.height), interpolation=cv2.INTER_AREA)
    mask = None if view.mask is None else view.mask[::2, ::2][: target.height, : target.width]
    depth = None if view.depth is None else view.depth[::2, ::2][: target.height, : target.width]
    return View(target, view.world_from_cam, image, mask, depth)

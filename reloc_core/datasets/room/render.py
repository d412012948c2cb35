"""Ray caster for the room: exact depth, anti-aliased colour.

Colour is computed for 2x2 rays per pixel from mip-mapped textures in one atlas, depth with one ray
through each pixel centre.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from reloc_core.datasets.room.cast import Outlines, Target, cast, depth_of
from reloc_core.datasets.room.surfaces import Surface
from reloc_core.geometry import inverse
from reloc_core.types import Camera, DepthArray, Float64Array, FloatArray, ImageArray

_LEVELS = 8
_SHARPNESS = 0.35  # mip levels finer than one texel per ray; 2x2 rays average the rest
_ATLAS_WIDTH = 8192


@dataclass
class Atlas:
    """All textures and their mip levels in one image.

    Attributes:
        image: (H, W, 3) uint8.
        scale: (surfaces * levels, 2) float32, texels per unit of u and v.
        offset: (surfaces * levels, 2) float32, atlas position of u = v = 0.
        density: (surfaces,) texels per metre.
    """

    image: ImageArray
    scale: FloatArray
    offset: FloatArray
    density: Float64Array


def build_atlas(surfaces: list[Surface]) -> Atlas:
    """Pack textures and mip levels in rows of falling height, with a border of one texel."""
    levels: list[tuple[int, ImageArray]] = []
    density = []
    for i, surface in enumerate(surfaces):
        texture = surface.texture
        u, v = surface.extent
        density.append(np.sqrt(texture.shape[1] / u * texture.shape[0] / v))
        for level in range(_LEVELS):
            levels.append((i * _LEVELS + level, texture))
            h, w = (max((n + 1) // 2, 1) for n in texture.shape[:2])
            texture = np.asarray(
                cv2.resize(texture, (w, h), interpolation=cv2.INTER_AREA), np.uint8
            )
    order = sorted(levels, key=lambda item: -item[1].shape[0])
    places = {}
    x = y = row = 0
    for key, texture in order:
        h, w = texture.shape[0] + 2, texture.shape[1] + 2
        if x + w > _ATLAS_WIDTH:
            x, y, row = 0, y + row, 0
        places[key] = (x, y)
        row = max(row, h)
        x += w
    image = np.zeros((y + row, _ATLAS_WIDTH, 3), np.uint8)
    scale = np.empty((len(levels), 2), np.float32)
    offset = np.empty((len(levels), 2), np.float32)
    for key, texture in levels:
        x, y = places[key]
        h, w = texture.shape[:2]
        wrap = surfaces[key // _LEVELS].kind in ("sphere", "cylinder")
        padded = cv2.copyMakeBorder(texture, 1, 1, 0, 0, cv2.BORDER_REPLICATE)
        sides = cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
        image[y : y + h + 2, x : x + w + 2] = cv2.copyMakeBorder(padded, 0, 0, 1, 1, sides)
        scale[key], offset[key] = (w, h), (x + 0.5, y + 0.5)  # u = 0 is the outer edge of a texel
    return Atlas(image, scale, offset, np.array(density))


class Renderer:
    """Renders a fixed set of lit surfaces.

    Args:
        surfaces: with light baked in; must enclose the camera.
    """

    def __init__(self, surfaces: list[Surface]) -> None:
        self._surfaces = surfaces
        self._outlines = Outlines(surfaces)
        self._atlas = build_atlas(surfaces)
        self._flat = np.array([s.kind in ("quad", "disc") for s in surfaces])
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="render")

    def color(self, camera: Camera, world_from_cam: Float64Array) -> ImageArray:
        """Noise-free image, (height, width, 3) uint8 RGB.

        Args:
            camera: a pinhole camera.
            world_from_cam: (4, 4), inside the room.
        """
        seen = self._outlines.views(camera, world_from_cam, 2)
        tables = self._tables(camera, world_from_cam)
        cam_from_world = inverse(world_from_cam)
        bands = self._bands(camera, 2)

        def render(band: tuple[int, int]) -> ImageArray:
            target = cast(self._surfaces, camera, cam_from_world, seen, band, 2)
            return self._shade(target, tables)

        return np.concatenate(list(self._pool.map(render, bands)))

    def depth(self, camera: Camera, world_from_cam: Float64Array) -> DepthArray:
        """Depth along the optical axis at the pixel centres, (height, width) float32 metres.

        Args:
            camera: a pinhole camera.
            world_from_cam: (4, 4), inside the room.
        """
        seen = self._outlines.views(camera, world_from_cam, 1)
        cam_from_world = inverse(world_from_cam)

        def render(band: tuple[int, int]) -> DepthArray:
            return depth_of(cast(self._surfaces, camera, cam_from_world, seen, band, 1))

        return np.concatenate(list(self._pool.map(render, self._bands(camera, 1))))

    @staticmethod
    def _bands(camera: Camera, factor: int) -> list[tuple[int, int]]:
        """Rows of pixels per task: few enough that the buffers stay in the cache."""
        step = max(100_000 // (camera.width * factor * factor), 8)
        return [(y, min(y + step, camera.height)) for y in range(0, camera.height, step)]

    def _tables(self, camera: Camera, world_from_cam: Float64Array) -> FloatArray:
        """(surfaces,) factors k of the squared footprint k * z^3 * |ray| in texels."""
        eye = world_from_cam[:3, 3]
        offset = eye - self._outlines.origins
        distance = np.where(
            self._flat,
            np.abs((offset * self._outlines.normals).sum(1)),
            0.7 * np.linalg.norm(offset, axis=1),
        )
        spacing = self._atlas.density / (2 * camera.fx)
        return np.asarray(spacing**2 / np.maximum(distance, 1e-3), np.float32)

    def _shade(self, target: Target, factors: FloatArray) -> ImageArray:
        """Look the textures up and average 2x2 rays."""
        z = 1 / np.maximum(target.inverse_depth, np.float32(1e-3))
        length = np.sqrt(1 + target.x[None, :] ** 2 + target.y[:, None] ** 2)
        footprint = factors.take(target.index) * (z * z * z) * length
        # The exponent of x is floor(log2 x) + 1: level = round(log2(sqrt(footprint)) - sharpness).
        bias = np.float32(4.0 ** (0.5 - _SHARPNESS))
        level = (np.frexp(footprint * bias)[1] - 1) >> 1
        np.clip(level, 0, _LEVELS - 1, out=level)
        key = target.index * _LEVELS + level
        scale, offset = self._atlas.scale, self._atlas.offset
        at_x = scale[:, 0].take(key) * target.u + offset[:, 0].take(key)
        at_y = scale[:, 1].take(key) * target.v + offset[:, 1].take(key)
        image = cv2.remap(self._atlas.image, at_x, at_y, cv2.INTER_LINEAR)
        size = (image.shape[1] // 2, image.shape[0] // 2)
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)

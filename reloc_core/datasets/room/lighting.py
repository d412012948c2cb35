"""Baked light: two ceiling lamps, the window, and ambient light darkened in corners.

Light is computed on a coarse grid per surface and multiplied into the textures: low-frequency, soft,
and free at render time. Shadows of the lamps come from depth maps seen from them, ambient occlusion
from how much of a point's neighbourhood is filled with solids.
"""

from __future__ import annotations

import cv2
import numpy as np

from reloc_core.datasets.room.cast import Outlines, cast, depth_of
from reloc_core.datasets.room.furniture import LAMPS, ROOM_SIZE
from reloc_core.datasets.room.surfaces import Block, Model, Surface
from reloc_core.geometry import inverse, transform
from reloc_core.types import Camera, Float64Array, FloatArray

_CELL = 0.085  # metres between light samples
_VOXEL = 0.06
_AMBIENT = np.array([0.60, 0.61, 0.63])
_LAMP = np.array([1.06, 0.98, 0.84]) * 0.62
_SKY = np.array([0.72, 0.82, 1.0]) * 0.55
_SHADOW_MAP = Camera.pinhole(110, 640, 640)  # 142 degrees
_BIAS = 0.03  # metres a point may lie behind the shadow map's surface


def bake(model: Model) -> None:
    """Multiply the light into the textures of all surfaces that do not shine themselves."""
    lit = [s for s in model.surfaces if not s.emits]
    grids, points, normals = [], [], []
    for surface in lit:
        columns, rows = (int(np.clip(round(e / _CELL), 4, 90)) for e in surface.extent)
        u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        p, n = surface.points(u.ravel(), v.ravel())
        grids.append((rows, columns))
        points.append(p)
        normals.append(n)
    light = irradiance(np.concatenate(points), np.concatenate(normals), lit, model.blocks)
    first = 0
    for surface, (rows, columns) in zip(lit, grids, strict=True):
        grid = light[first : first + rows * columns].reshape(rows, columns, 3)
        first += rows * columns
        h, w = surface.texture.shape[:2]
        factor = cv2.resize(grid.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
        lit_texture = cv2.multiply(surface.texture, factor, dtype=cv2.CV_8U)
        surface.texture = np.asarray(lit_texture, np.uint8)


def irradiance(
    points: Float64Array, normals: Float64Array, surfaces: list[Surface], blocks: list[Block]
) -> Float64Array:
    """Light on surface points.

    Args:
        points: (N, 3) world.
        normals: (N, 3) unit.
        surfaces: what casts shadows of the lamps.
        blocks: solids that darken the ambient light.

    Returns:
        (N, 3) RGB factors of the albedo, about 0.2..1.3.
    """
    total = _AMBIENT * _openness(points, normals, blocks)[:, None]
    outlines = Outlines(surfaces)
    lamp_z = ROOM_SIZE[2] - 0.02
    spread = np.array([(0, 0), (-0.28, -0.2), (0.26, -0.24), (-0.22, 0.27), (0.25, 0.22)])
    for at in LAMPS:
        for offset in spread:
            source = np.array([*(np.array(at) + offset), lamp_z])
            total += (
                _LAMP * _direct(points, normals, source, (0, 0, -1), surfaces, outlines)[:, None]
            )
    for y, z in ((0.9, 1.25), (1.6, 1.25), (1.25, 1.55), (0.9, 1.85), (1.6, 1.85)):
        source = np.array([0.05, y, z])
        total += _SKY * _direct(points, normals, source, (1, 0, 0), surfaces, outlines)[:, None]
    return np.minimum(total, 1.3)


def _direct(
    points: Float64Array,
    normals: Float64Array,
    source: Float64Array,
    facing: tuple[int, int, int],
    surfaces: list[Surface],
    outlines: Outlines,
) -> Float64Array:
    """Light of one point of an area lamp that faces a direction, (N,)."""
    ray = source - points
    distance2 = np.maximum((ray**2).sum(1), 0.05)
    cosine = np.maximum((ray * normals).sum(1), 0) * np.maximum(-ray @ np.array(facing), 0)
    light = np.minimum(cosine / distance2**2, 0.8)
    world_from_lamp = np.eye(4)
    forward = np.array(facing, np.float64)
    right = np.array([0.0, 1.0, 0.0])
    world_from_lamp[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    world_from_lamp[:3, 3] = source
    lamp_from_world = inverse(world_from_lamp)
    seen = outlines.views(_SHADOW_MAP, world_from_lamp, 1)
    band = (0, _SHADOW_MAP.height)
    depth = depth_of(cast(surfaces, _SHADOW_MAP, lamp_from_world, seen, band, 1))
    local = transform(lamp_from_world, points + 0.01 * normals)
    z = np.maximum(local[:, 2], 1e-6)
    column = np.rint(_SHADOW_MAP.fx * local[:, 0] / z + _SHADOW_MAP.cx).clip(-1, 1e6).astype(int)
    row = np.rint(_SHADOW_MAP.fy * local[:, 1] / z + _SHADOW_MAP.cy).clip(-1, 1e6).astype(int)
    inside = (column >= 0) & (column < _SHADOW_MAP.width) & (row >= 0) & (row < _SHADOW_MAP.height)
    blocker = depth[row[inside], column[inside]]
    light[inside] *= z[inside] < np.where(blocker > 0, blocker, np.inf) + _BIAS
    return np.asarray(light)


def _openness(points: Float64Array, normals: Float64Array, blocks: list[Block]) -> Float64Array:
    """Share of ambient light that reaches points, (N,): 1 in the open, less in corners."""
    margin = 8
    shape = tuple(int(np.ceil(s / _VOXEL)) + 2 * margin for s in ROOM_SIZE)
    axes = [(np.arange(n) - margin + 0.5) * _VOXEL for n in shape]
    filled = np.ones(shape, np.float32)
    room = tuple(slice(margin, margin + int(s / _VOXEL)) for s in ROOM_SIZE)
    filled[room] = 0
    for block in blocks:
        reach = np.linalg.norm(block.half)
        cut = tuple(
            slice(*np.searchsorted(a, (c - reach, c + reach)))
            for a, c in zip(axes, block.center, strict=True)
        )
        x, y, z = np.meshgrid(
            *(a[s] - c for a, s, c in zip(axes, cut, block.center, strict=True)),
            indexing="ij",
            sparse=True,
        )
        if block.round:
            solid = x * x + y * y + z * z < block.half[0] ** 2
        else:
            c, s = np.cos(block.yaw), np.sin(block.yaw)
            hx, hy, hz = block.half
            solid = (abs(c * x + s * y) < hx) & (abs(c * y - s * x) < hy) & (abs(z) < hz)
        filled[cut] = np.maximum(filled[cut], solid)
    for radius in (3, 2):
        for axis in range(3):
            filled = _box_blur(filled, radius, axis)
    at = (points + 0.16 * normals) / _VOXEL + margin - 0.5
    share = _trilinear(filled, at)
    return np.asarray(np.clip(1.12 - 1.25 * share, 0.3, 1.0))


def _box_blur(grid: FloatArray, radius: int, axis: int) -> FloatArray:
    """Mean over 2 * radius + 1 voxels along an axis; the border is repeated."""
    widths = [(0, 0)] * 3
    widths[axis] = (radius + 1, radius)
    total = np.cumsum(np.pad(grid, widths, mode="edge"), axis, dtype=np.float64)
    n = grid.shape[axis]
    window = 2 * radius + 1
    high = np.take(total, np.arange(window, window + n), axis)
    low = np.take(total, np.arange(n), axis)
    return ((high - low) / window).astype(np.float32)


def _trilinear(grid: FloatArray, at: Float64Array) -> Float64Array:
    """Values (N,) of a grid at fractional voxel indices (N, 3)."""
    base = np.floor(at).astype(int).clip(0, np.array(grid.shape) - 2)
    part = np.clip(at - base, 0, 1)
    result = np.zeros(len(at))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, part, 1 - part), 1)
        i, j, k = (base + corner).T
        result += weight * grid[i, j, k]
    return result

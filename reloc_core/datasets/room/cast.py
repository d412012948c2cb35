"""Intersection of camera rays with the room's surfaces.

Each surface is intersected only with the rays inside its bounding rectangle on the image. For a plane
1/z is affine in the pixel, so a quad costs a few operations per ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reloc_core.datasets.room.surfaces import Surface
from reloc_core.geometry import inverse, transform
from reloc_core.types import BoolArray, Camera, DepthArray, Float64Array, FloatArray

_NEAR = 0.02


@dataclass
class View:
    """A surface as one camera sees it.

    Attributes:
        index: of the surface.
        box: x0, x1, y0, y1 of its bounding rectangle in rays.
        nearest: smallest distance of its hull, for sorting.
    """

    index: int
    box: tuple[int, int, int, int]
    nearest: float


class Target:
    """Buffers of a band of rows, filled surface by surface.

    Args:
        rays_x: (W,) x of the rays at z = 1.
        rays_y: (H,) y of the rays at z = 1.
        first_row: of the band, counted in rays.
    """

    def __init__(self, rays_x: FloatArray, rays_y: FloatArray, first_row: int) -> None:
        self.x, self.y, self.first_row = rays_x, rays_y, first_row
        shape = (len(rays_y), len(rays_x))
        self.inverse_depth = np.zeros(shape, np.float32)
        self.u = np.zeros(shape, np.float32)
        self.v = np.zeros(shape, np.float32)
        self.index = np.zeros(shape, np.int32)


class Outlines:
    """Hulls of a fixed set of surfaces, side by side, so that a camera looks at all of them at once.

    Args:
        surfaces: of the room.

    Attributes:
        origins: (surfaces, 3) of each.
        normals: (surfaces, 3) of quads and discs, 0 of round ones.
    """

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        flat = [s.kind in ("quad", "disc") for s in surfaces]
        self._groups = [
            (np.flatnonzero(np.array(flat) == kind), kind) for kind in (True, False) if kind in flat
        ]
        self._hulls = [
            np.stack([surfaces[int(i)].hull for i in group]) for group, _ in self._groups
        ]
        self._low = [hulls.min(1) for hulls in self._hulls]
        self._high = [hulls.max(1) for hulls in self._hulls]
        still = np.zeros(3)
        self.origins = np.array([s.origin for s in surfaces])
        self.normals = np.array(
            [s.normal if f else still for s, f in zip(surfaces, flat, strict=True)]
        )

    def views(self, camera: Camera, world_from_cam: Float64Array, factor: int) -> list[View]:
        """Surfaces that face the camera and meet its image, nearest first.

        Args:
            camera: a pinhole camera.
            world_from_cam: (4, 4).
            factor: rays per pixel along x and along y.
        """
        eye = world_from_cam[:3, 3]
        cam_from_world = inverse(world_from_cam)
        facing = ((eye - self.origins) * self.normals).sum(1) > 1e-4
        found = []
        for (group, flat), hulls, low, high in zip(
            self._groups, self._hulls, self._low, self._high, strict=True
        ):
            hull = transform(cam_from_world, hulls)
            front = hull[..., 2] > _NEAR
            seen = front.any(1) & (facing[group] if flat else True)
            boxes = _boxes(np.where(front[..., None], hull, 1.0), camera, factor)
            for i in np.flatnonzero(seen & ~front.all(1)):
                boxes[i] = _boxes(_before(hull[i], flat), camera, factor)
            met = seen & (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3])
            gap = np.maximum(np.maximum(low - eye, eye - high), 0)
            nearest = np.sqrt((gap**2).sum(1))
            found += [
                View(int(group[i]), tuple(boxes[i].tolist()), float(nearest[i]))
                for i in np.flatnonzero(met)
            ]
        return sorted(found, key=lambda view: (view.nearest, view.index))


def cast(
    surfaces: Sequence[Surface],
    camera: Camera,
    cam_from_world: Float64Array,
    seen: list[View],
    band: tuple[int, int],
    factor: int,
) -> Target:
    """Intersect the rays of the pixel rows band[0] <= y < band[1] with all surfaces.

    Args:
        surfaces: of the room.
        camera: a pinhole camera.
        cam_from_world: (4, 4).
        seen: of `Outlines.views`, with the same camera, pose and factor.
        band: first row and the row after the last.
        factor: rays per pixel along x and along y.
    """
    columns = (np.arange(camera.width * factor) + 0.5) / factor - 0.5
    rows = (np.arange(band[0] * factor, band[1] * factor) + 0.5) / factor - 0.5
    target = Target(
        ((columns - camera.cx) / camera.fx).astype(np.float32),
        ((rows - camera.cy) / camera.fy).astype(np.float32),
        band[0] * factor,
    )
    for view in seen:
        x0, x1, y0, y1 = view.box
        y0, y1 = y0 - target.first_row, y1 - target.first_row
        y0, y1 = max(y0, 0), min(y1, len(rows))
        if y0 >= y1:
            continue
        surface = surfaces[view.index]
        box = (slice(y0, y1), slice(x0, x1))
        if surface.kind in ("quad", "disc"):
            _cast_quad(target, box, surface, view.index, cam_from_world)
        else:
            _cast_round(target, box, surface, view.index, cam_from_world)
    return target


def depth_of(target: Target) -> DepthArray:
    """Depth along the optical axis, metres; 0 where nothing was hit."""
    hit = target.inverse_depth > 0
    depth = 1 / np.where(hit, target.inverse_depth, np.float32(1))
    return np.where(hit, depth, np.float32(0))


def _before(hull: Float64Array, polygon: bool) -> Float64Array:
    """Points (M, 3) of the part of a convex hull in camera axes that lies before the near plane.

    It is cut along the outline of a polygon, else along all connections.
    """
    n = len(hull)
    pairs = [(i, (i + 1) % n) for i in range(n)] if polygon else np.ndindex(n, n)
    cuts = []
    for i, j in pairs:
        a, b = hull[i], hull[j]
        if (a[2] > _NEAR) != (b[2] > _NEAR):
            cuts.append(a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2]))
    return np.concatenate([hull[hull[:, 2] > _NEAR], np.array(cuts).reshape(-1, 3)])


def _boxes(points: Float64Array, camera: Camera, factor: int) -> np.ndarray:
    """Rectangles x0, x1, y0, y1 of rays (..., 4) int64 that can hit what points (..., N, 3) span."""
    x = (camera.fx * points[..., 0] / points[..., 2] + camera.cx + 0.5) * factor
    y = (camera.fy * points[..., 1] / points[..., 2] + camera.cy + 0.5) * factor
    return np.stack(
        [
            np.maximum(np.floor(x.min(-1)), 0),
            np.minimum(np.ceil(x.max(-1)), camera.width * factor),
            np.maximum(np.floor(y.min(-1)), 0),
            np.minimum(np.ceil(y.max(-1)), camera.height * factor),
        ],
        -1,
    ).astype(np.int64)


def _cast_quad(
    target: Target,
    box: tuple[slice, slice],
    surface: Surface,
    index: int,
    cam_from_world: Float64Array,
) -> None:
    """Intersect rays with a quad or disc where it is nearer than what is there."""
    rotation = cam_from_world[:3, :3]
    origin = transform(cam_from_world, surface.origin)
    normal = rotation @ surface.normal
    plane = (normal / (normal @ origin)).astype(np.float32)  # plane . ray = 1/z
    x, y = target.x[box[1]], target.y[box[0]]
    inverse_depth = (plane[0] * x)[None, :] + (plane[1] * y + plane[2])[:, None]
    visible = inverse_depth > target.inverse_depth[box]
    if not visible.any():
        return
    z = 1 / np.where(visible, inverse_depth, np.float32(1))
    coordinates = []
    for edge in (surface.edge_u, surface.edge_v):
        axis = rotation @ edge / (edge @ edge)
        a, b, c = axis.astype(np.float32)
        along = ((a * x)[None, :] + (b * y + c)[:, None]) * z
        along -= np.float32(axis @ origin)
        coordinates.append(along)
    u, v = coordinates
    if surface.kind == "disc":
        visible &= (u - np.float32(0.5)) ** 2 + (v - np.float32(0.5)) ** 2 <= np.float32(0.25)
    else:
        visible &= (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    _write(target, box, visible, inverse_depth, u, v, index)


def _cast_round(
    target: Target,
    box: tuple[slice, slice],
    surface: Surface,
    index: int,
    cam_from_world: Float64Array,
) -> None:
    """Intersect rays with the outside of a sphere or of an upright cylinder."""
    world_from_cam = inverse(cam_from_world)
    eye = world_from_cam[:3, 3] - surface.origin
    x, y = target.x[box[1]], target.y[box[0]]
    r = world_from_cam[:3, :3].astype(np.float32)
    dx, dy, dz = ((r[i, 0] * x)[None, :] + (r[i, 1] * y + r[i, 2])[:, None] for i in range(3))
    ex, ey, ez = eye.astype(np.float32)
    a, b = dx * dx + dy * dy, dx * ex + dy * ey
    c = np.float32(eye[0] ** 2 + eye[1] ** 2 - surface.radius**2)
    if surface.kind == "sphere":
        a, b, c = a + dz * dz, b + dz * ez, np.float32(c + eye[2] ** 2)
    root = b * b - a * c
    visible = root > 0
    z = (-b - np.sqrt(np.maximum(root, 0))) / np.maximum(a, np.float32(1e-12))
    visible &= z > _NEAR
    z = np.where(visible, z, np.float32(1))
    inverse_depth = 1 / z
    visible &= inverse_depth > target.inverse_depth[box]
    if not visible.any():
        return
    height = ez + z * dz
    if surface.kind == "cylinder":
        v = 1 - height / np.float32(surface.height)
        visible &= (v >= 0) & (v <= 1)
    else:
        v = np.arccos(np.clip(height / np.float32(surface.radius), -1, 1)) / np.float32(np.pi)
    u = np.arctan2(ey + z * dy, ex + z * dx) / np.float32(2 * np.pi)
    u -= np.floor(u)
    _write(target, box, visible, inverse_depth, u, v, index)


def _write(
    target: Target,
    box: tuple[slice, slice],
    visible: BoolArray,
    inverse_depth: FloatArray,
    u: FloatArray,
    v: FloatArray,
    index: int,
) -> None:
    np.copyto(target.inverse_depth[box], inverse_depth, where=visible)
    np.copyto(target.u[box], u, where=visible)
    np.copyto(target.v[box], v, where=visible)
    np.copyto(target.index[box], np.int32(index), where=visible)

"""Rendering of a field through `reloc_core.rendering`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from gsplat_loc.field.gaussians import Gaussians
from reloc_core import rendering
from reloc_core.types import Camera, Float64Array


@dataclass(frozen=True)
class Rendering:
    """What the field looks like from a pose, as arrays.

    Attributes:
        image: (H, W, 3) float32 RGB, not clipped.
        alpha: (H, W) float32 opacity.
        depth: (H, W) float32 expected depth along z, 0 where nothing was drawn.
    """

    image: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray


def physical(gaussians: Gaussians) -> rendering.Gaussians:
    """The field with its activations applied."""
    return rendering.Gaussians(
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales.exp(),
        gaussians.opacities.sigmoid(),
    )


def view_of(camera: Camera, world_from_cam: Float64Array, origin: Float64Array) -> rendering.View:
    """A pinhole at a pose in the field's coordinates."""
    pose = torch.from_numpy(np.array(world_from_cam, np.float64))
    pose[:3, 3] -= torch.from_numpy(np.asarray(origin, np.float64))
    return rendering.View(
        pose, camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height
    )


def colors(gaussians: Gaussians, view: rendering.View, degree: int | None = None) -> Tensor:
    """(N, 3) colours of the Gaussians as seen from a view's centre."""
    center = view.world_from_cam[:3, 3].to(gaussians.means)
    directions = gaussians.means - center
    return rendering.evaluate_sh(gaussians.colors, directions, degree)


@dataclass(frozen=True)
class Placement:
    """Where and how a field is rendered.

    Attributes:
        origin: (3,) of the field in the world.
        background: (3,) colour behind it.
        near: depth from which Gaussians are drawn, scene units.
        threads: of the CPU.
    """

    origin: Float64Array
    background: Tensor
    near: float
    threads: int


def draw(
    gaussians: Gaussians, view: rendering.View, at: Placement, degree: int | None = None
) -> rendering.RenderOutput:
    """Render colours, differentiably."""
    return rendering.rasterize(
        physical(gaussians),
        colors(gaussians, view, degree),
        view,
        background=at.background,
        near=at.near,
        threads=at.threads,
    )


@torch.no_grad()
def snapshot(
    gaussians: Gaussians, camera: Camera, world_from_cam: Float64Array, at: Placement
) -> Rendering:
    """Render colours, opacity and depth without gradients."""
    out = draw(gaussians, view_of(camera, world_from_cam, at.origin), at)
    return Rendering(*(t.cpu().numpy() for t in (out.image, out.alpha, out.depth)))


def surface(found: Rendering, min_alpha: float, edge: float) -> np.ndarray:
    """Pixels (H, W) whose depth can be trusted: opaque and away from depth edges.

    Args:
        found: a rendering.
        min_alpha: least opacity.
        edge: largest difference of depth within a window of 3x3, relative.
    """
    window = np.ones((3, 3), np.uint8)
    high, low = cv2.dilate(found.depth, window), cv2.erode(found.depth, window)
    mask: np.ndarray = (found.alpha > min_alpha) & (low > 0) & (high - low < edge * found.depth)
    return mask


def lookup(
    camera: Camera, directions: Float64Array, depth: np.ndarray, good: np.ndarray
) -> Float64Array:
    """Depth (N,) of a rendering along viewing directions with z = 1; 0 outside or where not `good`."""
    if not len(directions):  # OpenCV refuses to look up nothing.
        return np.zeros(0)
    finite = np.isfinite(directions).all(1)
    x = np.where(finite, camera.fx * directions[:, 0] + camera.cx, -1e6)
    y = np.where(finite, camera.fy * directions[:, 1] + camera.cy, -1e6)
    column = np.rint(x).astype(np.int64)
    row = np.rint(y).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    trusted = inside.copy()
    trusted[inside] = good[row[inside], column[inside]]
    sampled = cv2.remap(
        depth.astype(np.float32),
        x.clip(-1, camera.width).astype(np.float32)[:, None],
        y.clip(-1, camera.height).astype(np.float32)[:, None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.where(trusted, sampled.ravel().astype(np.float64), 0.0)

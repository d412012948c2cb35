"""Alignment of a query with a rendering: matches over the whole image, then features on se(3).

A rendering at a pose gives features and depth, so a scene point with a feature for every cell. While
the pose moves a little, these stay; only where they fall in the query changes. The field is therefore
rendered once per round and never differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.geometry import so3_exp
from reloc_core.mapping.matching import mutual_matches
from reloc_core.solvers.absolute import estimate_absolute_pose
from reloc_core.types import Camera, Float64Array, FloatArray

_STEPS = 6  # Gauss-Newton steps per level of smoothing
_SMOOTHING = (2.0, 1.0, 0.0)  # cells, standard deviation
_ROBUST = 0.5  # squared feature distance at which a cell's weight has fallen to a quarter
_DAMPING = 1e-3
_MIN_CELLS = 50
_MIN_MATCHES = 12
_MIN_AGREEING = 0.1  # of the matches: mirrored and shuffled pictures reach it, true ones 0.2
_MATCH_SEARCH = 12.0  # px
_CONVERGED = 1e-4  # rad and scene units
_COVARIANCE_FACTOR = 400.0


@dataclass(frozen=True)
class Template:
    """A rendering at a known pose.

    Attributes:
        features: (C, H, W) unit features.
        points: (H * W, 3) float64 scene points of the cells in the world.
        world_from_cam: (4, 4) pose of the rendering.
    """

    features: Tensor
    points: Tensor
    world_from_cam: Float64Array


def feature_cost(rendered: Tensor, query: Tensor) -> float:
    """1 - mean cosine of unit feature maps (C, H, W), over cells."""
    return float(1 - (rendered * query).sum(0).mean())


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps (C, H, W), normalised to unit features again."""
    if sigma <= 0:
        return maps
    radius = int(np.ceil(2.5 * sigma))
    taps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    channels, rows, columns = maps.shape
    padded = F.pad(maps[None], (radius,) * 4, mode="replicate")[0]
    across = F.conv1d(padded.reshape(-1, 1, columns + 2 * radius), kernel)
    across = across.view(channels, rows + 2 * radius, columns).transpose(1, 2)
    down = F.conv1d(across.reshape(-1, 1, rows + 2 * radius), kernel)
    return F.normalize(down.view(channels, columns, rows).transpose(1, 2), dim=0)


def match(template: Template, query: Tensor, cells: Camera, camera: Camera) -> Float64Array | None:
    """Pose (4, 4) from mutual nearest neighbours between rendered and query features.

    None where too few of them agree on one.

    Args:
        template: the rendering, whole or a glimpse.
        query: (C, H, W) unit features.
        cells: camera of the query's cells.
        camera: camera of the query's image.
    """
    ours, theirs = (m.flatten(1).T.cpu().contiguous().numpy() for m in (template.features, query))
    chosen, partner, cosine = mutual_matches(ours, theirs)
    if len(chosen) < _MIN_MATCHES:
        return None
    place = _subcell(ours[chosen], theirs, partner, query.shape[2])
    stride = camera.fx / cells.fx
    agreeing = max(_MIN_MATCHES, round(_MIN_AGREEING * len(chosen)))
    found = estimate_absolute_pose(
        (place + 0.5) * stride - 0.5,
        template.points.cpu().numpy()[chosen],
        camera,
        weights=np.maximum(cosine, 1e-3).astype(np.float64) ** 2,
        options={
            "residual": "reprojection", "threshold": 4.0, "search_radius": _MATCH_SEARCH,
            "max_iterations": 20_000, "min_score": 0.0, "min_inliers": agreeing,
        },
    )  # fmt: skip
    return found.world_from_cam if found.success else None


def _subcell(
    ours: FloatArray, theirs: FloatArray, partner: np.ndarray, columns: int
) -> Float64Array:
    """Where similarity peaks about the best cells, by parabolas.

    Args:
        ours: (K, C) unit features of cells of the rendering.
        theirs: (rows * columns, C) unit features of the query.
        partner: (K,) the cells of the query most like ours.
        columns: of the query.

    Returns:
        (K, 2) x and y in cells, at most half a cell from the partners.
    """
    y, x = np.divmod(partner, columns)
    last = len(theirs) // columns - 1

    def shift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        low, middle, high = (
            np.einsum("kc,kc->k", ours, theirs[i]) for i in (before, partner, after)
        )
        curve = low - 2 * middle + high
        return np.clip(0.5 * (low - high) / np.where(np.abs(curve) < 1e-6, -1.0, curve), -0.5, 0.5)

    dx = shift(y * columns + np.maximum(x - 1, 0), y * columns + np.minimum(x + 1, columns - 1))
    dy = shift(np.maximum(y - 1, 0) * columns + x, np.minimum(y + 1, last) * columns + x)
    return np.stack([x + dx, y + dy], 1)


def align(
    template: Template, query: Tensor, cells: Camera, world_from_cam: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Gauss-Newton on se(3) over the feature distance, coarse to fine.

    Args:
        template: the rendering, near the pose.
        query: (C, H, W) unit features.
        cells: camera of the query's cells.
        world_from_cam: (4, 4) where to begin.

    Returns:
        the pose (4, 4) and its covariance (6, 6) in the tangent of `reloc_core.types`.
    """
    pose, covariance = world_from_cam, np.eye(6)
    for sigma in _SMOOTHING:
        level = _Level(smooth(template.features, sigma), smooth(query, sigma), cells)
        for _ in range(_STEPS):
            step, covariance = level.step(template.points, pose)
            if step is None:
                return pose, covariance
            pose = moved(pose, step)
            if np.abs(step).max() < _CONVERGED:
                break
    return pose, covariance


def covariance_at(template: Template, query: Tensor, cells: Camera) -> Float64Array:
    """Covariance (6, 6) of a pose from the features' gradients where it was rendered.

    Feature errors are shared by neighbouring cells and channels, so that the count of residuals says
    little; the factor was measured on held-out images.
    """
    level = _Level(template.features, query, cells)
    return level.step(template.points, template.world_from_cam)[1] * _COVARIANCE_FACTOR


def moved(world_from_cam: Float64Array, step: Float64Array) -> Float64Array:
    """R Exp(w), t + R v for a step (w, v): the tangent of `reloc_core.types`."""
    pose = world_from_cam.copy()
    pose[:3, 3] += pose[:3, :3] @ step[3:]
    pose[:3, :3] = pose[:3, :3] @ so3_exp(step[:3])
    return pose


class _Level:
    """One level of smoothing: the query's features and their gradients, ready to be looked up."""

    def __init__(self, template: Tensor, query: Tensor, cells: Camera) -> None:
        self.template = template.flatten(1)
        self.cells = cells
        padded = F.pad(query[None], (1, 1, 1, 1), mode="replicate")[0]
        across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
        down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
        self.maps = torch.cat([query, across, down])[None]
        self.channels = len(query)

    def step(
        self, points: Tensor, world_from_cam: Float64Array
    ) -> tuple[Float64Array | None, Float64Array]:
        """One Gauss-Newton step (6,) and the covariance; None where too few points are visible."""
        cells = self.cells
        pose = torch.from_numpy(world_from_cam).to(points)
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        x, y, z = local.unbind(1)
        front = z > 1e-3
        z = z.clamp(min=1e-3)
        u, v = cells.fx * x / z + cells.cx, cells.fy * y / z + cells.cy
        inside = front & (u > 0) & (v > 0) & (u < cells.width - 1) & (v < cells.height - 1)
        keep = torch.nonzero(inside)[:, 0]
        if len(keep) < _MIN_CELLS:
            return None, np.eye(6)
        size = u.new_tensor([cells.width, cells.height])
        grid = (torch.stack([u[keep], v[keep]], 1) + 0.5) / size * 2 - 1
        sampled = F.grid_sample(
            self.maps, grid[None, None].float(), mode="bilinear", align_corners=False
        )[0, :, 0]
        value, gx, gy = sampled.split(self.channels)
        residual = value - self.template[:, keep]
        squared = residual.square().sum(0)
        weight = (1 + squared / _ROBUST).pow(-2).double()
        # dp/dxi for x_cam = Exp(-w) (...) - v: moving the camera by xi moves points by its inverse.
        x, y, z = local[keep].unbind(1)
        ones = torch.ones_like(x)
        zero = torch.zeros_like(x)
        du = torch.stack([cells.fx / z * ones, zero, -cells.fx * x / z**2], 1)
        dv = torch.stack([zero, cells.fy / z * ones, -cells.fy * y / z**2], 1)
        rotate = torch.stack(
            [torch.stack([zero, -z, y], 1), torch.stack([z, zero, -x], 1),
             torch.stack([-y, x, zero], 1)], 1,
        )  # fmt: skip
        # For x' = x - w x X - v:  d x'/dw = [X]_x,  d x'/dv = -I.
        ju = torch.cat([(du[:, None] @ rotate)[:, 0], -du], 1)
        jv = torch.cat([(dv[:, None] @ rotate)[:, 0], -dv], 1)
        sxx, sxy, syy = (
            weight * (a * b).sum(0).double() for a, b in ((gx, gx), (gx, gy), (gy, gy))
        )
        bx, by = (weight * (g * residual).sum(0).double() for g in (gx, gy))
        cross = ju.T @ (sxy[:, None] * jv)
        hessian = ju.T @ (sxx[:, None] * ju) + jv.T @ (syy[:, None] * jv) + cross + cross.T
        gradient = ju.T @ bx + jv.T @ by
        matrix = hessian.cpu().numpy()
        damped = matrix + _DAMPING * np.diag(np.diag(matrix)) + 1e-9 * np.eye(6)
        step = -np.linalg.solve(damped, gradient.cpu().numpy())
        variance = float((weight * squared.double()).sum() / (weight.sum() * self.channels))
        return step, np.linalg.inv(damped) * variance

"""Matching against rendered descriptors (the stage that GSplatLoc's paper calls Fine; never released).

The field's descriptors and its expected depth are rendered at the current pose. Key points of the query
are matched with the rendered descriptors by a dual softmax, mutually; the matched cells are lifted by the
depth, and a robust PnP gives the next pose; so for some rounds. The paper gives no thresholds; the dual
softmax and its temperature are those of STDLoc (Huang et al., arXiv 2503.19358).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsplat_loc.config import RefineConfig
from gsplat_loc.field.fieldmap import FieldMap
from gsplat_loc.field.render import Rendering, physical, surface, view_of
from gsplat_loc.refine.alignment import shown_error
from gsplat_loc.refine.stage import Seen, Stage
from gsplat_loc.views import pinhole
from reloc_core import rendering
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import inverse, lift, rotation_angle_deg, transform
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences, Float64Array, Localization

_LEAST = 12  # matches that support a pose
_STILL_DEG, _STILL = (
    1e-3,
    1e-5,
)  # rotation, and shift per depth, below which the rounds have converged


@dataclass(frozen=True)
class Rendered:
    """Descriptors of the field as a camera sees them.

    Attributes:
        camera: pinhole whose pixels are the cells.
        features: (h, w, C) unit vectors; zero where nothing was drawn.
        depth: (h, w) float32 expected depth.
        good: (h, w) cells whose depth can be trusted.
    """

    camera: Camera
    features: Tensor
    depth: np.ndarray
    good: np.ndarray


class FeatureMatching(Stage):
    """Rounds of rendering, matching and solving; the pose of the last round that succeeded."""

    def __init__(self, field: FieldMap, config: RefineConfig, runtime: Runtime) -> None:
        super().__init__(field, config, runtime)
        assert field.descriptors is not None
        self._features = field.descriptors.features.float()
        self._detector = KeypointDetector(config.feature_resolution).to(runtime.device)
        self._solver = PnpSolver(PnpConfig())

    def run(self, seen: Seen, localization: Localization) -> Localization:
        """See `Stage.run`. Too few matches in the first round leave the localization as it is."""
        query, options = seen.query, self.config
        found = self._detector.detect([query.image], options.keypoints)[0]
        descriptors = found.descriptors.to(self._features.device)
        result = localization
        for _ in range(options.rounds):
            pose = result.world_from_cam
            assert pose is not None
            drawn = self._render(query.camera, pose)
            rows, places, depth, confidence = cell_matches(descriptors, drawn, options)
            if len(rows) < _LEAST:
                break
            local = lift(drawn.camera, places, depth)
            evidence = Correspondences(
                found.pixels[rows], transform(pose, local), weights=confidence, kind="sparse",
                redundancy=options.feature_redundancy,
            )  # fmt: skip
            solved = self._solver.solve(evidence, query.camera, self.runtime)
            if not solved.localized or solved.world_from_cam is None:
                break
            if solved.num_inliers < _LEAST:
                break
            covariance = solved.covariance
            if covariance is not None:
                share = max(float(drawn.good.mean()), 1e-3)
                covariance = covariance + shown_error(drawn.camera, local, options.map_error, share)
            result = replace(
                localization, world_from_cam=solved.world_from_cam, covariance=covariance
            )
            step = inverse(pose) @ solved.world_from_cam
            still = float(np.linalg.norm(step[:3, 3])) < _STILL * float(np.median(depth))
            if still and float(rotation_angle_deg(step[:3, :3], np.eye(3))) < _STILL_DEG:
                break
        return result

    @torch.no_grad()
    def _render(self, camera: Camera, pose: Float64Array) -> Rendered:
        """Descriptors and depth at a pose, one cell for `feature_cell` pixels."""
        options, field = self.config, self.field
        full = pinhole(camera, options.feature_resolution, enlarge=True)
        cell = options.feature_cell
        grid = full.scaled(max(full.width // cell, 1), max(full.height // cell, 1))
        out = rendering.rasterize(
            physical(field.gaussians), self._features, view_of(grid, pose, field.origin),
            threads=self.runtime.threads,
        )  # fmt: skip
        alpha, depth = out.alpha.cpu().numpy(), out.depth.cpu().numpy()
        good = surface(
            Rendering(np.zeros(0), alpha, depth), options.min_alpha, _edge(cell, options)
        )
        return Rendered(grid, F.normalize(out.image, dim=-1), depth, good)


def _edge(cell: int, options: RefineConfig) -> float:
    """Relative depth difference of neighbouring cells: slanted surfaces differ by more than pixels'."""
    return min(options.depth_edge * max(cell / 2, 1.0), 0.5)


@torch.no_grad()
def cell_matches(
    query: Tensor, drawn: Rendered, options: RefineConfig
) -> tuple[np.ndarray, Float64Array, Float64Array, Float64Array]:
    """Mutual matches of descriptors with rendered cells, by a dual softmax.

    Args:
        query: (N, C) unit vectors.
        drawn: what is rendered; only `good` cells are matched.
        options: temperature and least confidence.

    Returns:
        rows of the query (M,), sub-cell places (M, 2) in pixels of the rendered camera, depths (M,) there,
        and confidences (M,) in 0..1.
    """
    height, width = drawn.depth.shape
    cells = np.flatnonzero(drawn.good)
    none = np.zeros(0)
    if not len(cells) or not len(query):
        return none.astype(int), np.zeros((0, 2)), none, none
    flat = drawn.features.reshape(height * width, -1)
    similarity = query @ flat[torch.from_numpy(cells).to(flat.device)].T
    scaled = similarity / options.temperature
    confidence = scaled.softmax(1) * scaled.softmax(0)
    best, place = confidence.max(1)
    mutual = confidence.argmax(0)[place] == torch.arange(len(query), device=place.device)
    rows = (mutual & (best > options.min_confidence)).nonzero()[:, 0]
    column = place[rows].cpu().numpy()
    y, x = np.divmod(cells[column], width)
    places = np.stack([x, y], 1).astype(np.float64)
    places += _peak(query[rows], drawn, x, y)
    depth = _depth_at(drawn, places)
    return rows.cpu().numpy(), places, depth, best[rows].double().cpu().numpy().clip(1e-6, 1)


def _peak(query: Tensor, drawn: Rendered, x: np.ndarray, y: np.ndarray) -> Float64Array:
    """Offsets (M, 2) in cells of the maxima of quadrics through the similarities around each match."""
    height, width = drawn.depth.shape
    flat = drawn.features.reshape(height * width, -1)

    def similarity(dx: int, dy: int) -> np.ndarray:
        column, row = (x + dx).clip(0, width - 1), (y + dy).clip(0, height - 1)
        beside = flat[torch.from_numpy(row * width + column).to(flat.device)]
        values: np.ndarray = (query * beside).sum(1).double().cpu().numpy()
        return values

    here = similarity(0, 0)
    right, left, below, above = (similarity(*d) for d in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    slope_x, slope_y = (right - left) / 2, (below - above) / 2
    xx, yy = right - 2 * here + left, below - 2 * here + above
    xy = (similarity(1, 1) + similarity(-1, -1) - similarity(1, -1) - similarity(-1, 1)) / 4
    determinant = xx * yy - xy**2
    peaked = (xx < -1e-6) & (determinant > 1e-12)
    safe = np.where(peaked, determinant, 1.0)
    shift = np.stack([xy * slope_y - yy * slope_x, xy * slope_x - xx * slope_y], 1) / safe[:, None]
    return np.where(peaked[:, None], shift, 0.0).clip(-0.5, 0.5)


def _depth_at(drawn: Rendered, places: Float64Array) -> Float64Array:
    """Depth (M,) at sub-cell places; that of the nearest cell where a neighbour is not trusted."""
    height, width = drawn.depth.shape
    x, y = places.T
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total, weight = np.zeros(len(x)), np.zeros(len(x))
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = (left + dx).clip(0, width - 1), (top + dy).clip(0, height - 1)
            share = (
                (1 - np.abs(x - left - dx)) * (1 - np.abs(y - top - dy)) * drawn.good[row, column]
            )
            total += share * drawn.depth[row, column]
            weight += share
    return total / np.maximum(weight, 1e-9)

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
from gsplat_loc.field.render import lookup, physical, view_of
from gsplat_loc.refine.alignment import shown_error
from gsplat_loc.refine.stage import Seen, Stage
from reloc_core import rendering
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import inverse, rotation_angle_deg, transform, unproject
from reloc_core.interfaces import Runtime
from reloc_core.mapping import pinhole_camera
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences, Float64Array, Localization

_BLOCK = 2  # cells per side of what is matched first
_MARGIN = 1  # cells around it in which the best fit is sought
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
        good: (h, w) cells to match with.
    """

    camera: Camera
    features: Tensor
    good: np.ndarray


class FeatureMatching(Stage):
    """Rounds of rendering, matching and solving; the pose of the last round that succeeded."""

    def __init__(self, field: FieldMap, config: RefineConfig, runtime: Runtime) -> None:
        super().__init__(field, config, runtime)
        assert field.descriptors is not None
        self._features = field.descriptors.features.float()
        self._detector = KeypointDetector(field.described).to(runtime.device)
        # The camera was settled when the pose was solved for; the field is rendered for that one.
        self._solver = PnpSolver(PnpConfig(verify_camera=False))

    def run(self, seen: Seen, localization: Localization) -> Localization:
        """See `Stage.run`. Too few matches in the first round leave the localization as it is."""
        query, options = seen.query, self.config
        found = self._detector.detect([query.image], options.keypoints)[0]
        descriptors = found.descriptors.to(self._features.device)
        result = localization
        for _ in range(options.rounds):
            pose = result.world_from_cam
            assert pose is not None
            image, trusted = self.draw(seen, pose)
            drawn = self._render(query.camera, pose)
            rows, places, confidence = cell_matches(descriptors, drawn, options)
            direction = unproject(drawn.camera, places)
            depth = lookup(seen.camera, direction, image.depth, trusted)
            kept = depth > 0
            if int(kept.sum()) < _LEAST:
                break
            rows, confidence, depth = rows[kept], confidence[kept], depth[kept]
            local = direction[kept] * depth[:, None]
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
                share = max(float(trusted.mean()), 1e-3)
                covariance = covariance + shown_error(seen.camera, local, self.map_error, share)
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
        """Descriptors at a pose, one cell for `feature_cell` pixels."""
        options, field = self.config, self.field
        full = pinhole_camera(camera, field.described, enlarge=True)
        cell = options.feature_cell
        grid = full.scaled(max(full.width // cell, 1), max(full.height // cell, 1))
        out = rendering.rasterize(
            physical(field.gaussians), self._features, view_of(grid, pose, field.origin),
            near=field.near, threads=self.runtime.threads,
        )  # fmt: skip
        good = (out.alpha > options.min_alpha).cpu().numpy()
        return Rendered(grid, F.normalize(out.image, dim=-1), good)


@torch.no_grad()
def cell_matches(
    query: Tensor, drawn: Rendered, options: RefineConfig
) -> tuple[np.ndarray, Float64Array, Float64Array]:
    """Mutual matches of descriptors with rendered cells: dual softmax over blocks, then the peak.

    Args:
        query: (N, C) unit vectors.
        drawn: what is rendered; only blocks with `good` cells are matched.
        options: temperature and least confidence.

    Returns:
        rows of the query (M,), sub-cell places (M, 2) in pixels of the rendered camera, and confidences
        (M,) in 0..1.
    """
    maps = drawn.features.permute(2, 0, 1)[None]
    blocks = F.normalize(F.avg_pool2d(maps, _BLOCK)[0].permute(1, 2, 0), dim=-1)
    height, width = blocks.shape[:2]
    good = drawn.good[: height * _BLOCK, : width * _BLOCK]
    usable = good.reshape(height, _BLOCK, width, _BLOCK).any((1, 3)).ravel()
    index = np.flatnonzero(usable)
    if not len(index) or not len(query):
        return np.zeros(0, int), np.zeros((0, 2)), np.zeros(0)
    flat = blocks.reshape(height * width, -1)[torch.from_numpy(index).to(blocks.device)]
    scaled = query @ flat.T / options.temperature
    confidence = scaled.softmax(1) * scaled.softmax(0)
    best, place = confidence.max(1)
    mutual = confidence.argmax(0)[place] == torch.arange(len(query), device=place.device)
    rows = (mutual & (best > options.min_confidence)).nonzero()[:, 0]
    y, x = np.divmod(index[place[rows].cpu().numpy()], width)
    places = _peak(query[rows], drawn, x * _BLOCK, y * _BLOCK)
    return rows.cpu().numpy(), places, best[rows].double().cpu().numpy().clip(1e-6, 1)


def _peak(query: Tensor, drawn: Rendered, x: np.ndarray, y: np.ndarray) -> Float64Array:
    """Places (M, 2) where descriptors fit best near blocks that begin at cells (x, y).

    The best cell of the block and of a margin around it, and the maximum of a quadric through the
    similarities around that.
    """
    height, width = drawn.good.shape
    flat = drawn.features.reshape(height * width, -1)

    def similarity(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        inside = row.clip(0, height - 1) * width + column.clip(0, width - 1)
        beside = flat[torch.from_numpy(inside).to(flat.device)]
        values: np.ndarray = (query * beside).sum(1).double().cpu().numpy()
        return values

    reach = range(-_MARGIN, _BLOCK + _MARGIN)
    around = np.array([(dx, dy) for dy in reach for dx in reach])
    scores = np.stack([similarity(x + dx, y + dy) for dx, dy in around])
    best = around[scores.argmax(0)]
    x, y = (x + best[:, 0]).clip(0, width - 1), (y + best[:, 1]).clip(0, height - 1)
    three = {(dx, dy): similarity(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}
    slope_x, slope_y = (three[1, 0] - three[-1, 0]) / 2, (three[0, 1] - three[0, -1]) / 2
    xx = three[1, 0] - 2 * three[0, 0] + three[-1, 0]
    yy = three[0, 1] - 2 * three[0, 0] + three[0, -1]
    xy = (three[1, 1] + three[-1, -1] - three[1, -1] - three[-1, 1]) / 4
    determinant = xx * yy - xy**2
    peaked = (xx < -1e-6) & (determinant > 1e-12)
    safe = np.where(peaked, determinant, 1.0)
    shift = np.stack([xy * slope_y - yy * slope_x, xy * slope_x - xx * slope_y], 1) / safe[:, None]
    return np.stack([x, y], 1) + np.where(peaked[:, None], shift, 0.0).clip(-0.5, 0.5)

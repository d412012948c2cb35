"""Depth of mapping images from their neighbours: a plane sweep over feature similarities.

Collins, A Space-Sweep Approach to True Multi-Image Matching, CVPR 1996, on XFeat features, whose
cosines take the place of grey level differences. Poses and RGB suffice.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kfnet_temporal.common.grid import FeatureExtractor, FeatureGrid
from reloc_core.geometry import inverse, project, transform, unproject
from reloc_core.interfaces import Dataset
from reloc_core.types import Float64Array, Frame, Query

_HYPOTHESES = 96
_NEAREST, _FARTHEST = 0.1, 15.0  # of the extent of the camera path
_BASELINES = (0.05, 0.08, 0.12, 0.18, 0.25)  # of the same
_MAX_ANGLE = np.radians(30.0)
_MIN_VIEWS = 2
_MIN_SIMILARITY, _MIN_PEAK = 0.55, 0.12  # cosines
_PROBES = 8
_MIN_SHARE = 0.05


class StereoDepth:
    """Distances of the cells of mapping images, computed when they are asked for.

    Args:
        dataset: posed images.
        extractor: of the features and their grid.
        assumed: metres; distance of everything when the camera moves too little to tell.
    """

    def __init__(self, dataset: Dataset, extractor: FeatureExtractor, assumed: float) -> None:
        self.dataset, self.extractor = dataset, extractor
        self.posed = [i for i, f in enumerate(dataset.frames) if f.world_from_cam is not None]
        centres = np.stack([_pose(dataset.frames[i])[:3, 3] for i in self.posed])
        self.extent = float(np.linalg.norm(centres.max(0) - centres.min(0)))
        self._found: dict[int, Float64Array] = {}
        self.assumed: float | None = None
        probes = np.linspace(0, len(self.posed) - 1, min(_PROBES, len(self.posed))).round()
        shares = [np.isfinite(self.distances(self.posed[int(p)])).mean() for p in probes]
        if np.median(shares) < _MIN_SHARE:
            self.assumed = assumed

    def distances(self, index: int, query: Query | None = None) -> Float64Array:
        """Distance (h, w) from the camera centre of each cell, NaN where it cannot be told."""
        query = self.dataset[index] if query is None else query
        if self.assumed is not None:
            return np.full(self.extractor(query).shape, self.assumed)
        if index not in self._found:
            self._found[index] = self._sweep(index, query)
        return self._found[index]

    def neighbours(self, index: int) -> list[int]:
        """Mapping images that look the same way from a little aside, at several baselines."""
        pose = _pose(self.dataset.frames[index])
        others = [i for i in self.posed if i != index]
        poses = np.stack([_pose(self.dataset.frames[i]) for i in others])
        cosine = poses[:, :3, 2] @ pose[:3, 2]
        baseline = np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1) / max(self.extent, 1e-12)
        baseline[cosine < np.cos(_MAX_ANGLE)] = np.inf
        chosen: list[int] = []
        for wanted in _BASELINES:
            error = np.abs(baseline - wanted)
            best = int(np.argmin(error))
            if error[best] < 0.5 * wanted and others[best] not in chosen:
                chosen.append(others[best])
        return chosen

    @torch.inference_mode()
    def _sweep(self, index: int, query: Query) -> Float64Array:
        grid = self.extractor(query)
        shape = grid.shape
        pose = _pose(query)
        rays = unproject(query.camera, grid.pixels)
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True) @ pose[:3, :3].T
        steps = np.geomspace(_NEAREST, _FARTHEST, _HYPOTHESES) * self.extent
        points = pose[:3, 3] + rays[None] * steps[:, None, None]
        volumes = []
        for j in self.neighbours(index):
            other = self.dataset[j]
            there = self.extractor(other)
            cam, ok = project(other.camera, transform(inverse(_pose(other)), points.reshape(-1, 3)))
            cam[~ok] = -1e6
            volumes.append(similarities(grid.features, there, cam.reshape(_HYPOTHESES, -1, 2)))
        if len(volumes) < _MIN_VIEWS:
            return np.full(shape, np.nan)
        volume = torch.stack(volumes)  # (views, hypotheses, cells), NaN outside
        seen = torch.isfinite(volume).sum(0)
        mean = torch.nan_to_num(volume).sum(0) / seen.clamp_min(1)
        mean = torch.where(seen >= _MIN_VIEWS, mean, torch.zeros_like(mean))
        return peaks(mean.view(_HYPOTHESES, *shape), np.log(steps))


def similarities(features: Tensor, there: FeatureGrid, pixels: Float64Array) -> Tensor:
    """Cosines (D, n) of n cells and what lies at D positions each in another image; NaN outside.

    Args:
        features: (C, h, w) of the cells.
        there: features of the other image.
        pixels: (D, n, 2) in the other image.
    """
    rows, columns = there.shape
    corners = there.pixels.reshape(rows, columns, 2)
    step = (corners[-1, -1] - corners[0, 0]) / np.maximum([columns - 1, rows - 1], 1)
    place = torch.from_numpy((pixels - corners[0, 0]) / step).float()
    x, y = place.unbind(-1)
    outside = (x < 0) | (y < 0) | (x > columns - 1) | (y > rows - 1)
    x0 = x.floor().clamp(0, max(columns - 2, 0))
    y0 = y.floor().clamp(0, max(rows - 2, 0))
    fx, fy = (x - x0).clamp(0, 1), (y - y0).clamp(0, 1)
    table = features.flatten(1).T.cpu() @ there.features.flatten(1).cpu()
    base = (y0 * columns + x0).long().T  # (n, D)

    def at(offset: int) -> Tensor:
        return table.gather(1, (base + offset).clamp_max(rows * columns - 1)).T

    top = at(0) * (1 - fx) + at(1) * fx
    bottom = at(columns) * (1 - fx) + at(columns + 1) * fx
    return (top * (1 - fy) + bottom * fy).masked_fill(outside, torch.nan)


def peaks(volume: Tensor, log_steps: Float64Array) -> Float64Array:
    """Distances (h, w) at clear maxima of similarity (D, h, w); NaN where there is none."""
    smooth = F.avg_pool2d(volume[None], 3, 1, 1, count_include_pad=False)[0]
    best, where = smooth.max(0)
    inner = where.clamp(1, len(log_steps) - 2)
    before, at, after = (smooth.gather(0, (inner + o)[None])[0] for o in (-1, 0, 1))
    bend = (before + after - 2 * at).clamp_max(-1e-6)
    shift = ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
    clear = (best > _MIN_SIMILARITY) & (best - smooth.mean(0) > _MIN_PEAK) & (where == inner)
    step = float(log_steps[1] - log_steps[0])
    distance = torch.exp(log_steps[0] + step * (inner.double() + shift.double()))
    return np.asarray(torch.where(clear, distance, torch.nan).numpy(), np.float64)


def _pose(frame: Frame) -> Float64Array:
    assert frame.world_from_cam is not None
    return frame.world_from_cam

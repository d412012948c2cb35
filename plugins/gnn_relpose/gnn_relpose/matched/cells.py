"""Cells of references: their rays, and where another image shows them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from reloc_core.geometry import unproject
from reloc_core.types import Camera, Float64Array

_WINDOW = 2  # cells around the best one that take part in its sub-cell position
_SHARPNESS = 40.0  # of the soft maximum; cosine similarities differ by hundredths between cells


def grid_cells(shape: tuple[int, int], count: int) -> np.ndarray:
    """At most `count` cells (N, 2) as integer x, y, spread evenly over a grid of rows and columns."""
    rows, columns = shape
    step = math.sqrt(rows * columns / count)
    down, across = max(int(rows / step), 1), max(int(columns / step), 1)
    y = np.floor((np.arange(down) + 0.5) * rows / down).astype(int)
    x = np.floor((np.arange(across) + 0.5) * columns / across).astype(int)
    return np.stack([np.tile(x, down), np.repeat(y, across)], -1)[:count]


def rays(camera: Camera, pixels: Float64Array) -> np.ndarray:
    """Ray coordinates x/z, y/z (..., 2) float32 of pixels; NaN where the lens model has none."""
    return unproject(camera, pixels)[..., :2].astype(np.float32)


@torch.inference_mode()
def soft_matches(reference: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Where cells of references are seen in another image.

    The best cell by cosine similarity, moved by a soft maximum over its neighbourhood.

    Args:
        reference: (N, K, C) unit descriptors of cells of N images; zero rows for absent cells.
        maps: (C, rows, columns) unit descriptors of the other image.

    Returns:
        cell coordinates (N, K, 2) x, y, and (N, K, 3): similarity of the best cell, how far it exceeds
        the best one elsewhere, and 1 where that cell's own best match among the K is this one.
    """
    rows, columns = maps.shape[1:]
    flat = maps.reshape(maps.shape[0], -1).float()
    similarity = reference.float() @ flat  # (N, K, cells)
    best, index = similarity.max(-1)
    back = similarity.max(1).indices  # (N, cells): the best of the K for each cell
    own = torch.arange(reference.shape[1], device=index.device)
    mutual = back.gather(1, index) == own
    y, x = index // columns, index % columns
    offsets = torch.arange(-_WINDOW, _WINDOW + 1, device=index.device)
    wy = (y[..., None] + offsets).clamp(0, rows - 1)
    wx = (x[..., None] + offsets).clamp(0, columns - 1)
    around = (wy[..., :, None] * columns + wx[..., None, :]).flatten(-2)  # (N, K, 25)
    window = similarity.gather(-1, around)
    weight = torch.softmax(_SHARPNESS * window, -1)
    # Border cells appear twice in clamped windows; their copies share position and do no harm.
    position = torch.stack(
        [(weight * (around % columns)).sum(-1), (weight * (around // columns)).sum(-1)], -1
    )
    elsewhere = similarity.scatter_(-1, around, -1.0).amax(-1)  # overwritten: a copy costs a fifth
    return position, torch.stack([best, best - elsewhere, mutual.float()], -1)

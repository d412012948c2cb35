"""Dense position decoder: scene coordinates by attention to the cells of similar key frames.

For every cell of the query and every retrieved key frame the most similar cell is a candidate. The
candidate that the others, and the neighbouring cells, support best wins; those close to it are averaged.
What the vote looked like is what the standard deviation is predicted from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CUES = 9
_GLOBAL_GRID = (3, 4)
_NEIGHBOUR = 2  # cells
_NEIGHBOUR_RADIUS = 2.0  # times the mode radius
_NEIGHBOUR_WEIGHT = 0.15


class Memory(nn.Module):
    """Key frames with the scene coordinates of their cells.

    Args:
        keys: (M, N, C) unit vectors; zero where there is no key.
        positions: (M, N, 3) metres relative to the origin of the map.
        looks: (M, G) global descriptors, unit vectors.
        mean_look: (C,) what was subtracted from the pooled features.
        frames: (M,) index of each key frame in the mapping sequence.
    """

    keys: Tensor
    positions: Tensor
    looks: Tensor
    mean_look: Tensor
    frames: Tensor

    def __init__(
        self, keys: Tensor, positions: Tensor, looks: Tensor, mean_look: Tensor, frames: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("keys", keys)
        self.register_buffer("positions", positions)
        self.register_buffer("looks", looks)
        self.register_buffer("mean_look", mean_look)
        self.register_buffer("frames", frames)

    def retrieve(self, features: Tensor, count: int, exclude: Tensor | None = None) -> Tensor:
        """Indices of the key frames that look most similar to features (C, h, w).

        Args:
            features: of the query.
            count: how many; fewer when there are no more.
            exclude: (M,) bool, key frames not to be used.
        """
        similarity = self.looks @ look(features, self.mean_look)
        if exclude is not None:
            similarity = similarity.masked_fill(exclude, -torch.inf)
        available = int(torch.isfinite(similarity).sum())
        return similarity.topk(min(count, available)).indices


def look(features: Tensor, mean: Tensor) -> Tensor:
    """Global descriptor (G,) of features (C, h, w): their centred averages on a coarse grid."""
    pooled = F.adaptive_avg_pool2d(features[None], _GLOBAL_GRID)[0] - mean[:, None, None]
    return F.normalize(pooled.flatten(), dim=0)


def decode(
    features: Tensor, keys: Tensor, positions: Tensor, sharpness: float, radius: float
) -> tuple[Tensor, Tensor]:
    """Scene coordinates of all cells, and cues to their error.

    Args:
        features: (C, h, w) unit vectors.
        keys: (K, N, C) of the retrieved key frames.
        positions: (K, N, 3) metres.
        sharpness: from cosine to logit.
        radius: metres within which candidates agree.

    Returns:
        coordinates (3, h, w) in metres and cues (`CUES`, h, w).
    """
    height, width = features.shape[-2:]
    cells = features.flatten(1).T
    # One product per key frame keeps the maxima in the cache.
    best, place = zip(*(_best(cells @ k.T) for k in keys), strict=True)
    similarity = torch.stack(best, 1)
    candidates = torch.stack(
        [p[i] for p, i in zip(positions, place, strict=True)], 1
    )  # (cells, K, 3)
    weight = torch.softmax(sharpness * similarity, 1)
    agree = (torch.cdist(candidates, candidates) < radius).to(weight.dtype) * weight[:, None]
    support = agree.sum(-1)
    first = _average(candidates, agree, support.argmax(1))
    nearby = _neighbour_support(
        first.T.view(3, height, width), support.max(1).values.view(height, width), candidates,
        _NEIGHBOUR_RADIUS * radius,
    )  # fmt: skip
    total = support + _NEIGHBOUR_WEIGHT * nearby
    winner = total.argmax(1)
    points = _average(candidates, agree, winner)
    rows = torch.arange(len(winner), device=winner.device)
    chosen = agree[rows, winner]
    share = chosen / chosen.sum(1, keepdim=True)
    spread = ((candidates - points[:, None]).square().sum(-1) * share).sum(1).sqrt()
    maps = points.T.reshape(3, height, width)
    rough = _roughness(maps).flatten()
    top = similarity.max(1).values
    cues = torch.stack(
        [
            top,
            similarity[rows, winner] - top,
            support[rows, winner],
            nearby[rows, winner] / 8,
            (spread + 1e-3).log(),
            (rough + 1e-3).log(),
            -(weight * (weight + 1e-9).log()).sum(1),
            (chosen > 0).to(weight.dtype).mean(1),
            (similarity.std(1, correction=0) + 1e-3).log(),
        ]
    )
    return maps, cues.view(CUES, height, width)


def _best(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of each row (n, m) and where it is."""
    if similarity.device.type != "cpu":
        found = similarity.max(1)
        return found.values, found.indices
    # Several times faster than Tensor.max, which is not vectorised over the indices.
    place = torch.from_numpy(similarity.numpy().argmax(1))
    return similarity.gather(1, place[:, None])[:, 0], place


def _average(candidates: Tensor, agree: Tensor, winner: Tensor) -> Tensor:
    """Weighted mean (cells, 3) of the candidates that agree with the winner."""
    weights = agree[torch.arange(len(winner), device=winner.device), winner]
    weights = weights / weights.sum(1, keepdim=True)
    return (weights[..., None] * candidates).sum(1)


def _neighbour_support(
    points: Tensor, confidence: Tensor, candidates: Tensor, radius: float
) -> Tensor:
    """How much neighbouring cells support each candidate, (cells, K), 0..8."""
    height, width = confidence.shape
    padded = F.pad(points[None], (_NEIGHBOUR,) * 4, mode="replicate")[0]
    weights = F.pad(confidence[None, None], (_NEIGHBOUR,) * 4)[0, 0]
    total = torch.zeros(candidates.shape[:2], dtype=points.dtype, device=points.device)
    for dy in range(0, 2 * _NEIGHBOUR + 1, _NEIGHBOUR):
        for dx in range(0, 2 * _NEIGHBOUR + 1, _NEIGHBOUR):
            if dy == dx == _NEIGHBOUR:
                continue
            there = padded[:, dy : dy + height, dx : dx + width].flatten(1).T
            w = weights[dy : dy + height, dx : dx + width].flatten()
            close = (candidates - there[:, None]).square().sum(-1) < radius * radius
            total += close * w[:, None]
    return total


def _roughness(points: Tensor) -> Tensor:
    """Distance (h, w) of each cell's coordinates from the mean of its 3 x 3 neighbourhood."""
    mean = F.avg_pool2d(points[None], 3, 1, 1, count_include_pad=False)[0]
    return (points - mean).norm(dim=0)


class StdHead(nn.Module):
    """Standard deviation per cell from the cues of `decode`.

    Args:
        hidden: width.
        min_std: metres; added in quadrature.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int, min_std: float) -> None:
        super().__init__()
        self.min_std = min_std
        self.layers = nn.Sequential(
            nn.Conv2d(CUES, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(),
            nn.Conv2d(hidden, 1, 1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(CUES))
        self.register_buffer("scale", torch.ones(CUES))

    def standardize(self, cues: Tensor) -> None:
        """Set mean and scale of the inputs from cues (B, CUES, h, w)."""
        self.mean.copy_(cues.mean((0, 2, 3)))
        self.scale.copy_(cues.std((0, 2, 3)).clamp_min(1e-3))

    def forward(self, cues: Tensor) -> Tensor:
        """Variances (B, h, w) in m^2 of cues (B, CUES, h, w)."""
        x = (cues - self.mean[:, None, None]) / self.scale[:, None, None]
        log_std = self.layers(x)[:, 0].clamp(-8, 3)
        return (2 * log_std).exp() + self.min_std**2

"""The published loss, translation against rotation with learned weights, and our learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WARMUP = 0.1


class WeightedPoseLoss(nn.Module):
    """exp(-s_t) |dt| + s_t + exp(-s_q) |dq| + s_q with learned s, as published.

    Args:
        translation: initial s_t.
        rotation: initial s_q.
    """

    def __init__(self, translation: float, rotation: float) -> None:
        super().__init__()
        self.s_t = nn.Parameter(torch.tensor(float(translation)))
        self.s_q = nn.Parameter(torch.tensor(float(rotation)))

    def forward(self, translation: Tensor, rotation: Tensor) -> Tensor:
        """The loss of mean absolute errors, scalars."""
        return (-self.s_t).exp() * translation + self.s_t + (-self.s_q).exp() * rotation + self.s_q


def one_cycle(progress: float) -> float:
    """Share of the peak learning rate: linear rise, cosine fall."""
    if progress < _WARMUP:
        return 0.1 + 0.9 * progress / _WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP))) + 1e-3

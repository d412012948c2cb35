"""Learning rate over the training."""

from __future__ import annotations

import math

from scr_glace.config import OptimizerConfig

_START_DIVISOR = 25.0
_END_DIVISOR = 1e4


def one_cycle(config: OptimizerConfig, step: int, total: int) -> float:
    """Learning rate of an optimizer step, PyTorch's one-cycle with cosines both ways.

    It starts at max/25, peaks at `warmup` of the steps and ends at max/250,000, or at
    `learning_rate_min` where the config says so.

    Args:
        config: peak, end and warm-up share.
        step: number of optimizer steps already taken, 0..total-1.
        total: length of the schedule.
    """
    peak = config.learning_rate_max
    start = peak / _START_DIVISOR
    end = start / _END_DIVISOR
    if config.respect_lr_min:
        end = min(config.learning_rate_min, peak)
    turn = config.warmup * total - 1
    if step <= turn and turn > 0:
        return _cosine(start, peak, step / turn)
    return _cosine(peak, end, (step - turn) / max(total - 1 - turn, 1e-9))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))

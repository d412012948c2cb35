"""Unit vectors in a byte per number, as maps store them: half of what fp16 takes.

The largest number of a vector becomes 127. What that was need not be stored: the length is one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_bytes(vectors: Tensor) -> Tensor:
    """Unit vectors (N, C) as int8."""
    largest = vectors.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (127 * vectors / largest).round().char()


def from_bytes(stored: Tensor) -> Tensor:
    """Unit vectors (N, C) float32 that were stored as int8, or in fp16 by earlier versions."""
    return stored.float() if stored.is_floating_point() else F.normalize(stored.float(), dim=1)

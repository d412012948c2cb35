"""VLAD: one vector per image from its local descriptors (Jegou et al., CVPR 2010).

Needs no weights but the local descriptors': visual words are their cluster centres.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.features.kmeans import kmeans

_SAMPLES = 20_000


def visual_words(descriptors: Tensor, rng: np.random.Generator, count: int = 32) -> Tensor:
    """Unit centres (count, C) of local descriptors (N, C); fewer when there are fewer descriptors."""
    sample = descriptors[torch.from_numpy(rng.permutation(len(descriptors))[:_SAMPLES])]
    centers, _ = kmeans(sample.float().numpy(), min(count, len(sample)), rng, iterations=8)
    return F.normalize(torch.from_numpy(centers).float(), dim=1)


def vlad(descriptors: Tensor, words: Tensor) -> Tensor:
    """Intra-normalised VLAD (words * C,) of one image's local descriptors (N, C)."""
    nearest = (descriptors @ words.T).argmax(1)
    residuals = torch.zeros_like(words).index_add_(0, nearest, descriptors - words[nearest])
    return F.normalize(F.normalize(residuals, dim=1).flatten(), dim=0)

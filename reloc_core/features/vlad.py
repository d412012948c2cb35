"""VLAD: one vector per image from its local descriptors (Jegou et al., CVPR 2010).

Needs no weights but the local descriptors': visual words are their cluster centres.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.features.kmeans import kmeans
from reloc_core.types import FloatArray

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


def image_looks(
    descriptors: FloatArray, counts: np.ndarray, rng: np.random.Generator, words: int = 32
) -> tuple[Tensor, Tensor]:
    """How images look by their own visual words.

    Args:
        descriptors: (M, C) float32 unit vectors, image after image.
        counts: (N,) of each image.
        rng: draws the samples of the words.
        words: most words.

    Returns:
        VLAD vectors (N, W * C) and words (W, C).
    """
    tensor = torch.from_numpy(descriptors)
    centres = visual_words(tensor, rng, words)
    return torch.stack([vlad(d, centres) for d in torch.split(tensor, counts.tolist())]), centres

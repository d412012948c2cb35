"""Images as the published network takes them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from reloc_core.interfaces import Dataset
from reloc_core.mapping.views import working_scale
from reloc_core.types import ImageArray

_SAMPLED = 200  # images that colour statistics are taken from
_LEAST = 32  # px of either side, for the strides of the network


@dataclass(frozen=True)
class Colors:
    """Channel statistics of a scene, part of the network's input.

    Attributes:
        mean: (3,) RGB in 0..1.
        deviation: (3,).
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> Colors:
        """Statistics over (at most 200 of) the images of a dataset."""
        step = max(len(dataset) // _SAMPLED, 1)
        sums = np.zeros((2, 3))
        pixels = 0
        for i in range(0, len(dataset), step):
            image = dataset[i].image.reshape(-1, 3) / 255.0
            sums += np.stack([image.sum(0), (image * image).sum(0)])
            pixels += len(image)
        mean = sums[0] / pixels
        return cls(mean, np.sqrt(np.maximum(sums[1] / pixels - mean**2, 1e-6)))

    def normalize(self, image: np.ndarray) -> Tensor:
        """(3, H, W) float32 of an image (H, W, 3) in 0..1."""
        normal = (image - self.mean) / self.deviation
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32))


def resize(image: ImageArray, height: int) -> ImageArray:
    """The image with its shorter side scaled to `height`, aspect kept, antialiased."""
    factor = working_scale(*image.shape[:2], height)
    size = max(round(image.shape[1] * factor), _LEAST), max(round(image.shape[0] * factor), _LEAST)
    shrink = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=shrink), np.uint8)


def jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue of an image (H, W, 3) in 0..1, changed at random."""
    if strength == 0:
        return image
    brightness, contrast, saturation = rng.uniform(max(1 - strength, 0), 1 + strength, 3)
    changed = np.clip(image * brightness, 0, 1)
    changed = np.clip((changed - changed.mean()) * contrast + changed.mean(), 0, 1)
    hsv = cv2.cvtColor(changed.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * rng.uniform(-1, 1) * 0.4 * strength) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float64)

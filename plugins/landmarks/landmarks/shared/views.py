"""What images show of landmarks, and how they look."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reloc_core.features.vlad import vlad
from reloc_core.geometry import inverse, project, transform
from reloc_core.mapping import Features
from reloc_core.types import Camera, Float64Array, ImageArray

_GIVEN_BACK = 256  # images after which the memory of their descriptors is given back


def looks_of(features: Features, words: Tensor) -> Tensor:
    """(N, D) VLAD vectors of images by visual words (W, C)."""
    looks = torch.empty(len(features.frames), words.numel())
    with torch.inference_mode():
        parts = torch.from_numpy(features.descriptors).split(features.counts.tolist())
        for number, part in enumerate(parts):
            looks[number] = vlad(part, words)
            if number % _GIVEN_BACK == 0:
                features.release()
    return looks


def in_image(
    points: Float64Array, camera: Camera, world_from_cam: Float64Array,
    facing: np.ndarray | bool = True,
) -> tuple[np.ndarray, Float64Array]:  # fmt: skip
    """Those (K,) of points (L, 3) that an image shows, and their pixels (K, 2); `facing` (L,) masks."""
    pixels, front = project(camera, transform(inverse(world_from_cam), points))
    with np.errstate(invalid="ignore"):
        inside = ((pixels > 0) & (pixels < [camera.width, camera.height])).all(1)
    (chosen,) = np.nonzero(front & inside & facing)
    return chosen, pixels[chosen]


def joined_colors(before: ImageArray | None, added: ImageArray | None) -> ImageArray | None:
    """Colours of a map with further landmarks; None where those of the others are not known."""
    return None if before is None or added is None else np.concatenate([before, added])

"""SIFT key points with square-root descriptors, by OpenCV.

Slower than XFeat and surer about where a key point lies: the choice for photographs that are few and far
apart (Lowe, IJCV 2004; descriptors: Arandjelovic and Zisserman, CVPR 2012).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from reloc_core.features.keypoints import SMALLEST, Keypoints
from reloc_core.mapping.views import working_grey
from reloc_core.types import ImageArray

CHANNELS = 128
_CONTRAST = 0.02  # half of OpenCV's: as many key points as others' implementations find
_NOISE_PX, _NOISE_OF_SIZE = 0.25, 0.042
"""Standard deviation of a key point's place: in pixels, and over its size. As held-out mapping images of a
street, a toy, a terrace and a castle have it."""


class SiftDetector:
    """Same interface as `KeypointDetector`.

    Args:
        resolution: images are scaled so that their shorter side has this many pixels; smaller ones stay.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def detect(self, images: Sequence[ImageArray], count: int) -> list[Keypoints]:
        """The `count` largest key points of each image: the finest ones are the least often found again."""
        return [self._one(image, count) for image in images]

    def _one(self, image: ImageArray, count: int) -> Keypoints:
        grey, scale = working_grey(image, min(self.resolution, *image.shape[:2]), least=SMALLEST)
        # By default OpenCV's key points lie a quarter of a pixel to the lower right.
        sift = cv2.SIFT.create(0, contrastThreshold=_CONTRAST, enable_precise_upscale=True)
        found, descriptors = sift.detectAndCompute(grey, None)
        if not found:
            return Keypoints(np.zeros((0, 2)), torch.zeros(0), torch.zeros(0, CHANNELS))
        order = np.argsort([-k.size for k in found], kind="stable")[:count]
        pixels = np.array([found[i].pt for i in order], np.float64)
        size = np.array([found[i].size for i in order], np.float64)
        strength = np.array([found[i].response for i in order], np.float32)
        root = np.sqrt(descriptors[order] / np.maximum(descriptors[order].sum(1)[:, None], 1e-9))
        return Keypoints(
            (pixels + 0.5) * np.array(scale) - 0.5,
            torch.from_numpy(strength),
            torch.from_numpy(root.astype(np.float32)),
            np.hypot(_NOISE_PX, _NOISE_OF_SIZE * size) * float(np.mean(scale)),
        )

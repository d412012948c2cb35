"""How sharp a photograph is."""

from __future__ import annotations

import cv2
import numpy as np

from reloc_core.types import ImageArray

WIDTH = 320
"""Of the small grey picture that motion and sharpness are measured in."""


def small_grey(image: ImageArray) -> ImageArray:
    """Grey picture of `WIDTH` pixels, or smaller."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = WIDTH / grey.shape[1]
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.uint8)


def sharpness_of(grey: ImageArray) -> float:
    """Variance of the Laplacian of a small grey picture."""
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())

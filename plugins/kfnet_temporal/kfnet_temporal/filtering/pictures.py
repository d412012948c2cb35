"""Pictures of one filter step for reports and videos."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.filtering.kalman import State
from kfnet_temporal.filtering.tracker import Step
from reloc_core.types import ImageArray

_WIDTH = 240
_STD_RANGE = (0.005, 1.0)


def step_pictures(image: ImageArray, step: Step, output: float = 1.0) -> dict[str, ImageArray]:
    """Titled pictures: coordinates before and after, noises, flow, consistency.

    Args:
        image: of the frame.
        step: of the filter.
        output: factor on all variances, from the filter's to those of real errors.
    """
    known = step.posterior.known & step.measured.known
    values = step.posterior.mean[:, known] if bool(known.any()) else torch.zeros(3, 1)
    low, high = values.quantile(0.02, 1), values.quantile(0.98, 1)
    pictures = {
        "measured coordinates": coordinates(step.measured, low, high),
        "filtered coordinates": coordinates(step.posterior, low, high),
        "measured std, 0.5 cm to 1 m": deviation((step.measured.variance * output).sqrt()),
        "filtered std": deviation((step.posterior.variance * output).sqrt()),
    }
    if step.motion is not None and step.process_std is not None and step.rejected is not None:
        pictures["process noise"] = deviation(step.process_std * output**0.5)
        pictures["flow from the last frame"] = flow_arrows(image, step.motion.flow)
        pictures["cells that failed the test (red)"] = rejected_cells(image, step.rejected)
    return {title: _sized(p) for title, p in pictures.items()}


def coordinates(state: State, low: Tensor, high: Tensor) -> ImageArray:
    """Scene coordinates as colours; x, y, z from `low` to `high` are red, green, blue."""
    scaled = (state.mean - low[:, None, None]) / (high - low).clamp_min(1e-6)[:, None, None]
    rgb = (scaled.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    rgb[~state.known.cpu().numpy()] = 0
    return np.ascontiguousarray(rgb)


def deviation(std: Tensor) -> ImageArray:
    """Standard deviations in metres on a logarithmic colour scale; black is no information."""
    low, high = np.log(_STD_RANGE)
    known = torch.isfinite(std).cpu().numpy()
    level = (std.clamp(*_STD_RANGE).log() - low) / (high - low)
    colours = cv2.applyColorMap((level * 255).byte().cpu().numpy(), cv2.COLORMAP_VIRIDIS)
    colours[~known] = 0
    return np.asarray(colours[..., ::-1], np.uint8)


def flow_arrows(image: ImageArray, flow: Tensor) -> ImageArray:
    """Lines from cells to where they were in the previous frame, over the image."""
    height, width = flow.shape[-2:]
    scale, every = 8, 4
    canvas = cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_AREA)
    canvas = (canvas * 0.6).astype(np.uint8)
    field = flow.cpu().numpy()
    for y in range(every // 2, height, every):
        for x in range(every // 2, width, every):
            a = (int((x + 0.5) * scale), int((y + 0.5) * scale))
            b = (int(a[0] + field[0, y, x] * scale), int(a[1] + field[1, y, x] * scale))
            cv2.line(canvas, a, b, (255, 220, 60), 1, cv2.LINE_AA)
            cv2.circle(canvas, a, 1, (255, 80, 40), -1, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)


def rejected_cells(image: ImageArray, rejected: Tensor) -> ImageArray:
    """The image with the cells tinted whose innovation failed the test."""
    height, width = rejected.shape
    canvas = cv2.resize(image, (width * 8, height * 8), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(
        rejected.cpu().numpy().astype(np.uint8), (width * 8, height * 8),
        interpolation=cv2.INTER_NEAREST,
    ).astype(bool)  # fmt: skip
    canvas[mask] = canvas[mask] // 2 + np.array([127, 10, 10], np.uint8)
    return np.asarray(canvas, np.uint8)


def _sized(picture: ImageArray) -> ImageArray:
    height = max(1, round(picture.shape[0] * _WIDTH / picture.shape[1]))
    return np.asarray(
        cv2.resize(picture, (_WIDTH, height), interpolation=cv2.INTER_NEAREST), np.uint8
    )

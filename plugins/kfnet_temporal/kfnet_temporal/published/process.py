"""The published process: OFlowNet between two images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kfnet_temporal.common.grid import FeatureGrid
from kfnet_temporal.filtering.kalman import sample, sample_positions
from kfnet_temporal.filtering.process import Motion, Process, similarity_along
from kfnet_temporal.published.augment import corner_pixels, scaled_rgb, scaled_size
from kfnet_temporal.published.oflownet import WINDOW, OFlowNet
from reloc_core.types import ImageArray, Query


class OflowProcess(Process):
    """Flow and process noise by OFlowNet, with the interface of `FlowProcess`.

    Args:
        resolution: length of the images' shorter side in pixels.
        min_std: metres; smallest noise.
        network: OFlowNet, or one with its interface.
    """

    refine = False

    def __init__(self, resolution: int, min_std: float, network: OFlowNet | None = None) -> None:
        super().__init__()
        self.resolution, self.min_std = resolution, min_std
        self.network = network or OFlowNet()
        # Calibrates the logarithm of the network's noise; published: the identity.
        self.noise = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.noise.weight)
        assert self.noise.bias is not None
        nn.init.zeros_(self.noise.bias)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.parameters()).device

    def motion(
        self, previous: Tensor, current: Tensor, images: tuple[ImageArray, ImageArray] | None = None
    ) -> Motion:
        """Backward flow from the current frame to the previous one, from features (32, h, w)."""
        device = previous.device
        flow, std = self.network(previous[None].to(self.device), current[None].to(self.device))
        flow, std = flow[0].to(device), std[0].to(device)
        return Motion(flow, std.log()[None], similarity_along(previous, current, flow))

    def noise_std(self, motion: Motion, slope: Tensor) -> Tensor:
        """Process noise (h, w) in metres."""
        log_std: Tensor = self.noise(motion.cues[None].to(self.device))[0, 0].to(slope.device)
        return log_std.clamp(-12, 3).exp() + self.min_std


class OflowExtractor:
    """Features of images by OFlowNet, on the published grid; remembers the last image.

    Args:
        process: whose network describes the images.
    """

    def __init__(self, process: OflowProcess) -> None:
        self.process = process
        self.resolution = process.resolution
        self._last: tuple[ImageArray, FeatureGrid] | None = None

    @torch.inference_mode()
    def __call__(self, query: Query) -> FeatureGrid:
        """Features of a query's image."""
        if self._last is not None and self._last[0] is query.image:
            return self._last[1]
        rgb = scaled_rgb(query.image, self.resolution)
        tensor = torch.from_numpy(rgb).permute(2, 0, 1).float()[None].to(self.process.device)
        features = self.process.network.features(tensor)[0].cpu()
        height, width = query.image.shape[:2]
        pixels, _ = corner_pixels((height, width), self.resolution)
        grey = np.asarray(rgb.mean(2), np.uint8)
        full = np.array([width, height], np.float64)
        scale = full / scaled_size(width, height, self.resolution)
        grid = FeatureGrid(features, pixels, grey, float(grey.std()), scale)
        self._last = (query.image, grid)
        return grid


def whole_window(known: Tensor) -> Tensor:
    """Cells (h, w) whose search window of 8 x 8 cells is known throughout, from a bool (h, w)."""
    half = WINDOW // 2
    padded = nn.functional.pad(known.float()[None, None], (half, half - 1, half, half - 1))
    inside = nn.functional.avg_pool2d(padded, WINDOW, 1)[0, 0]
    return inside > 1 - 1e-4


def warped(image: Tensor, flow: Tensor) -> Tensor:
    """The other image (C, h, w) at the cells' size, moved along a flow (2, h, w) in cells."""
    return sample(image, sample_positions(flow))

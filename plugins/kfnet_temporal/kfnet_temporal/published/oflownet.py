"""OFlowNet layer for layer (Zhou et al., KFNet, CVPR 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfnet_temporal.published.scoordnet import SameConv, normalize

WINDOW = 8
FEATURES: tuple[tuple[str, int, int], ...] = (
    ("feat1", 16, 1), ("feat2", 32, 2), ("feat3", 32, 1), ("feat4", 64, 2), ("feat5", 64, 1),
    ("feat6", 128, 2), ("feat7", 32, 1),
)  # fmt: skip
"""Name, output channels and stride; all 3 x 3."""
_SCALE = 0.01


class SameDeconv(nn.ConvTranspose2d):
    """3 x 3 transposed convolution of stride 2 with SAME padding: the output is exactly twice as large."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, 2)
        nn.init.xavier_uniform_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Without the last row and column, which SAME padding does not have."""
        return super().forward(x)[..., :-1, :-1]


class OFlowNet(nn.Module):
    """Flow between two images at 1/8 resolution and process noise; 691 698 parameters.

    Args:
        divide: the published widths are divided by this.
    """

    def __init__(self, divide: int = 1) -> None:
        super().__init__()
        self.make_features(divide)
        a, b, c, half = (width // divide for width in (32, 64, 128, 16))
        self.conv0 = SameConv(a, a, 3)
        self.conv1a, self.conv1b = SameConv(a, a, 3, 2), SameConv(a, a, 3)
        self.conv2a, self.conv2b = SameConv(a, b, 3, 2), SameConv(b, b, 3)
        self.conv3a, self.conv3b = SameConv(b, c, 3, 2), SameConv(c, c, 3)
        self.upconv2, self.conv4 = SameDeconv(c, b), SameConv(2 * b, b, 3)
        self.upconv1, self.conv5 = SameDeconv(b, a), SameConv(2 * a, a, 3)
        self.upconv0, self.conv6 = SameDeconv(a, half), SameConv(half + a, half, 3)
        self.prediction = SameConv(half, 1, 3)
        self.fc1, self.fc2 = nn.Linear(c, b), nn.Linear(b, a)
        self.uncertainty = nn.Linear(a, 1)
        for layer in (self.fc1, self.fc2, self.uncertainty):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def make_features(self, divide: int) -> None:
        """The layers that describe an image."""
        channels = 3
        for name, out, stride in FEATURES:
            self.add_module(name, SameConv(channels, out // divide, 3, stride))
            channels = out // divide

    def features(self, images: Tensor) -> Tensor:
        """(B, 32, H/8, W/8) unit vectors per cell of RGB images (B, 3, H, W) in 0..255."""
        x = normalize(images)
        for name, *_ in FEATURES[:-1]:
            x = F.relu(self.get_submodule(name)(x))
        return F.normalize(self.get_submodule(FEATURES[-1][0])(x), dim=1)

    def forward(self, previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Backward flow and process noise from features.

        Args:
            previous: (B, 32, h, w) of `features`.
            current: (B, 32, h, w).

        Returns:
            flow (B, 2, h, w) in cells, x first: cell p was at p + flow(p); offsets -4 .. 3 can be
            reached. Standard deviations (B, h, w) in metres.
        """
        batch, _, height, width = current.shape
        windows = difference_volume(previous, current)
        logits, code = self.regularize(windows)
        p = torch.softmax(logits.flatten(1), 1)
        axis = torch.arange(WINDOW, dtype=p.dtype, device=p.device) - WINDOW // 2
        oy, ox = torch.meshgrid(axis, axis, indexing="ij")
        flow = torch.stack([p @ ox.flatten(), p @ oy.flatten()], 1)
        x = F.relu(self.fc2(F.relu(self.fc1(code.flatten(1)))))
        std = _SCALE * torch.exp(self.uncertainty(x))[:, 0]
        flow = flow.view(batch, height, width, 2).permute(0, 3, 1, 2)
        return flow, std.view(batch, height, width)

    def regularize(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """The U-Net on windows (N, 32, 8, 8): logits (N, 1, 8, 8) and codes (N, 128, 1, 1)."""
        x0 = F.relu(self.conv0(windows))
        x1 = F.relu(self.conv1b(F.relu(self.conv1a(x0))))
        x2 = F.relu(self.conv2b(F.relu(self.conv2a(x1))))
        code = F.relu(self.conv3b(F.relu(self.conv3a(x2))))
        y = F.relu(self.conv4(torch.cat([F.relu(self.upconv2(code)), x2], 1)))
        y = F.relu(self.conv5(torch.cat([F.relu(self.upconv1(y)), x1], 1)))
        y = F.relu(self.conv6(torch.cat([F.relu(self.upconv0(y)), x0], 1)))
        return self.prediction(y), code


def difference_volume(previous: Tensor, current: Tensor) -> Tensor:
    """Differences (B h w, C, 8, 8) of each current cell and the previous cells around it.

    Rows are vertical offsets -4 .. 3, columns horizontal ones; previous cells outside count as zero.
    """
    batch, channels, height, width = current.shape
    half = WINDOW // 2
    padded = F.pad(previous, (half, half - 1, half, half - 1))
    windows = F.unfold(padded, WINDOW).view(batch, channels, WINDOW * WINDOW, height * width)
    volume = current.flatten(2)[:, :, None] - windows
    return volume.permute(0, 3, 1, 2).reshape(-1, channels, WINDOW, WINDOW)

"""A small absolute pose regressor on frozen features (after PoseNet, Kendall et al., ICCV 2015).

Images are seen through the frozen feature network only. Its features can be rendered by the field, so
the regressor learns from real views and from as many synthetic ones as wanted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nefes_refine.field.views import View
from nefes_refine.regressor import Regressor, orthogonal

INPUT = (30, 40)


class PoseNet(Regressor):
    """Feature maps to poses.

    Args:
        channels: of the features.
        center: (3,) mean position of the training cameras.
        spread: their standard deviation, scene units.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, channels: int, center: Tensor | None = None, spread: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3) if center is None else center.float())
        self.register_buffer("spread", torch.tensor(float(spread)))
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 48, 1), nn.ReLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(96, 64, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        rows, columns = ((n + 7) // 8 for n in INPUT)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * rows * columns, 256), nn.ReLU(), nn.Linear(256, 12)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Raw poses (B, 3, 4) from unit features (B, C, rows, columns) of any size."""
        if maps.shape[-2:] != INPUT:
            maps = F.interpolate(maps, INPUT, mode="area")
        numbers = self.head(self.encoder(maps))
        rotation = numbers[:, :9].unflatten(1, (3, 3)) + torch.eye(3, device=maps.device)
        position = self.center + self.spread * numbers[:, 9:]
        return torch.cat([rotation, position[..., None]], 2)

    def pose(self, view: View, features: Tensor) -> Tensor:
        """See `Regressor.pose`; looks at the features."""
        return orthogonal(self(features[None]))[0]


def pose_loss(predicted: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """Mean squared error of rotation matrices and of positions in units of their spread."""
    rotation = (predicted[..., :3] - target[..., :3]).square().sum((1, 2))
    position = ((predicted[..., 3] - target[..., 3]) / spread).square().sum(1)
    return (rotation + position).mean()

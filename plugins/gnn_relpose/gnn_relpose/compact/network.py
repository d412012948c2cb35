"""The network of RelPose-GNN on frozen features in place of ResNet-34.

Nodes are images, seen through a few convolutions over their XFeat features; no matches, depths, intrinsics
or poses enter. Edges start from the vectors of their two images and go through the published layer; a
linear head on each edge gives the relative pose, a difference of pose vectors (`shared.vectors`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnn_relpose.compact.config import NetworkConfig
from gnn_relpose.shared.layers import GnnLayer
from reloc_core.features.xfeat import CHANNELS

GRID = (15, 20)  # rows and columns that the features of any image are averaged to
_LOG_SCALE = 4.0  # largest absolute logarithm of a predicted deviation


class CompactNetwork(nn.Module):
    """See the module docstring."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        rows, columns = ((n + 3) // 4 for n in GRID)
        self.encoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 48, 1), nn.ReLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(96 * rows * columns, width), nn.LayerNorm(width),
        )  # fmt: skip
        self.proj_edge = nn.Linear(2 * width, width)
        self.gnn1 = GnnLayer(width, config.scatter)
        self.fc_xyz_R = nn.Linear(width, 3)
        self.fc_wpqr_R = nn.Linear(width, 3)
        self.log_scale = nn.Linear(width, 2)
        # PyTorch's own initialisation shrinks what passes eight layers to nothing, which the published
        # training has a hundred thousand steps to make good.
        layer = self.gnn1
        for part in (self.proj_edge, *layer.mlp, *layer.mlp_updating, *layer.edge_model.edge_mlp):
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)
        with torch.no_grad():
            self.log_scale.weight.mul_(0.1)
            self.log_scale.bias.copy_(torch.tensor([-1.0, -3.0]))

    def nodes(self, maps: Tensor) -> Tensor:
        """Node vectors (N, C) of feature maps (N, 64, rows, columns) of any size."""
        if maps.shape[-2:] != GRID:
            maps = pooled(maps)
        vectors: Tensor = self.encoder(maps)
        return vectors

    def relative(self, nodes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Relative poses of all edges and how wrong they may be.

        Args:
            nodes: (N, C).
            index: (2, E) source and target nodes.

        Returns:
            pose vectors (E, 6), source minus target, and logarithms (E, 2) of the expected absolute
            errors of translation and rotation.
        """
        source, target = index
        low, high = index.min(0).values, index.max(0).values
        edges = torch.relu(self.proj_edge(torch.cat([nodes[low], nodes[high]], -1)))
        for _ in range(self.config.recursions):
            if self.config.message_passing:
                nodes, edges = self.gnn1(nodes, edges, index)
                nodes = torch.relu(nodes)
            else:
                edges = self.gnn1.edge_model(nodes[source], nodes[target], edges)
            edges = torch.relu(edges)
        edges = F.dropout(edges, self.config.dropout, self.training)
        poses = torch.cat([self.fc_xyz_R(edges), self.fc_wpqr_R(edges)], -1)
        # The errors are learned beside the poses, not at their cost.
        return poses, self.log_scale(edges.detach()).clamp(-_LOG_SCALE, _LOG_SCALE)


def pooled(maps: Tensor) -> Tensor:
    """Feature maps (N, C, rows, columns) averaged to the grid."""
    return F.adaptive_avg_pool2d(maps, GRID)

"""The message-passing layer of RelPose-GNN (Turkoglu et al., 3DV 2021), with its parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnn_relpose.shared.scatter import scatter_mean


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class ChannelAttention(nn.Module):
    """Feature-wise non-local block: mixes the channels of one message."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Linear(channels, channels // 8)
        self.theta = nn.Linear(channels, channels // 8)
        self.phi = nn.Linear(channels, channels // 8)
        self.W = nn.Linear(channels // 8, channels)

    def forward(self, message: Tensor) -> Tensor:
        """(E, C) to (E, C)."""
        values, theta, phi = self.g(message), self.theta(message), self.phi(message)
        mixing = torch.softmax(phi[:, :, None] * theta[:, None, :], dim=-1)
        mixed: Tensor = self.W((mixing @ values[..., None])[..., 0])
        return message + mixed


class EdgeModel(nn.Module):
    """The edge update F_e([source; target; edge])."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edge_mlp = mlp(3 * channels, channels, channels)

    def forward(self, source: Tensor, target: Tensor, edge: Tensor) -> Tensor:
        """(E, C) each, to (E, C)."""
        updated: Tensor = self.edge_mlp(torch.cat([source, target, edge], -1))
        return updated


class GnnLayer(nn.Module):
    """Edge update, message with channel attention, mean over incoming edges, node update.

    Args:
        channels: width of node and edge vectors; a multiple of 8.
        backend: see `scatter`.
    """

    def __init__(self, channels: int, backend: str = "auto") -> None:
        super().__init__()
        self.mlp = mlp(2 * channels, channels, channels)
        self.mlp_updating = mlp(2 * channels, channels, channels)
        self.edge_model = EdgeModel(channels)
        self.att = ChannelAttention(channels)
        self.backend = backend

    def forward(self, nodes: Tensor, edges: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """One round; the outputs are not activated.

        Args:
            nodes: (N, C).
            edges: (E, C).
            index: (2, E) source and target nodes.
        """
        source, target = index
        updated = self.edge_model(nodes[source], nodes[target], edges)
        message = self.att(self.mlp(torch.cat([nodes[source], updated], -1)))
        received = scatter_mean(message, target, len(nodes), self.backend)
        return self.mlp_updating(torch.cat([nodes, received], -1)), updated

"""RelPose-GNN as published (Turkoglu et al., 3DV 2021): network and checkpoint importer.

The relative pose of an edge is the difference of two pose vectors (`shared.vectors`), source minus target;
the query's pose is a neighbour's vector minus that.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnn_relpose.published.resnet import ResNet34
from gnn_relpose.shared.layers import GnnLayer
from gnn_relpose.shared.topology import nearest_edges
from reloc_core.errors import MapError
from reloc_core.features.weights import load_strictly, read_state_dict

_UNUSED = "gnn2."  # in official files of 7-Scenes; never called


class PublishedNetwork(nn.Module):
    """ResNet-34 nodes, edge projections, one message-passing layer applied several times, linear heads.

    Args:
        channels: 2048 (published) or 1024 ("R2").
        recursions: 3 (7-Scenes) or 2 (Cambridge).
        neighbours: edges from the k nearest nodes in feature space (Cambridge: 4); 0 uses all pairs.
        dropout: before the heads. The published code leaves it on at test time.
        scatter: backend of the aggregation.
    """

    def __init__(
        self,
        channels: int = 2048,
        recursions: int = 3,
        neighbours: int = 0,
        dropout: float = 0.5,
        scatter: str = "auto",
    ) -> None:
        super().__init__()
        self.recursions, self.neighbours, self.droprate = recursions, neighbours, dropout
        self.feature_extractor = ResNet34(channels)
        self.proj_edge = nn.Linear(2 * channels, channels)
        self.gnn1 = GnnLayer(channels, scatter)
        # Absolute heads: in the files, without loss and unused.
        self.fc_xyz = nn.Linear(channels, 3)
        self.fc_wpqr = nn.Linear(channels, 3)
        self.fc_xyz_R = nn.Linear(channels, 3)
        self.fc_wpqr_R = nn.Linear(channels, 3)
        heads = (self.fc_xyz, self.fc_wpqr, self.fc_xyz_R, self.fc_wpqr_R)
        for layer in (self.feature_extractor.fc, self.proj_edge, *heads):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def nodes(self, images: Tensor) -> Tensor:
        """Node vectors (N, C) of normalised images (N, 3, H, W)."""
        vectors: Tensor = self.feature_extractor(images)
        return vectors

    def relative(
        self, nodes: Tensor, index: Tensor, graph: Tensor, dropping: bool
    ) -> tuple[Tensor, Tensor]:
        """Relative pose vectors (E, 6) and their edges (2, E).

        Args:
            nodes: (N, C).
            index: (2, E) all pairs; replaced by nearest neighbours where the network uses those.
            graph: (N,) graph of each node.
            dropping: whether dropout is active.
        """
        if self.neighbours:
            index = nearest_edges(nodes, graph, self.neighbours)
        low, high = index.min(0).values, index.max(0).values
        edges = torch.relu(self.proj_edge(torch.cat([nodes[low], nodes[high]], -1)))
        for _ in range(self.recursions):
            nodes, edges = self.gnn1(nodes, edges, index)
            nodes, edges = torch.relu(nodes), torch.relu(edges)
        edges = F.dropout(edges, self.droprate, dropping)
        return torch.cat([self.fc_xyz_R(edges), self.fc_wpqr_R(edges)], -1), index


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The network's tensors of an official checkpoint, without the module that is never called.

    Raises:
        MapError: no such file, or not one of RelPose-GNN.
    """
    state = read_tensors(path)
    state = {k: v for k, v in state.items() if not k.startswith(_UNUSED)}
    if "proj_edge.bias" not in state:
        raise MapError(f"{path} is no RelPose-GNN checkpoint: it lacks 'proj_edge.bias'.")
    return state


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a `.pth.tar` file; see `reloc_core.features.weights.read_state_dict`."""
    return read_state_dict(path, "RelPose-GNN checkpoint")


def load_checkpoint(network: PublishedNetwork, path: Path | str) -> None:
    """Load an official checkpoint by parameter names.

    Raises:
        MapError: names the first tensor that does not fit, such as one of another width.
    """
    state = read_checkpoint(path)
    width = len(state["proj_edge.bias"])
    if width != network.proj_edge.out_features:
        raise MapError(
            f"{path} has {width} channels: set estimator.network.channels={width} and train or import "
            "again."
        )
    load_strictly(network, state, "RelPose-GNN checkpoint")


def load_node_weights(network: PublishedNetwork, path: Path | str) -> None:
    """ImageNet weights of torchvision's ResNet-34 for the nodes; its last layer is not used.

    Raises:
        MapError: no such file, or another network.
    """
    state = read_state_dict(path, "ResNet-34 of torchvision")
    own = network.feature_extractor.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith("fc.")}
    kept |= {k: v for k, v in own.items() if k.startswith("fc.")}
    load_strictly(network.feature_extractor, kept, "ResNet-34 of torchvision")

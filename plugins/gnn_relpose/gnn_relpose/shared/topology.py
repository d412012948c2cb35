"""Edges of small graphs, batched by shifting indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fully_connected(nodes: int) -> Tensor:
    """(2, nodes (nodes - 1)) source and target of all directed edges, in the published order.

    First the pairs (a, a + 1), then (a, a + 2) and so on, then the same pairs reversed.
    """
    pairs = [(a, a + gap) for gap in range(1, nodes) for a in range(nodes - gap)]
    forward = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return torch.cat([forward, forward.flip(0)], 1)


def batch_edges(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Fully connected edges of several graphs, and the graph number of each node.

    Returns:
        edges (2, E) and graph (N,).
    """
    edges, start = [], 0
    for size in sizes:
        edges.append(fully_connected(size) + start)
        start += size
    graph = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.cat(edges, 1), graph


def nearest_edges(features: Tensor, graph: Tensor, k: int) -> Tensor:
    """Edges to each node from its k nearest others of the same graph in feature space.

    Ordered by receiving node, then by distance; not differentiated. Nodes of graphs with fewer than
    k + 1 nodes receive edges from all the others.

    Args:
        features: (N, C).
        graph: (N,) graph number of each node.
        k: neighbours.

    Returns:
        (2, E) source and target.
    """
    with torch.no_grad():
        distance = torch.cdist(features, features)
        distance = distance.masked_fill(graph[:, None] != graph[None], torch.inf)
        distance.fill_diagonal_(torch.inf)
        nearest, source = distance.topk(min(k, len(features) - 1), dim=1, largest=False)
        target = torch.arange(len(features), device=features.device)[:, None].expand_as(source)
        kept = nearest.isfinite()
        return torch.stack([source[kept], target[kept]])

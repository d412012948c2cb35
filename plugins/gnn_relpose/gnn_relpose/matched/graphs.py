"""From references and matches to batches for the network, and their augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.matched.align import Matches
from gnn_relpose.matched.config import AugmentConfig
from gnn_relpose.matched.network import GraphBatch
from gnn_relpose.matched.scene import Pairs, Scene
from gnn_relpose.shared.poses import Pose, exp_rotation
from gnn_relpose.shared.topology import batch_edges
from reloc_core.geometry import inverse
from reloc_core.types import Float64Array


@dataclass(frozen=True)
class Graph:
    """One query and its references, as arrays.

    Attributes:
        pooled: (n + 1, 128) of the query and the references.
        world_from_ref: (n, 4, 4).
        rays: (n, K, 2) of the references' cells.
        inverse_depth: (n, K).
        seen: (n, K, 2) rays of their matches in the query.
        stats: (n, K, 3) of the matches.
        depth: of the scene around, the unit of translations in the network.
        world_from_cam: (4, 4) of the query, or None.
        genuine: False for an image that shows nothing of the scene.
    """

    pooled: np.ndarray
    world_from_ref: Float64Array
    rays: np.ndarray
    inverse_depth: np.ndarray
    seen: np.ndarray
    stats: np.ndarray
    depth: float
    world_from_cam: Float64Array | None = None
    genuine: bool = True


def scene_graph(
    scene: Scene,
    references: np.ndarray,
    pooled: np.ndarray,
    seen: np.ndarray,
    stats: np.ndarray,
    depths: np.ndarray | None = None,
) -> Graph:
    """The graph of an image and some references of a scene, with the scene's `depths` or others."""
    inverse_depth = (scene.inverse_depth if depths is None else depths)[references]
    known = inverse_depth[inverse_depth > 0]
    return Graph(
        np.concatenate([pooled[None], scene.pooled[references]]),
        scene.poses[references],
        scene.rays[references],
        inverse_depth,
        seen,
        stats,
        float(1 / np.median(known)) if len(known) else scene.depth,
    )


def training_graph(scene: Scene, pairs: Pairs, row: int, columns: np.ndarray) -> Graph:
    """The graph of a training query and some of its candidates."""
    query = int(pairs.queries[row])
    graph = scene_graph(
        scene,
        pairs.candidates[row, columns],
        pairs.pooled[row],
        pairs.seen[row, columns].astype(np.float32),
        pairs.stats[row, columns].astype(np.float32),
        pairs.inverse_depth,
    )
    return replace(graph, world_from_cam=scene.poses[query], genuine=bool(pairs.genuine[row]))


def make_batch(graphs: Sequence[Graph]) -> tuple[GraphBatch, Pose | None]:
    """Concatenate graphs; the second result holds the true poses of queries in references if known."""
    index, graph = batch_edges([len(g.pooled) for g in graphs])
    starts = np.cumsum([0] + [len(g.pooled) for g in graphs])[:-1]
    is_query = torch.zeros(len(graph), dtype=torch.bool)
    is_query[torch.from_numpy(starts)] = True
    # Of the edges into queries, ordered by reference: that is the order of the arrays.
    into = is_query[index[1]].nonzero()[:, 0]
    query_edges = into[index[0, into].argsort()]
    relative, targets = [], []
    for g in graphs:
        base = inverse(g.world_from_ref[0])
        poses = np.concatenate([np.eye(4)[None], base @ g.world_from_ref])
        poses[:, :3, 3] /= g.depth
        relative.append(poses)
        if g.world_from_cam is not None:
            target = inverse(g.world_from_ref) @ g.world_from_cam
            target[:, :3, 3] /= g.depth
            targets.append(target)
    depth = np.concatenate([np.full(len(g.rays), g.depth) for g in graphs])
    rays = np.concatenate([g.rays for g in graphs])
    seen = np.concatenate([g.seen for g in graphs])
    inverse_depth = np.concatenate([g.inverse_depth for g in graphs]) * depth[:, None]
    stats = np.concatenate([g.stats for g in graphs])
    present = np.isfinite(rays).all(-1) & np.isfinite(seen).all(-1)
    valid = present & (inverse_depth > 1e-3)
    rays, seen = np.where(present[..., None], rays, 0), np.where(present[..., None], seen, 0)
    batch = GraphBatch(
        nodes=_float(np.concatenate([g.pooled for g in graphs])),
        graph=graph,
        index=index,
        kept=torch.ones(index.shape[1]),
        query_edges=query_edges,
        poses=_pose(np.concatenate(relative)),
        cells=cell_features(
            _float(rays), _float(inverse_depth * valid), _float(seen), _float(stats)
        ),
        matches=_matches(_float(rays), _float(inverse_depth), _float(seen), _float(valid)),
    )
    return batch, _pose(np.concatenate(targets)) if targets else None


def cell_features(rays: Tensor, inverse_depth: Tensor, seen: Tensor, stats: Tensor) -> Tensor:
    """(Q, K, 11): ray, match, motion, inverse depth, whether it is known, statistics of the match."""
    known = (inverse_depth > 0).to(rays.dtype)
    numbers = torch.stack([inverse_depth.clamp(max=4), known], -1)
    sure = stats * stats.new_tensor([1.0, 10.0, 1.0])
    return torch.cat([rays, seen, 4 * (seen - rays), numbers, sure], -1)


def _matches(rays: Tensor, inverse_depth: Tensor, seen: Tensor, valid: Tensor) -> Matches:
    depth = valid / inverse_depth.clamp(min=1e-3)
    points = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * depth[..., None]
    return Matches(points, seen, valid)


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _pose(poses: Float64Array) -> Pose:
    return _float(poses[:, :3, :3]), _float(poses[:, :3, 3])


def augment(
    batch: GraphBatch, target: Pose, options: AugmentConfig, rng: torch.Generator
) -> tuple[GraphBatch, Pose, Tensor]:
    """Augmented batch, targets, and (Q,) 1 for edges whose matches were left as they are.

    Turning the query about its centre moves its rays by a homography and its pose by a rotation;
    mirroring negates x of all rays and conjugates all poses. Both are exact.
    """
    edges = batch.query_edges
    graph = batch.graph[batch.index[1, edges]]
    graphs = int(batch.graph[-1]) + 1
    matches, rotation, translation = batch.matches, target[0], target[1]
    rays, inverse_depth, seen, stats = _split(batch.cells)
    limits = torch.tensor([options.tilt_deg, options.tilt_deg, options.roll_deg]).deg2rad()
    turn = exp_rotation((2 * torch.rand(graphs, 3, generator=rng) - 1) * limits)[graph]
    direction = torch.cat([matches.seen, torch.ones_like(matches.seen[..., :1])], -1)
    turned = direction @ turn.transpose(-1, -2)
    seen = turned[..., :2] / turned[..., 2:].clamp(min=0.2)
    rotation = rotation @ turn.transpose(-1, -2)
    poses = batch.poses
    points = matches.points
    if options.mirror:
        flip = (torch.rand(graphs, generator=rng) < 0.5)[graph]
        sign = torch.where(flip, -1.0, 1.0)
        mirror = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)
        seen, rays = seen * mirror[:, None, :2], rays * mirror[:, None, :2]
        points, translation = points * mirror[:, None], translation * mirror
        rotation = rotation * mirror[:, :, None] * mirror[:, None, :]
        per_graph = torch.ones(graphs, 3).index_put((graph,), mirror)[batch.graph]
        poses = (
            poses[0] * per_graph[:, :, None] * per_graph[:, None, :],
            poses[1] * per_graph,
        )
    # Shuffled matches: nothing of the pair is left, and the edge must say so.
    genuine = torch.rand(len(edges), generator=rng) >= options.negatives
    order = torch.randperm(seen.shape[1], generator=rng)
    false = ~genuine[:, None, None]
    seen = torch.where(false, seen[:, order], seen)
    stats = torch.where(false, stats[:, order], stats)
    hidden = torch.rand(len(edges), 1, generator=rng) * options.cell_dropout
    shown = (torch.rand(matches.valid.shape, generator=rng) >= hidden).float()
    valid = matches.valid * shown
    cells = cell_features(rays, inverse_depth, seen, stats)
    dropped = _dropped_pairs(batch, options.edge_dropout, rng)
    moved = GraphBatch(
        batch.nodes,
        batch.graph,
        batch.index,
        batch.kept,
        edges,
        poses,
        cells,
        Matches(points, seen, valid),
    ).without(dropped)
    return moved, (rotation, translation), genuine.float()


def _split(cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stats = cells[..., 8:] / cells.new_tensor([1.0, 10.0, 1.0])
    return cells[..., :2], cells[..., 6], cells[..., 2:4], stats


def _dropped_pairs(batch: GraphBatch, chance: float, rng: torch.Generator) -> Tensor:
    """(E,) edges that are dropped, both directions of a pair alike."""
    source, target = batch.index
    size = len(batch.nodes)
    low, high = torch.minimum(source, target), torch.maximum(source, target)
    _, pair = torch.unique(low * size + high, return_inverse=True)
    lost = torch.rand(int(pair.max()) + 1, generator=rng) < chance
    return lost[pair]

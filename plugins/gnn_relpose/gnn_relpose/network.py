"""The compact graph network.

Nodes are images, edges are pairs. An edge from a reference to the query starts from the matched cells of
the pair, an edge between references from their known relative pose. Rounds of message passing
(`layers.GnnLayer`) refine both; each round ends with a relative pose per edge: the regressed motion,
then a weighted alignment of the cells whose weights the edge vector gives. Between rounds the edges of a
graph tell each other where they believe the query to be.

Translations are in depths of the scene, so networks serve scenes of any unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gnn_relpose.align import Matches, align, residuals
from gnn_relpose.config import NetworkConfig
from gnn_relpose.layers import GnnLayer, mlp
from gnn_relpose.poses import Pose, compose, difference, exp_rotation, perturb
from gnn_relpose.scatter import scatter_softmax, scatter_sum

CELL_FEATURES = 11
NODE_FEATURES = 128
_POSE_SCALES = (0.5, 1.0)  # of the tangents that networks read and write: radians, depths
_CONSENSUS_STEPS = 2


@dataclass(frozen=True)
class GraphBatch:
    """Several graphs, concatenated.

    Attributes:
        nodes: (N, 128) pooled features; the first node of each graph is its query.
        graph: (N,) graph of each node.
        index: (2, E) source and target of all directed edges.
        kept: (E,) float, 0 for edges that carry no messages.
        query_edges: (Q,) edges from references to queries, in order.
        poses: of the nodes relative to their graph's first reference, (N, 3, 3) and (N, 3), in depths
            of the scene; anything for queries.
        cells: (Q, K, 11) features of matched cells.
        matches: of the query edges.
    """

    nodes: Tensor
    graph: Tensor
    index: Tensor
    kept: Tensor
    query_edges: Tensor
    poses: Pose
    cells: Tensor
    matches: Matches

    def without(self, lost: Tensor) -> GraphBatch:
        """The batch with edges (E,) that carry no messages."""
        return replace(self, kept=self.kept * (1 - lost.to(self.kept.dtype)))


@dataclass(frozen=True)
class EdgePoses:
    """Poses of queries in their references after one round.

    Attributes:
        regressed: read from the edge vectors.
        aligned: after the alignment; the same without alignment.
        log_deviation: (Q, 2) logarithms of the standard deviations of rotation in radians and of
            translation in depths, per axis.
        certainty: (Q,) logit that the pose is right.
        weights: (Q, K) of the cells.
    """

    regressed: Pose
    aligned: Pose
    log_deviation: Tensor
    certainty: Tensor
    weights: Tensor


class GraphNetwork(nn.Module):
    """See the module docstring."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, cell = config.channels, 48
        self.node_encoder = mlp(NODE_FEATURES, width, width)
        self.cell_encoder = nn.Sequential(mlp(CELL_FEATURES, cell, cell), nn.ReLU())
        self.cell_attention = nn.Linear(cell, 1)
        self.edge_encoder = mlp(3 * cell + 1, width, width)
        self.reference_encoder = mlp(7, width, width)
        self.backward_direction = nn.Parameter(torch.zeros(width))
        self.gnn1 = GnnLayer(width, config.scatter)
        self.node_norm = nn.LayerNorm(width)
        self.edge_norm = nn.LayerNorm(width)
        self.consensus_encoder = mlp(6 + 2, width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.pose_head = mlp(width, width, 6)
        self.cell_context = nn.Linear(width, cell)
        self.cell_head = nn.Sequential(nn.Linear(2 * cell + 3, 48), nn.ReLU(), nn.Linear(48, 1))
        self.quality_head = mlp(width + 4, width, 3)
        self.log_scale = nn.Parameter(torch.tensor([1.6] * config.recursions))
        with torch.no_grad():
            for head in (self.pose_head, self.quality_head, self.consensus_encoder):
                head[2].weight.mul_(0.1)
                head[2].bias.zero_()
            self.quality_head[2].bias.copy_(torch.tensor([-3.5, -2.5, 0.0]))

    def forward(self, batch: GraphBatch) -> list[EdgePoses]:
        """Relative poses of the query edges after every round, the last one last."""
        queries = batch.query_edges
        nodes = self.node_encoder(batch.nodes)
        cells = self.cell_encoder(batch.cells)
        edges = self._encode_edges(batch, cells)
        pose: Pose | None = None
        rounds: list[EdgePoses] = []
        for recursion in range(self.config.recursions):
            if self.config.message_passing and rounds:
                pose, told = self._consensus(batch, rounds[-1])
                edges = edges.index_add(0, queries, self.consensus_encoder(told))
            nodes, edges = self._exchange(batch, nodes, edges)
            found = self._poses(batch, cells, self.dropout(edges[queries]), pose, recursion)
            pose = found.aligned
            rounds.append(found)
        return rounds

    def _encode_edges(self, batch: GraphBatch, cells: Tensor) -> Tensor:
        """Initial vectors (E, C) of all edges."""
        source, target = batch.index
        valid = batch.matches.valid[..., None]
        count = valid.sum(1).clamp(min=1.0)
        logits = self.cell_attention(cells).masked_fill(valid == 0, -1e4)
        attended = (torch.softmax(logits, 1) * cells).sum(1)
        mean = (valid * cells).sum(1) / count
        top = (valid * cells).max(1).values
        matched = self.edge_encoder(torch.cat([attended, mean, top, count.log() / 6], -1))
        # Poses of queries are unknown: edges at queries get the matched cells in place of a pose.
        relative = difference(_rows(batch.poses, target), _rows(batch.poses, source))
        away = relative.norm(dim=-1, keepdim=True)
        edges = self.reference_encoder(torch.cat([relative, away], -1))
        at_query = torch.zeros(len(edges), 1, dtype=edges.dtype, device=edges.device)
        size = len(batch.nodes)
        forward = batch.query_edges
        at_query[forward] = 1
        pair = torch.full((size,), -1, device=edges.device)
        pair[source[forward]] = torch.arange(len(forward), device=edges.device)
        is_query = torch.zeros(size, dtype=torch.bool, device=edges.device)
        is_query[target[forward]] = True
        backward = is_query[source].nonzero()[:, 0]
        vectors = torch.zeros_like(edges).index_add(0, forward, matched)
        back = matched[pair[target[backward]]] + self.backward_direction
        vectors = vectors.index_add(0, backward, back)
        at_query[backward] = 1
        return torch.where(at_query > 0, vectors, edges)

    def _exchange(self, batch: GraphBatch, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """One residual round of the layer; without message passing nodes learn nothing."""
        kept = batch.kept > 0
        if not self.config.message_passing:
            source, target = batch.index
            update = self.gnn1.edge_model(nodes[source], nodes[target], self.edge_norm(edges))
            return nodes, edges + update
        # Edges that carry no messages are still updated; they are just not heard.
        source, target = batch.index
        normal_nodes, normal_edges = self.node_norm(nodes), self.edge_norm(edges)
        node_update, heard = self.gnn1(normal_nodes, normal_edges[kept], batch.index[:, kept])
        update = torch.zeros_like(edges)
        update[kept] = heard
        if not bool(kept.all()):
            deaf = ~kept
            update[deaf] = self.gnn1.edge_model(
                normal_nodes[source[deaf]], normal_nodes[target[deaf]], normal_edges[deaf]
            )
        return nodes + node_update, edges + update

    def _consensus(self, batch: GraphBatch, found: EdgePoses) -> tuple[Pose, Tensor]:
        """Where the edges of each graph together believe the query to be.

        Returns:
            that belief as a pose of the query in each edge's reference, and what an edge is told:
            (Q, 8) the way from its own belief to the common one, its certainty, and how many heard.
        """
        edges = batch.query_edges
        source, target = batch.index[:, edges]
        graph = batch.graph[target]
        graphs = int(batch.graph[-1]) + 1
        reference = _rows(batch.poses, source)
        beliefs = compose(reference, found.aligned)
        # The surest edge is the base; the others vote in its tangent.
        vote = found.certainty - 0.5 * found.log_deviation.sum(-1)
        vote = vote.masked_fill(batch.kept[edges] == 0, -30.0)
        order = vote.detach().argsort()
        surest = torch.zeros(graphs, dtype=torch.long, device=vote.device)
        surest[graph[order]] = order  # the last, largest one stays
        base = _rows(beliefs, surest)
        share = scatter_softmax(vote, graph, graphs)
        for _ in range(_CONSENSUS_STEPS):
            offsets = difference(_rows(base, graph), beliefs)
            scaled = offsets / _tangent_scale(offsets) / 0.1
            robust = share / (1 + (scaled * scaled).sum(-1)) ** 2
            total = scatter_sum(robust[:, None], graph, graphs, self.config.scatter)
            mean = scatter_sum(robust[:, None] * offsets, graph, graphs, self.config.scatter)
            base = perturb(base, mean / total.clamp(min=1e-9))
        common = _rows(base, graph)
        back = reference[0].transpose(-1, -2)
        in_reference = (
            back @ common[0],
            (back @ (common[1] - reference[1])[..., None])[..., 0],
        )
        way = difference(found.aligned, in_reference)
        way = (way / _tangent_scale(way) / 0.1).clamp(-5, 5)
        told = torch.cat(
            [way, found.certainty[:, None].clamp(-5, 5), total[graph].clamp(max=2)], -1
        )
        return in_reference, told

    def _poses(
        self, batch: GraphBatch, cells: Tensor, edges: Tensor, start: Pose | None, recursion: int
    ) -> EdgePoses:
        """Relative poses of the query edges, from a start or from scratch."""
        motion = self.pose_head(edges)
        motion = motion * _tangent_scale(motion)
        if start is None:
            regressed = (exp_rotation(motion[:, :3]), motion[:, 3:])
        else:
            regressed = perturb(start, 0.1 * motion)
        error, front, _ = residuals(regressed, batch.matches)
        misfit = (error * 20).clamp(-3, 3)
        context = self.cell_context(edges)[:, None].expand(-1, cells.shape[1], -1)
        size = misfit.norm(dim=-1, keepdim=True)
        logits = self.cell_head(torch.cat([cells, context, misfit, size], -1))[..., 0]
        weights = torch.sigmoid(logits) * batch.matches.valid
        aligned, steps = regressed, self.config.alignment_steps
        if steps:
            scale = self.log_scale[recursion].exp()
            aligned, information = align(regressed, batch.matches, weights, steps, scale)
            diagonal = information.diagonal(dim1=1, dim2=2)
            strength = (
                1 + torch.stack([diagonal[:, :3].mean(-1), diagonal[:, 3:].mean(-1)], -1)
            ).log()
        else:
            strength = weights.new_zeros(len(weights), 2)
        error, front, _ = residuals(aligned, batch.matches)
        fit = weights / (1 + (error * error).sum(-1) / 0.02**2)
        seen = batch.matches.valid.sum(1).clamp(min=1)
        quality = [strength / 10, (weights.sum(1) / seen)[:, None], (fit.sum(1) / seen)[:, None]]
        outputs = self.quality_head(torch.cat([edges, *quality], -1))
        return EdgePoses(regressed, aligned, outputs[:, :2].clamp(-9, 2), outputs[:, 2], weights)


def _rows(pose: Pose, index: Tensor) -> Pose:
    return pose[0][index], pose[1][index]


def _tangent_scale(like: Tensor) -> Tensor:
    rotation, translation = _POSE_SCALES
    return like.new_tensor([rotation] * 3 + [translation] * 3)

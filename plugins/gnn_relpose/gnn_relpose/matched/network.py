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

from gnn_relpose.matched.align import Matches, Prior, align, residuals
from gnn_relpose.matched.config import NetworkConfig
from gnn_relpose.shared.layers import GnnLayer, mlp
from gnn_relpose.shared.poses import Pose, compose, difference, exp_rotation, perturb
from gnn_relpose.shared.scatter import scatter_sum

CELL_FEATURES = 11
NODE_FEATURES = 128
_POSE_SCALES = (0.5, 1.0)  # of the tangents that networks read and write: radians, depths
_CONSENSUS_STEPS = 2
_AGREEMENT = 0.1  # tangents this far apart still agree, relative to the scales
_REFINEMENT = 0.1  # size of regressed corrections after the first round, relative to the first


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
        covariance: (Q, 6, 6) of the aligned pose's tangent, radians and depths.
        own_information: (Q, 6, 6) of what this edge alone saw in this round.
        certainty: (Q,) logit that the pose is right.
        weights: (Q, K) of the cells.
    """

    regressed: Pose
    aligned: Pose
    covariance: Tensor
    own_information: Tensor
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
        self.trust_head = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor([1.6] * config.recursions))
        with torch.no_grad():
            for head in (self.pose_head, self.quality_head, self.consensus_encoder):
                head[2].weight.mul_(0.1)
                head[2].bias.zero_()
            self.quality_head[2].bias.copy_(torch.tensor([1.0, 1.0, 0.0]))

    def forward(self, batch: GraphBatch) -> list[EdgePoses]:
        """Relative poses of the query edges after every round, the last one last."""
        queries = batch.query_edges
        nodes = self.node_encoder(batch.nodes)
        cells = self.cell_encoder(batch.cells)
        edges = self._encode_edges(batch, cells)
        prior: Prior | None = None
        rounds: list[EdgePoses] = []
        for recursion in range(self.config.recursions):
            if self.config.message_passing and rounds:
                prior, told = self._consensus(batch, rounds[-1])
                edges = edges.index_add(0, queries, self.consensus_encoder(told))
            nodes, edges = self._exchange(batch, nodes, edges)
            found = self._poses(batch, cells, self.dropout(edges[queries]), prior, recursion)
            prior = Prior(found.aligned, torch.zeros_like(found.covariance))
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

    def _consensus(self, batch: GraphBatch, found: EdgePoses) -> tuple[Prior, Tensor]:
        """Where the edges of each graph together believe the query to be.

        Tangents of a query's pose are the same in every reference, so information simply adds up.

        Returns:
            that belief in each edge's reference, and what an edge is told: (Q, 8) the way from its own
            belief to the common one, its certainty, and how much is heard in all.
        """
        edges = batch.query_edges
        source, target = batch.index[:, edges]
        graph = batch.graph[target]
        graphs = int(batch.graph[-1]) + 1
        reference = _rows(batch.poses, source)
        beliefs = compose(reference, found.aligned)
        heard = torch.sigmoid(found.certainty) * batch.kept[edges] + 1e-4
        base = _rows(beliefs, _medoids(beliefs, heard.detach(), graph, graphs))
        for _ in range(_CONSENSUS_STEPS):
            offsets = difference(_rows(base, graph), beliefs)
            scaled = offsets / _tangent_scale(offsets) / _AGREEMENT
            robust = heard / (1 + (scaled * scaled).sum(-1)) ** 2
            information = robust[:, None, None] * found.own_information
            pull = (information @ offsets[..., None])[..., 0]
            backend = self.config.scatter
            together = scatter_sum(information.flatten(1), graph, graphs, backend).unflatten(
                1, (6, 6)
            )
            base = perturb(
                base, torch.linalg.solve(together, scatter_sum(pull, graph, graphs, backend))
            )
        total = scatter_sum(robust[:, None], graph, graphs, self.config.scatter)
        common = _rows(base, graph)
        back = reference[0].transpose(-1, -2)
        in_reference = (
            back @ common[0],
            (back @ (common[1] - reference[1])[..., None])[..., 0],
        )
        way = difference(found.aligned, in_reference)
        way = (way / _tangent_scale(way) / _AGREEMENT).clamp(-5, 5)
        told = torch.cat([way, found.certainty[:, None].clamp(-5, 5), total[graph] / 4], -1)
        return Prior(in_reference, together[graph]), told

    def _poses(
        self, batch: GraphBatch, cells: Tensor, edges: Tensor, prior: Prior | None, recursion: int
    ) -> EdgePoses:
        """Relative poses of the query edges, from a prior or from scratch."""
        motion = self.pose_head(edges)
        motion = motion * _tangent_scale(motion)
        if prior is None:
            regressed = (exp_rotation(motion[:, :3]), motion[:, 3:])
        else:
            regressed = perturb(prior.pose, _REFINEMENT * motion)
            trust = torch.sigmoid(self.trust_head(edges))[..., None]
            prior = Prior(regressed, trust * prior.information)
        error, _, _ = residuals(regressed, batch.matches)
        misfit = (error * 20).clamp(-3, 3)
        context = self.cell_context(edges)[:, None].expand(-1, cells.shape[1], -1)
        size = misfit.norm(dim=-1, keepdim=True)
        logits = self.cell_head(torch.cat([cells, context, misfit, size], -1))[..., 0]
        weights = torch.sigmoid(logits) * batch.matches.valid
        scale = self.log_scale[recursion].exp()
        steps = self.config.alignment_steps
        aligned, own, total = align(regressed, batch.matches, weights, steps, scale, prior)
        covariance = torch.linalg.inv(total)
        spread = covariance.diagonal(dim1=1, dim2=2)
        strength = torch.stack([spread[:, :3].mean(-1), spread[:, 3:].mean(-1)], -1).log() / 10
        error, _, _ = residuals(aligned, batch.matches)
        fit = weights / (1 + (error * error).sum(-1) / 0.02**2)
        seen = batch.matches.valid.sum(1).clamp(min=1)
        quality = [strength, (weights.sum(1) / seen)[:, None], (fit.sum(1) / seen)[:, None]]
        outputs = self.quality_head(torch.cat([edges, *quality], -1))
        # Errors of neighbouring matches are alike: their information is less than it counts.
        factor = outputs[:, :2].clamp(-3, 6).exp().repeat_interleave(3, 1)
        covariance = covariance * factor[:, :, None] * factor[:, None, :]
        return EdgePoses(regressed, aligned, covariance, own, outputs[:, 2], weights)


def _medoids(poses: Pose, votes: Tensor, graph: Tensor, graphs: int) -> Tensor:
    """(G,) the pose of each graph that most votes agree with."""
    with torch.no_grad():
        one, other = (graph[:, None] == graph[None]).nonzero().unbind(1)
        apart = difference(_rows(poses, one), _rows(poses, other))
        square = ((apart / _tangent_scale(apart) / _AGREEMENT) ** 2).sum(-1)
        agreement = scatter_sum(votes[other] / (1 + square), one, len(graph), "native") * votes
        order = agreement.argsort()
        best = torch.zeros(graphs, dtype=torch.long, device=votes.device)
        for position in order.tolist():
            best[graph[position]] = position  # the last, largest one stays
        return best


def _rows(pose: Pose, index: Tensor) -> Pose:
    return pose[0][index], pose[1][index]


def _tangent_scale(like: Tensor) -> Tensor:
    rotation, translation = _POSE_SCALES
    return like.new_tensor([rotation] * 3 + [translation] * 3)

"""What the references of a graph say together, once the network has found where to look.

The network's last poses all carry what the other references told them, so averaging them gains nothing.
Here the matches of all references move one common pose; from there each reference aligns its own matches
alone. Those poses are nearly independent of each other and their information is their own, which is what
a solver can average.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gnn_relpose.matched.align import align, align_together, fits
from gnn_relpose.matched.network import EdgePoses, GraphBatch
from gnn_relpose.shared.poses import Pose, compose, invert

_SCALES = (4.0, 2.0, 1.0)  # of the robust loss, from coarse to fine, in usual errors of a match
_STEPS = 4  # of each
_FIT = 3.0  # usual errors of a match that still fits


@dataclass(frozen=True)
class Agreement:
    """Relative poses that rest on a common pose.

    Attributes:
        poses: of queries in references by each reference's own matches.
        information: (Q, 6, 6) of these, in units of the usual error of a match.
        support: (Q,) share of the reference's visible matches that fit the common pose.
        common: (Q,) the same over all references of the graph.
        fitting: (Q,) how many matches of all these references fit.
    """

    poses: Pose
    information: Tensor
    support: Tensor
    common: Tensor
    fitting: Tensor


def agreement(batch: GraphBatch, found: EdgePoses) -> Agreement:
    """Refine the last round of the network by what all references of each graph see.

    Starts from the belief, of all references of a graph, that most matches support.
    """
    source, target = batch.index[:, batch.query_edges]
    graph = batch.graph[target]
    reference = batch.poses[0][source], batch.poses[1][source]
    beliefs = compose(reference, found.aligned)
    start = _most_supported(batch, beliefs, reference, graph)
    weights = batch.matches.valid
    pose = start
    for scale in _SCALES:
        factor = weights.new_tensor(scale)
        pose = align_together(pose, batch.matches, weights, graph, _STEPS, factor)
    fine = weights.new_tensor(_SCALES[-1])
    own, information, _ = align(pose, batch.matches, weights, _STEPS, fine)
    fitting, visible = fits(pose, batch.matches, _FIT)
    fitted, shown = fitting.sum(1).float(), visible.sum(1).float()
    same = (graph[:, None] == graph[None]).float()
    fitting = same @ fitted
    return Agreement(
        own,
        information,
        fitted / shown.clamp(min=1),
        fitting / (same @ shown).clamp(min=1),
        fitting,
    )


def _most_supported(batch: GraphBatch, beliefs: Pose, reference: Pose, graph: Tensor) -> Pose:
    """Of each graph the belief that most matches of all its references fit, in every reference."""
    result = [beliefs[0].clone(), beliefs[1].clone()]
    back = invert(reference)
    for number in range(int(graph.max()) + 1):
        rows = (graph == number).nonzero()[:, 0]
        matches = type(batch.matches)(
            batch.matches.points[rows], batch.matches.seen[rows], batch.matches.valid[rows]
        )
        best, most = None, -1
        for row in rows.tolist():
            belief = beliefs[0][row].expand(len(rows), 3, 3), beliefs[1][row].expand(len(rows), 3)
            pose = compose((back[0][rows], back[1][rows]), belief)
            count = int(fits(pose, matches, 2 * _FIT)[0].sum())
            if count > most:
                best, most = pose, count
        assert best is not None
        result[0][rows], result[1][rows] = best
    return result[0], result[1]

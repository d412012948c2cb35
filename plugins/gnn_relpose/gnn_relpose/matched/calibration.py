"""How far the network's evidence is to be believed, measured on queries with known poses.

Training queries have references and depths from the other half of their scene only, and the poses that
count are aligned by matches alone, so their errors are those of new images. Transposed images stand for
images of other places.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.matched.agreement import Agreement, agreement
from gnn_relpose.matched.graphs import Graph, make_batch, training_graph
from gnn_relpose.matched.network import GraphNetwork
from gnn_relpose.matched.scene import Pairs, Scene
from gnn_relpose.shared.poses import difference
from reloc_core.geometry import orthonormalized, pose_minus
from reloc_core.interfaces import Run, Runtime
from reloc_core.solvers.config import AveragingConfig
from reloc_core.solvers.relative_poses import AveragingSolver
from reloc_core.types import Camera, Float64Array, RelativePoses

_QUERIES = 160  # of a scene
_BATCH = 8
_ENOUGH = 10  # localized queries below which the defaults stay
_TRIMMED = 0.02  # share of the largest errors that are left out as outliers
_ELSEWHERE = 25.0  # times the median of squared errors: not this room, but one that looks alike
_SUPPORT = (0.15, 0.3)  # a tipping point outside this is not believed
_STEEPNESS = 6.0
_CAMERA = Camera.pinhole(1.0, 1, 1)  # the solver of relative poses does not look at it


@dataclass(frozen=True)
class Calibration:
    """What a map knows about its errors.

    Attributes:
        variance: by which the inverse information of a reference's matches is multiplied.
        correlation: of the errors of different references, 0..1.
        support: share of fitting matches at which a pose is as likely right as wrong.
    """

    variance: float = 1.5
    correlation: float = 0.25
    support: float = 0.2

    def confidences(self, found: Agreement) -> Tensor:
        """(Q,) chances that the relative poses are right, by how many matches fit them."""
        both = torch.stack([found.support, found.common]).clamp(min=1e-6)
        return (1 / (1 + (self.support / both) ** _STEEPNESS)).prod(0)

    def metadata(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


def evidence(
    graph: Graph, found: Agreement, rows: slice, calibration: Calibration, names: tuple[str, ...]
) -> RelativePoses:
    """Relative poses of a graph, rows of `found`, in scene units."""
    references, depth = graph.world_from_ref, graph.depth
    poses = np.repeat(np.eye(4)[None], len(references), 0)
    poses[:, :3, :3] = found.poses[0][rows].double().numpy()
    poses[:, :3, 3] = found.poses[1][rows].double().numpy() * depth
    unit = np.repeat([1.0, depth], 3)
    spread = torch.linalg.inv(found.information[rows].double()).numpy() * calibration.variance
    covariances: Float64Array = spread * unit[:, None] * unit
    finite = np.isfinite(poses).all((1, 2)) & np.isfinite(covariances).all((1, 2))
    return RelativePoses(
        references[finite],
        orthonormalized(poses[finite]),
        confidences=calibration.confidences(found)[rows].double().numpy()[finite],
        scale_known=True,
        names=tuple(n for n, there in zip(names, finite, strict=True) if there),
        covariances=covariances[finite],
        correlation=calibration.correlation,
    )


@torch.inference_mode()
def calibrate(
    network: GraphNetwork, scene: Scene, pairs: Pairs, neighbours: int, run: Run
) -> Calibration:
    """Measure on a scene's training queries; the defaults where too few of them are localized."""
    network.eval()
    genuine = _some(np.flatnonzero(pairs.genuine & (pairs.candidates >= 0).any(1)))
    false = _some(np.flatnonzero(~pairs.genuine & (pairs.candidates >= 0).any(1)))
    rows = np.concatenate([genuine, false])
    graphs = [
        training_graph(scene, pairs, int(r), _columns(pairs, int(r), neighbours)) for r in rows
    ]
    found: list[tuple[Graph, Agreement, slice]] = []
    squares: list[Float64Array] = []
    with run.progress("Calibrating", len(graphs)) as progress:
        for start in range(0, len(graphs), _BATCH):
            part = graphs[start : start + _BATCH]
            batch, target = make_batch(part)
            assert target is not None
            agreed = agreement(batch, network(batch)[-1])
            off = difference(agreed.poses, target)
            square = torch.einsum("qi,qij,qj->q", off, agreed.information, off).double().numpy()
            ends = np.cumsum([0] + [len(g.rays) for g in part])
            for graph, begin, end in zip(part, ends, ends[1:], strict=False):
                found.append((graph, agreed, slice(int(begin), int(end))))
                squares.append(square[begin:end])
            progress.advance(len(part))
    support = _support(
        [float(a.common[s][0]) for g, a, s in found if g.genuine],
        [float(a.common[s][0]) for g, a, s in found if not g.genuine],
    )
    # References of other rooms fit a pose of their own: confidences tell them, spreads are not for them.
    believed = [
        (f, q[(f[1].support[f[2]] > support).numpy()])
        for f, q in zip(found, squares, strict=True)
        if f[0].genuine and float(f[1].common[f[2]][0]) > support
    ]
    if len(believed) < _ENOUGH:
        return Calibration(support=support)
    variance = _trimmed_mean(np.concatenate([q for _, q in believed])) / 6
    alone = Calibration(variance, 1.0, support)
    solved = [_nees(*f, alone) for f, _ in believed]
    kept = np.array([s for s in solved if s is not None])
    if len(kept) < _ENOUGH:
        return Calibration(variance, support=support)
    counted = float(np.median([n for _, n in kept]))
    independent = 6 / max(_trimmed_mean(kept[:, 0]), 1e-6)
    correlation = 1.0
    if counted > 1:
        correlation = float(np.clip((counted / independent - 1) / (counted - 1), 0, 1))
    return Calibration(variance, correlation, support)


def _some(rows: np.ndarray) -> np.ndarray:
    """At most `_QUERIES` of them, evenly."""
    step = max(math.ceil(len(rows) / _QUERIES), 1)
    return rows[::step]


def _columns(pairs: Pairs, row: int, neighbours: int) -> np.ndarray:
    return np.flatnonzero(pairs.candidates[row] >= 0)[:neighbours]


def _support(right: list[float], wrong: list[float]) -> float:
    """The tipping point between what queries of the scene reach and what others do."""
    high = float(np.quantile(right, 0.02)) if right else 0.0
    low = float(np.quantile(wrong, 0.98)) if wrong else 0.0
    return float(np.clip(math.sqrt(max(low, 1e-3) * max(high, 1e-3)), *_SUPPORT))


def _trimmed_mean(values: np.ndarray) -> float:
    ordered = np.sort(values[values <= _ELSEWHERE * np.median(values)])
    return float(ordered[: max(math.ceil(len(ordered) * (1 - _TRIMMED)), 1)].mean())


def _nees(
    graph: Graph, found: Agreement, rows: slice, calibration: Calibration
) -> tuple[float, int] | None:
    """Squared error of the solver's pose by its covariance, and the references that agreed."""
    names = ("",) * len(graph.world_from_ref)
    given = evidence(graph, found, rows, calibration, names)
    result = AveragingSolver(AveragingConfig()).solve(given, _CAMERA, Runtime())
    truth = graph.world_from_cam
    if result.world_from_cam is None or result.covariance is None or truth is None:
        return None
    off = pose_minus(truth, result.world_from_cam)
    return float(off @ np.linalg.solve(result.covariance, off)), result.num_inliers or 1

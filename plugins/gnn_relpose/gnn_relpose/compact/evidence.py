"""From the network's edges to evidence, and how far that is to be believed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.compact.network import CompactNetwork
from gnn_relpose.compact.scene import Scene, TrainingScene
from gnn_relpose.shared.topology import fully_connected
from reloc_core.geometry import inverse, so3_log
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import AveragingConfig
from reloc_core.solvers.relative_poses import AveragingSolver
from reloc_core.types import Camera, Float64Array, RelativePoses

_ENOUGH = 10  # held-out images that tell how large errors are
_TRIMMED = 0.02  # share of the largest errors that are left out as outliers
_CAMERA = Camera.pinhole(1.0, 1, 1)  # the solver of relative poses does not look at it


@torch.inference_mode()
def evidence(
    network: CompactNetwork, scene: Scene, own: Tensor, references: np.ndarray, alike: float
) -> RelativePoses:
    """Poses of a query relative to references.

    Args:
        network: in evaluation mode.
        scene: of the references.
        own: (1, C) node vector of the query.
        references: (N,) which, best-ranked first.
        alike: similarity of the best-ranked one by what is usual in the scene.
    """
    nodes = torch.cat([own, scene.nodes[torch.from_numpy(references)]])
    index = fully_connected(len(nodes))
    relative, scales = network.relative(nodes, index)
    into = (index[1] == 0).nonzero()[:, 0]
    into = into[index[0, into].argsort()]
    world_from_ref = scene.poses[references]
    vectors = scene.convention.vectors(world_from_ref) - relative[into]
    poses = scene.convention.poses(vectors)
    covariances = _covariances(scales[into], scene)
    finite = np.isfinite(poses).all((1, 2)) & np.isfinite(covariances).all((1, 2))
    poses, world_from_ref = poses[finite], world_from_ref[finite]
    signals = {"retrieval": alike, "sureness": -float(scales[into].mean())}
    if len(poses) > 1:
        signals["agreement"] = -float(np.log(_disagreement(poses, scene) + 1e-6))
    return RelativePoses(
        world_from_ref,
        inverse(world_from_ref) @ poses,
        names=tuple(scene.names[i] for i in references[finite]),
        covariances=covariances[finite],
        # The query's own vector is in all edges: its errors are shared.
        correlation=1.0,
        signals=signals,
    )


def _covariances(log_scales: Tensor, scene: Scene) -> Float64Array:
    """(N, 6, 6) of edges with predicted logarithms of mean absolute errors (N, 2)."""
    mean = log_scales.double().exp().numpy()
    # Deviations of a Laplace distribution; the vectors hold half angles, in units of the spread.
    translation = np.sqrt(2) * mean[:, 0] * scene.convention.deviation[0] * scene.scales[0]
    rotation = np.sqrt(2) * mean[:, 1] * 2 * scene.scales[1]
    variances = np.stack([rotation] * 3 + [translation] * 3, -1) ** 2
    return np.asarray(variances[:, :, None] * np.eye(6), np.float64)


def _disagreement(poses: Float64Array, scene: Scene) -> float:
    """Median difference of poses (N, 4, 4) from their median, in spreads and radians."""
    middle = poses[np.linalg.norm(poses[:, :3, 3] - np.median(poses[:, :3, 3], 0), axis=1).argmin()]
    away = np.linalg.norm(poses[:, :3, 3] - middle[:3, 3], axis=1) / scene.convention.deviation[0]
    angle = np.linalg.norm(so3_log(middle[:3, :3].T @ poses[:, :3, :3]), axis=1)
    return float(np.median(away + angle))


def measured_scales(
    network: CompactNetwork, scene: Scene, training: TrainingScene, neighbours: int
) -> tuple[float, float]:
    """Factors of the predicted deviations (translation, rotation) that fit the errors of held-out images.

    References of a held-out image are of other stretches of the sequence. Ones where there are too few.
    """
    solver, squares = AveragingSolver(AveragingConfig(min_score=0.0, min_inliers=1)), []
    for query in np.flatnonzero(training.held):
        ranking = training.ranking[query]
        ranking = ranking[training.blocks[ranking] != training.blocks[query]]
        found = evidence(network, scene, scene.nodes[[query]], ranking[:neighbours], 1.0)
        pose = solver.solve(found, _CAMERA, Runtime())
        if pose.world_from_cam is None or pose.covariance is None:
            continue
        truth, turned = scene.poses[query], pose.world_from_cam[:3, :3].T
        rotation = so3_log(turned @ truth[:3, :3])
        shift = turned @ (truth[:3, 3] - pose.world_from_cam[:3, 3])
        variance = np.diag(pose.covariance)
        squares.append([np.mean(shift**2 / variance[3:]), np.mean(rotation**2 / variance[:3])])
    if len(squares) < _ENOUGH:
        return 1.0, 1.0
    ordered = np.sort(np.array(squares), 0)
    kept = ordered[: max(round(len(ordered) * (1 - _TRIMMED)), 1)]
    translation, rotation = np.sqrt(kept.mean(0))
    return float(translation), float(rotation)

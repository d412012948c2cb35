"""Solvers of `RelativePoses` evidence: from poses relative to references to one pose in the world.

Every reference gives a hypothesis. `AveragingSolver` looks for their consensus; with unknown scale the
position is where the directions from two or more references meet.
"""

from __future__ import annotations

import numpy as np

from reloc_core.errors import ConfigError, InputError
from reloc_core.geometry import nearest_rotation, so3_exp, so3_log
from reloc_core.interfaces import Runtime, Solver
from reloc_core.solvers.averaging import average_rotations, intersect_directions
from reloc_core.solvers.checks import (
    as_solver_options,
    check_integer,
    check_not_negative,
    check_positive,
    check_share,
)
from reloc_core.solvers.config import AveragingConfig, SingleReferenceConfig
from reloc_core.types import (
    Camera,
    Evidence,
    Float64Array,
    FloatArray,
    Localization,
    RelativePoses,
    Status,
)

_STEPS = 20
_TOLERANCE = 1e-9
_PARALLEL_DEG = 1.0  # directions that differ by less determine no position


class SingleReferenceSolver(Solver):
    """Takes the pose relative to one reference, as RelPose-GNN was published."""

    accepts = (RelativePoses,)

    def __init__(self, config: SingleReferenceConfig) -> None:
        with as_solver_options():
            check_integer(config, "reference", 0)
        self.config = config

    def solve(self, evidence: Evidence, camera: Camera, runtime: Runtime) -> Localization:
        """See `Solver.solve`."""
        given = _checked(evidence, "single_reference")
        if not given.scale_known:
            raise ConfigError(
                "Solver 'single_reference' needs metric translations; use solver=averaging."
            )
        index = self.config.reference
        if index >= len(given.world_from_ref):
            return Localization.failure(_nothing(given))
        pose = given.world_from_ref[index] @ given.ref_from_cam[index]
        if not np.all(np.isfinite(pose)):
            return Localization.failure("the relative pose is not finite")
        pose[:3, :3] = nearest_rotation(pose[:3, :3])
        confidence = 1.0 if given.confidences is None else float(given.confidences[index])
        # It looks at no other reference, so it says nothing of who agrees: no mask.
        return Localization(
            Status.LOCALIZED,
            world_from_cam=pose,
            covariance=None if given.covariances is None else _symmetric(given.covariances[index]),
            num_inliers=1,
            score=float(np.clip(confidence, 0, 1)),
        )


class AveragingSolver(Solver):
    """Consensus over references, robust against wrong ones.

    With metric translations: poses are averaged by iteratively reweighted least squares on the tangent,
    with Geman-McClure weights of the Mahalanobis distance; nearer references count more.
    The start is the hypothesis that most others agree with; those that still disagree at the end are
    left out. Information counts as that of n / (1 + (n - 1) c) independent references where the evidence
    says how errors are correlated; by default (c = 1) it is averaged, not summed (covariance
    intersection). The covariance is widened where the references disagree more than they say.

    With unknown scale: rotations are averaged and the position is the intersection of the directions
    (`intersect_directions`).
    """

    accepts = (RelativePoses,)

    def __init__(self, config: AveragingConfig) -> None:
        with as_solver_options():
            for name in ("rotation_scale_deg", "position_scale", "direction_scale_deg", "gate"):
                check_positive(config, name)
            check_not_negative(config, "motion_exponent")
            check_integer(config, "min_inliers", 1)
            check_share(config, "min_confidence")
            check_share(config, "min_score")
        self.config = config

    def solve(self, evidence: Evidence, camera: Camera, runtime: Runtime) -> Localization:
        """See `Solver.solve`."""
        given = _checked(evidence, "averaging")
        n = len(given.world_from_ref)
        confidences = np.ones(n)
        if given.confidences is not None:
            confidences = np.asarray(given.confidences, np.float64)
        poses = given.world_from_ref @ given.ref_from_cam
        finite = np.isfinite(poses).all((1, 2)) & np.isfinite(confidences)
        if given.covariances is not None:
            finite &= np.isfinite(given.covariances).all((1, 2))
        usable = np.flatnonzero(finite & (confidences >= self.config.min_confidence))
        if len(usable) == 0:
            reason = _nothing(given) if n == 0 else "no reference resembles the image enough"
            return Localization.failure(reason)
        if not given.scale_known:
            return self._from_directions(given, poses, usable, confidences)
        return self._from_poses(given, poses, usable, confidences)

    # ----------------------------------------------------------------------------- known scale

    def _from_poses(
        self,
        given: RelativePoses,
        poses: Float64Array,
        usable: np.ndarray,
        confidences: Float64Array,
    ) -> Localization:
        chosen = poses[usable]
        chosen[:, :3, :3] = nearest_rotation(chosen[:, :3, :3])
        weights = confidences[usable]
        covariances = self._covariances(given, usable)
        information = np.asarray(np.linalg.inv(covariances), np.float64)
        pose, squares = _consensus(chosen, information, weights, self.config.gate)
        agree = squares <= self.config.gate**2
        needed = min(self.config.min_inliers, len(given.world_from_ref))
        if agree.sum() < needed:
            return Localization.failure(
                f"only {agree.sum()} of {len(usable)} references agree on a pose"
            )
        score = float(weights[agree].sum() / weights.sum() * weights[agree].max())
        inliers = np.zeros(len(poses), bool)
        inliers[usable[agree]] = True
        if score < self.config.min_score:
            return Localization.failure(
                f"score {score:.2f} is below {self.config.min_score:g}", score=score
            )
        robust = weights[agree] / (1 + squares[agree] / self.config.gate**2) ** 2
        share = robust / robust.sum()
        mean_information = np.einsum("n,nij->ij", share, information[agree])
        disagreement = max(1.0, float(share @ squares[agree]) / 6)
        counted = 1 / float(share @ share)  # references, by weight
        independent = counted / (1 + (counted - 1) * given.correlation)
        return Localization(
            Status.LOCALIZED,
            world_from_cam=pose,
            covariance=np.linalg.inv(mean_information) * disagreement / independent,
            num_inliers=int(inliers.sum()),
            inliers=inliers,
            score=min(score, 1.0),
        )

    def _covariances(self, given: RelativePoses, usable: np.ndarray) -> Float64Array:
        distance = np.linalg.norm(given.ref_from_cam[usable, :3, 3], axis=-1)
        if given.covariances is not None:
            floor = np.diag([1e-10] * 3 + [1e-12] * 3)
            found = _symmetric(given.covariances[usable] + floor)
        else:
            position = max(self.config.position_scale * float(np.median(distance)), 1e-6)
            angle = np.radians(self.config.rotation_scale_deg)
            one = np.diag([angle**2] * 3 + [position**2] * 3)
            found = np.repeat(one[None], len(usable), 0)
        turn = np.linalg.norm(so3_log(given.ref_from_cam[usable, :3, :3]), axis=-1)
        motion = _relative_to_median(distance) + _relative_to_median(turn)
        growth = (np.maximum(motion, 0.1) / max(motion.min(), 0.1)) ** self.config.motion_exponent
        return np.asarray(found * growth[:, None, None], np.float64)

    # --------------------------------------------------------------------------- unknown scale

    def _from_directions(
        self,
        given: RelativePoses,
        poses: Float64Array,
        usable: np.ndarray,
        confidences: Float64Array,
    ) -> Localization:
        config = self.config
        weights = confidences[usable]
        rotations = nearest_rotation(poses[usable, :3, :3])
        rotation_scale = np.radians(config.rotation_scale_deg)
        rotation = average_rotations(rotations, weights, rotation_scale)
        off = so3_log(rotation.T @ rotations)
        turned = np.linalg.norm(off, axis=-1) <= config.gate * rotation_scale
        origins = given.world_from_ref[usable, :3, 3]
        directions = np.einsum(
            "nij,nj->ni", given.world_from_ref[usable, :3, :3], given.ref_from_cam[usable, :3, 3]
        )
        length = np.linalg.norm(directions, axis=-1)
        line = turned & (length > 0)
        if line.sum() < 2:
            return Localization.failure(
                "the position needs two references whose rotations agree when the scale is unknown"
            )
        directions[line] /= length[line, None]
        scale = np.radians(config.direction_scale_deg)
        try:
            position = intersect_directions(origins[line], directions[line], weights[line], scale)
        except InputError:
            return Localization.failure("the directions from the references are parallel")
        view = position - origins
        distance = np.linalg.norm(view, axis=-1)
        along = np.where(line, np.einsum("ni,ni->n", view, directions), -1.0)
        across = np.linalg.norm(view - along[:, None] * directions, axis=-1)
        angles = np.arctan2(across, along)
        agree = line & (angles <= config.gate * scale) & (distance > 0)
        if agree.sum() < max(2, min(config.min_inliers, len(poses))):
            return Localization.failure(f"only {agree.sum()} directions meet in one position")
        spread = directions[agree] @ directions[agree].T
        if np.arccos(np.clip(np.abs(spread).min(), -1, 1)) < np.radians(_PARALLEL_DEG):
            return Localization.failure("the directions from the references are parallel")
        score = float(weights[agree].sum() / weights.sum() * weights[agree].max())
        if score < config.min_score:
            return Localization.failure(f"score {score:.2f} is below {config.min_score:g}")
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, position
        inliers = np.zeros(len(poses), bool)
        inliers[usable[agree]] = True
        return Localization(
            Status.LOCALIZED,
            world_from_cam=pose,
            covariance=_direction_covariance(
                rotation, off[agree], directions[agree], distance[agree], angles[agree],
                weights[agree], rotation_scale, scale,
            ),
            num_inliers=int(inliers.sum()),
            inliers=inliers,
            score=min(score, 1.0),
        )  # fmt: skip


def _consensus(
    poses: Float64Array, information: Float64Array, weights: Float64Array, gate: float
) -> tuple[Float64Array, Float64Array]:
    """The robust mean of poses and the squared Mahalanobis distances of each from it."""

    def distances(pose: Float64Array) -> tuple[Float64Array, Float64Array]:
        back = pose[:3, :3].T
        off = np.concatenate(
            [so3_log(back @ poses[:, :3, :3]), (poses[:, :3, 3] - pose[:3, 3]) @ back.T], -1
        )
        return off, np.einsum("ni,nij,nj->n", off, information, off)

    def cost(pose: Float64Array) -> float:
        square = distances(pose)[1] / gate**2
        return float(weights @ (square / (1 + square)))

    pose = np.array(min(poses, key=cost), np.float64)
    kept = weights
    for last in (False, True):
        for _ in range(_STEPS):
            off, square = distances(pose)
            robust = kept / (1 + square / gate**2) ** 2
            system = np.einsum("n,nij->ij", robust, information)
            step = np.linalg.solve(system, np.einsum("n,nij,nj->i", robust, information, off))
            pose = _moved(pose, step)
            if np.abs(step).max() < _TOLERANCE:
                break
        agree = distances(pose)[1] <= gate**2
        if last or agree.all() or not agree.any():
            break
        kept = weights * agree
    return pose, distances(pose)[1]


def _moved(pose: Float64Array, step: Float64Array) -> Float64Array:
    result = np.array(pose, np.float64)
    result[:3, 3] = pose[:3, 3] + pose[:3, :3] @ step[3:]
    result[:3, :3] = nearest_rotation(pose[:3, :3] @ so3_exp(step[:3]))
    return result


def _symmetric(covariances: FloatArray) -> Float64Array:
    """(..., 6, 6) without what rounding (networks work in float32) adds to one side only."""
    exact = np.asarray(covariances, np.float64)
    return np.asarray((exact + exact.swapaxes(-1, -2)) / 2, np.float64)


def _direction_covariance(
    rotation: Float64Array,
    off: Float64Array,
    directions: Float64Array,
    distance: Float64Array,
    angles: Float64Array,
    weights: Float64Array,
    rotation_scale: float,
    direction_scale: float,
) -> Float64Array:
    """First-order covariance of a pose from rotations and directions, in camera axes."""
    share = weights / weights.sum()
    turn = float(share @ (off**2).sum(-1)) / 3
    result = np.zeros((6, 6))
    result[:3, :3] = np.eye(3) * max(turn, (rotation_scale / 10) ** 2)
    noise = max(float(share @ angles**2) / 2, (direction_scale / 10) ** 2)
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    system = np.einsum("n,nij->ij", 1 / distance**2, across) / noise
    result[3:, 3:] = rotation.T @ np.linalg.inv(system) @ rotation
    return result


def _relative_to_median(values: Float64Array) -> Float64Array:
    median = float(np.median(values))
    return np.asarray(values / median if median > 0 else np.ones_like(values), np.float64)


def _checked(evidence: Evidence, solver: str) -> RelativePoses:
    if not isinstance(evidence, RelativePoses):
        raise InputError(
            f"Solver '{solver}' takes RelativePoses evidence, got {evidence.kind_name}."
        )
    return evidence


def _nothing(given: RelativePoses) -> str:
    return given.reason or "there are no references"

"""The scalars that the filter needs beside its networks, from held-out measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.clips import Clip
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.kalman import State
from kfnet_temporal.pose_stage import PoseStage
from kfnet_temporal.process import Process
from kfnet_temporal.tangent import minus
from kfnet_temporal.tracker import Step, Tracker
from kfnet_temporal.training import NoiseScale, process_std
from reloc_core.interfaces import Runtime
from reloc_core.types import Correspondences, Float64Array

_MEDIAN_CHI_SQUARE = {3: 2.366, 6: 5.348}
_BISECTIONS = 9


@dataclass(frozen=True)
class Calibration:
    """What the filter needs to be told beside its networks.

    Attributes:
        noise: factor on all variances within the filter, so that innovations are as large as it says.
        output: factor on the posterior variance, so that its errors are as large as it says; above
            `noise` when neighbouring frames share errors.
        pose: factor on the covariance of the filtered pose, for the same, in a frame whose measured
            coordinates have the median standard deviation `typical_std` (metres; None in maps of
            before it was known).
        redundancy: factor on the covariance of the pose that the posterior alone gives.
        min_similarity: cosine from which a cell counts as found again.
    """

    noise: float = 1.0
    output: float = 1.0
    pose: float = 1.0
    typical_std: float | None = None
    redundancy: float = 10.0
    min_similarity: float = 0.7


def steps(
    process: Process, scale: NoiseScale, clip: Clip, config: TemporalConfig, found: Calibration
) -> list[Step]:
    """The filter's steps over a clip."""
    tracker = Tracker(config.filter, found.min_similarity)
    taken = []
    for t in range(len(clip)):
        measured = inflate(scale(clip.measured[t]), found.noise)
        if tracker.state is None:
            taken.append(tracker.start(measured, "start"))
            continue
        motion = clip.forward[t - 1]
        std = process_std(process, motion, tracker.state)
        std = std * config.filter.process_factor * found.noise**0.5
        taken.append(tracker.step(measured, motion, std))
    return taken


def normalised_errors(taken: Sequence[Step], clip: Clip) -> Tensor:
    """Squared errors of the posterior over its variance (m,)."""
    errors = []
    for t, step in enumerate(taken):
        mask = step.posterior.known & clip.known(t)
        error = (step.posterior.mean - clip.labels[t]).square().sum(0)[mask]
        errors.append(error / step.posterior.variance[mask])
    return torch.cat(errors)


def pose_errors(
    taken: Sequence[Step], clip: Clip, config: TemporalConfig, found: Calibration,
    origin: Float64Array,
) -> list[tuple[float, float]]:  # fmt: skip
    """Normalised squared errors of a clip's poses: of the posterior alone, and filtered."""
    stage, errors = PoseStage(config.pose, typical_std=found.typical_std), []
    for t, step in enumerate(taken):
        frame, grid = clip.frames[t], clip.grid(t)
        evidence = correspondences(step.posterior, grid.pixels, origin, found.output)
        stage.step(
            evidence, grid, frame.camera, step.event, Runtime(threads=1), step.measured.median_std
        )
        beliefs = (stage.measured, stage.filter.belief)
        if frame.world_from_cam is None or beliefs[0] is None or beliefs[1] is None:
            continue
        solved, filtered = (
            minus(frame.world_from_cam, b.world_from_cam) for b in beliefs if b is not None
        )
        errors.append(
            (
                float(solved @ np.linalg.solve(beliefs[0].covariance, solved)),
                float(filtered @ np.linalg.solve(beliefs[1].covariance, filtered)) / stage.growth,
            )
        )
    return errors


def correspondences(
    posterior: State, pixels: Float64Array, origin: Float64Array, factor: float,
    redundancy: float = 1.0,
) -> Correspondences:  # fmt: skip
    """Evidence of the cells that are known.

    Args:
        posterior: relative to the origin.
        pixels: (h * w, 2) centres of the cells.
        origin: (3,) metres.
        factor: on the variances.
        redundancy: of the cells.
    """
    known = posterior.known.flatten().cpu().numpy()
    points = posterior.mean.flatten(1).T.cpu().double().numpy() + origin
    variances = posterior.variance.flatten().cpu().double().numpy() * factor
    shape = (int(posterior.variance.shape[0]), int(posterior.variance.shape[1]))
    return Correspondences(
        points2d=pixels[known],
        points3d=points[known],
        variances=variances[known],
        grid_shape=shape if bool(known.all()) else None,
        redundancy=redundancy,
    )


def inflate(state: State, factor: float) -> State:
    """A state with its variance multiplied."""
    return replace(state, variance=state.variance * factor)


@torch.no_grad()
def calibrate(
    process: Process, scale: NoiseScale, clips: Sequence[Clip], config: TemporalConfig,
    origin: Float64Array,
) -> Calibration:  # fmt: skip
    """Choose the scalars by running the filter over held-out measurements."""
    found = Calibration(min_similarity=_separating_similarity(process, clips))
    low, high = -6.0, 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = replace(found, noise=float(np.exp(middle)))
        nis = torch.cat(
            [s.accepted_nis() for c in clips for s in steps(process, scale, c, config, found)]
        )
        if len(nis) == 0:
            return replace(found, noise=1.0)
        if float(nis.mean()) > config.filter.target_nis:
            low = middle
        else:
            high = middle
    taken = [steps(process, scale, c, config, found) for c in clips]
    errors = torch.cat([normalised_errors(s, c) for s, c in zip(taken, clips, strict=True)])
    # Medians are not moved by cells and frames that are wrong altogether.
    found = replace(
        found,
        output=max(float(errors.median()) / _MEDIAN_CHI_SQUARE[3], 0.1) if len(errors) else 1.0,
        typical_std=float(np.nanmedian([s.measured.median_std for t in taken for s in t])),
    )
    poses = [
        e for s, c in zip(taken, clips, strict=True)
        for e in pose_errors(s, c, config, found, origin)
    ]  # fmt: skip
    if not poses:
        return found
    solved, filtered = np.median(poses, 0) / _MEDIAN_CHI_SQUARE[6]
    return replace(found, pose=max(float(filtered), 0.1), redundancy=max(float(solved), 1.0))


def _separating_similarity(process: Process, clips: Sequence[Clip]) -> float:
    """Cosine halfway between cells of neighbouring frames and cells of frames far apart."""
    near = torch.cat([m.similarity.flatten() for c in clips for m in c.forward])
    far = []
    count = len(clips)
    for i, clip in enumerate(clips):
        other = clips[(i + count // 2) % count]
        a, b = clip.features[0].float(), other.features[-1].float()
        images = (clip.images[0], other.images[-1]) if process.refine else None
        far.append(process.motion(a, b, images).similarity.flatten())
    return float((near.median() + torch.cat(far).median()) / 2)

"""The scalars that the filter needs beside its networks, from held-out measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.filtering.clips import Clip
from kfnet_temporal.filtering.evidence import correspondences, inflate
from kfnet_temporal.filtering.noise import NoiseScale
from kfnet_temporal.filtering.process import Process, process_std
from kfnet_temporal.filtering.tracker import Step, Tracker
from reloc_core.geometry import pose_minus
from reloc_core.interfaces import Runtime
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Float64Array

_MEDIAN_CHI_SQUARE = {3: 2.366, 6: 5.348}
_BISECTIONS = 9


@dataclass(frozen=True)
class Calibration:
    """What the filter needs to be told beside its networks.

    Attributes:
        noise: factor on all variances within the filter, so that innovations are as large as it says.
        output: factor on the posterior variance, so that its errors are as large as it says; above
            `noise` when neighbouring frames share errors.
        redundancy: cells that are worth one independent one, as the errors of held-out poses say, in
            a frame whose measured coordinates have the median standard deviation `typical_std`.
        typical_std: metres.
        min_similarity: cosine from which a cell counts as found again.
    """

    noise: float = 1.0
    output: float = 1.0
    redundancy: float = 10.0
    typical_std: float | None = None
    min_similarity: float = 0.7

    def redundancy_at(self, median_std: float, gain: float) -> float:
        """`redundancy` in a frame, of which the filter knows more than its own measurement says.

        Cells are taken to share more of their errors the less sure they are: far from the mapped views
        all of them err together, which the solver does not see in their residuals. And frames share theirs,
        as they are measured by the same key frames: of what the filter gains on the noise of single cells,
        the pose gains half.

        Args:
            median_std: metres, of the measured coordinates; NaN: typical.
            gain: see `Step.gain`.
        """
        found = self.redundancy * gain**0.5
        if self.typical_std is not None and np.isfinite(median_std):
            found *= (median_std / self.typical_std) ** 2
        return max(1.0, found)


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
        e for s, c in zip(taken, clips, strict=True) for e in _pose_errors(s, c, found, origin)
    ]
    if not poses:
        return found
    return replace(found, redundancy=max(float(np.median(poses)) / _MEDIAN_CHI_SQUARE[6], 1.0))


def _pose_errors(
    taken: Sequence[Step], clip: Clip, found: Calibration, origin: Float64Array
) -> list[float]:
    """Normalised squared errors of the poses that a clip's posteriors give."""
    # What the solver itself claims: doubt of the camera would stand for errors that it does not know of.
    solver, errors = PnpSolver(PnpConfig(verify_camera=False)), []
    unit = replace(found, redundancy=1.0)
    for t, step in enumerate(taken):
        frame = clip.frames[t]
        evidence = correspondences(step.posterior, clip.pixels, origin, found.output)
        solved = solver.solve(evidence, frame.camera, Runtime(threads=1))
        pose, covariance = solved.world_from_cam, solved.covariance
        if frame.world_from_cam is None or pose is None or covariance is None:
            continue
        error = pose_minus(frame.world_from_cam, pose)
        square = float(error @ np.linalg.solve(covariance, error))
        errors.append(square / unit.redundancy_at(step.measured.median_std, step.gain))
    return errors


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

"""The estimator `kfnet_temporal`: any dense measurement, filtered over a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.config import TemporalConfig, check_temporal
from kfnet_temporal.grid import FeatureExtractor, FeatureGrid
from kfnet_temporal.kalman import State
from kfnet_temporal.labels import labels_at
from kfnet_temporal.measurement import InnerRun, Subset, build_measurement, measured_state
from kfnet_temporal.process import FlowProcess
from kfnet_temporal.tracker import Step, Tracker
from kfnet_temporal.training import (
    Calibration,
    Clip,
    NoiseScale,
    add_motions,
    calibrate,
    inflate,
    process_std,
    train_flow,
    train_joint,
)
from reloc_core.errors import DataError, InputError, MapError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.types import Correspondences, Evidence, Frame, ImageArray, Localization, Query

_PART = "measurement"


class TemporalEstimator(Estimator):
    """KFNet's scheme: measurement, flow process and Kalman filter over scene coordinates.

    Args:
        config: options; see `TemporalConfig`.
    """

    produces = Correspondences
    history: ClassVar[int] = 16

    def __init__(self, config: TemporalConfig) -> None:
        check_temporal(config)
        self.config = config
        self.measurement = build_measurement(config.measurement)
        self.process = FlowProcess(
            config.process.radius, config.process.min_std, config.process.refine
        )
        self.scale = NoiseScale()
        self.calibration = Calibration()
        self.redundancy = 10.0
        self.origin = np.zeros(3)
        self.extractor: FeatureExtractor | None = None
        self.tracker = Tracker(config.filter)
        self.last: tuple[Frame, FeatureGrid] | None = None
        self.shown: tuple[ImageArray, Step] | None = None

    # ------------------------------------------------------------------------------ training

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`: the measurement, the flow, all noises together, the calibration.

        Raises:
            DataError: no depth, or no two consecutive frames.
        """
        self._prepare(run.runtime)
        stretches = choose_stretches(
            dataset,
            self.config.joint.frames,
            self.config.joint.stretches,
            self.config.filter.max_gap,
        )
        poses = [f.world_from_cam for f in dataset.frames if f.world_from_cam is not None]
        self.origin = np.stack(poses)[:, :3, 3].mean(0)
        self._fit_measurement(dataset, stretches, run)
        clips = [self._clip(dataset, s, run) for s in stretches]
        if not any(bool(torch.isfinite(c.labels).any()) for c in clips):
            raise DataError(
                f"{dataset.name} has no depth images, from which the noises are learned. Add depth/."
            )
        train_flow(self.process, clips, self.config, run)
        self.process.requires_grad_(False)
        add_motions(self.process, clips, run)
        self.process.noise.requires_grad_(True)
        train_joint(self.process, self.scale, clips, self.config, run)
        self._freeze()
        self.calibration = calibrate(self.process, self.scale, clips, self.config)
        self._save(run)

    def _fit_measurement(self, dataset: Dataset, stretches: list[range], run: Run) -> None:
        inner = InnerRun(run.runtime, run.map.part(_PART), run.extra_datasets, run)
        if hasattr(self.measurement, "estimate_held_out"):
            self.measurement.fit(dataset, inner)
        else:
            held_out = {
                i for s in stretches for i in _share(s, dataset, self.config.joint.held_out)
            }
            kept = [i for i in range(len(dataset)) if i not in held_out]
            stretches[:] = [
                r for s in stretches if len(r := _share(s, dataset, self.config.joint.held_out)) > 1
            ]
            self.measurement.fit(Subset(dataset, kept), inner)
        run.map.details[_PART] = inner.map.details

    def _clip(self, dataset: Dataset, frames: range, run: Run) -> Clip:
        features, labels, measured, images = [], [], [], []
        held_out = getattr(self.measurement, "estimate_held_out", None)
        with run.progress("Held-out measurements", len(frames)) as progress:
            for i in frames:
                query = dataset[i]
                grid = self._grid(query)
                evidence = held_out(query, i) if held_out else self.measurement.estimate(query)
                target = torch.from_numpy(labels_at(query, grid.pixels) - self.origin).float()
                features.append(grid.features.half())
                labels.append(target.T.reshape(3, *grid.shape))
                measured.append(self._state(evidence, grid))
                images.append(grid.grey)
                progress.advance()
        return Clip(torch.stack(features), torch.stack(labels), measured, images, [], [])

    # ---------------------------------------------------------------------------------- maps

    def _save(self, run: Run) -> None:
        tensors = {f"process.{k}": v for k, v in self.process.state_dict().items()}
        tensors |= {f"scale.{k}": v for k, v in self.scale.state_dict().items()}
        tensors["origin"] = torch.from_numpy(self.origin.copy())
        metadata = {
            "process": self.config.process.name,
            "radius": self.config.process.radius,
            "resolution": self.config.process.resolution,
            "measurement": self.config.measurement.name,
            "calibration": asdict(self.calibration),
            "redundancy": self.redundancy,
        }
        run.map.save("filter", tensors, metadata)
        run.map.details["calibration"] = asdict(self.calibration)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: made with another measurement, process or resolution.
        """
        tensors, metadata = scene_map.tensors("filter")
        for key, ours in (
            ("measurement", self.config.measurement.name),
            ("process", self.config.process.name),
            ("radius", self.config.process.radius),
            ("resolution", self.config.process.resolution),
        ):
            if metadata.get(key) != ours:
                raise MapError(
                    f"{scene_map.path} was trained with {key} {metadata.get(key)}, not {ours}. "
                    "Leave the option out, or train again."
                )
        self.measurement.load(scene_map.part(_PART), runtime)
        try:
            self.origin = tensors["origin"].double().numpy()
            self.process.load_state_dict(_part(tensors, "process."))
            self.scale.load_state_dict(_part(tensors, "scale."))
            self.calibration = Calibration(**metadata["calibration"])
            self.redundancy = float(metadata["redundancy"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise MapError(
                f"{scene_map.path} holds no filter of this version ({error}). Train again."
            ) from error
        self._prepare(runtime)
        self._freeze()

    def _prepare(self, runtime: Runtime) -> None:
        inner = getattr(self.measurement, "extractor", None)
        if (
            isinstance(inner, FeatureExtractor)
            and inner.resolution == self.config.process.resolution
        ):
            self.extractor = inner
        else:
            self.extractor = FeatureExtractor(self.config.process.resolution, runtime.device)

    def _freeze(self) -> None:
        self.process.eval().requires_grad_(False)
        self.scale.eval().requires_grad_(False)
        self.tracker = Tracker(self.config.filter, self.calibration.min_similarity)

    # -------------------------------------------------------------------------- localization

    def start_sequence(self) -> None:
        """See `Estimator.start_sequence`."""
        self.tracker.reset()
        self.last = None

    def _grid(self, query: Query) -> FeatureGrid:
        if self.extractor is None:
            raise MapError("kfnet_temporal has no map yet: call load or fit first.")
        return self.extractor(query)

    def _state(self, evidence: Evidence, grid: FeatureGrid) -> State:
        return measured_state(
            evidence, grid.pixels, grid.shape, self.origin, self.config.measurement.default_std
        )

    def break_before(self, query: Query, grid: FeatureGrid) -> str:
        """Why a frame does not continue the sequence: "start", "gap", "size", or "" if it does.

        Frames must come in order of time where they have time stamps: one that is not later than
        its predecessor, or later than `filter.max_gap`, starts anew.
        """
        if self.last is None or self.tracker.state is None:
            return "start"
        before, last_grid = self.last
        if last_grid.shape != grid.shape or before.camera != query.camera:
            return "size"
        if before.timestamp is not None and query.timestamp is not None:
            elapsed = query.timestamp - before.timestamp
            if not 0 < elapsed <= self.config.filter.max_gap:
                return "gap"
        return ""

    @torch.inference_mode()
    def advance(self, query: Query, evidence: Evidence) -> tuple[Step, FeatureGrid]:
        """Filter one more frame, of which the measurement gave the evidence."""
        grid = self._grid(query)
        measured = inflate(self.scale(self._state(evidence, grid)), self.calibration.noise)
        event = self.break_before(query, grid)
        if event:
            step = self.tracker.start(measured, event)
        else:
            assert self.last is not None
            assert self.tracker.state is not None
            motion = self.process.motion(
                self.last[1].features,
                grid.features,
                (self.last[1].grey, grid.grey) if self.process.refine else None,
            )
            std = process_std(self.process, motion, self.tracker.state)
            std = std * self.config.filter.process_factor * self.calibration.noise**0.5
            step = self.tracker.step(measured, motion, std)
        self.last = (without_pixels(query), grid)
        self.shown = (query.image, step)
        return step, grid

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: the posterior of every cell that is known."""
        evidence = self.measurement.estimate(query)
        if not self.config.filter.enabled:
            if not isinstance(evidence, Correspondences):
                raise InputError("The measurement of kfnet_temporal must give scene coordinates.")
            return evidence
        return self.filtered(query, evidence)

    def filtered(self, query: Query, evidence: Evidence) -> Correspondences:
        """The posterior after one more frame, of which the measurement gave the evidence."""
        step, grid = self.advance(query, evidence)
        posterior = step.posterior
        known = posterior.known.flatten().cpu().numpy()
        points = posterior.mean.flatten(1).T.cpu().double().numpy() + self.origin
        factor = self.calibration.output
        variances = posterior.variance.flatten().cpu().double().numpy() * factor
        whole = bool(known.all())
        return Correspondences(
            points2d=grid.pixels[known],
            points3d=points[known],
            variances=variances[known],
            grid_shape=grid.shape if whole else None,
            redundancy=self.redundancy,
        )

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """See `Estimator.pictures`."""
        if self.shown is None or self.shown[0] is not query.image:
            return {}
        from kfnet_temporal.pictures import step_pictures

        return step_pictures(query.image, self.shown[1], self.calibration.output)


def without_pixels(query: Query) -> Frame:
    """A query's metadata, so that its pixels need not be kept."""
    return Frame(query.name, query.camera, None, query.timestamp, query.sequence)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def continuous_runs(dataset: Dataset, max_gap: float) -> list[range]:
    """Ranges of at least two frames that follow each other in one sequence without a gap."""
    frames = dataset.frames
    runs, first = [], 0
    for i in range(1, len(frames) + 1):
        if i < len(frames) and follows(frames[i - 1], frames[i], max_gap):
            continue
        if i - first > 1:
            runs.append(range(first, i))
        first = i
    return runs


def follows(before: Frame, frame: Frame, max_gap: float) -> bool:
    """Whether a frame continues the sequence of the one before."""
    if frame.sequence is None or frame.sequence != before.sequence:
        return False
    if frame.timestamp is None or before.timestamp is None:
        return True
    return 0 < frame.timestamp - before.timestamp <= max_gap


def choose_stretches(dataset: Dataset, frames: int, count: int, max_gap: float) -> list[range]:
    """Stretches of consecutive frames, spread over the dataset.

    Raises:
        DataError: there are no consecutive frames.
    """
    runs = continuous_runs(dataset, max_gap)
    if not runs:
        raise DataError(
            f"{dataset.name} has no consecutive frames: no two images belong to one sequence within "
            f"{max_gap} s. kfnet_temporal learns from video; name frames SEQUENCE-frame-NUMBER."
        )
    length = max(2, frames // count)
    pieces = [
        range(start, min(start + length, run.stop))
        for run in runs
        for start in range(run.start, run.stop - 1, length)
    ]
    pieces = [p for p in pieces if len(p) >= min(length, 8)] or pieces
    keep = np.unique(np.linspace(0, len(pieces) - 1, min(count, len(pieces))).round().astype(int))
    return [pieces[i] for i in keep]


def _share(stretch: range, dataset: Dataset, share: float) -> range:
    """The first part of a stretch, so that all stretches together are a share of the dataset."""
    return range(
        stretch.start, stretch.start + min(len(stretch), max(2, int(share * len(dataset) / 4)))
    )

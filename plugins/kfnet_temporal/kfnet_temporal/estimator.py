"""The estimator `kfnet_temporal`: any dense measurement, filtered over a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import torch

from kfnet_temporal.common.grid import FeatureExtractor, FeatureGrid
from kfnet_temporal.common.inner import InnerRun, Subset, build_measurement
from kfnet_temporal.common.labels import Labels, make_labels
from kfnet_temporal.common.sequences import beginnings, choose_stretches
from kfnet_temporal.config import TemporalConfig, check_temporal
from kfnet_temporal.filtering.calibration import Calibration, calibrate
from kfnet_temporal.filtering.clips import Clip, add_motions, load_clip, save_clip
from kfnet_temporal.filtering.evidence import correspondences, inflate, measured_state
from kfnet_temporal.filtering.export import MapExport
from kfnet_temporal.filtering.kalman import State
from kfnet_temporal.filtering.noise import NoiseScale
from kfnet_temporal.filtering.process import Process, process_std
from kfnet_temporal.filtering.tracker import Step, Tracker
from kfnet_temporal.memory.flow import FlowProcess
from kfnet_temporal.memory.training import train_flow, train_joint
from kfnet_temporal.published.measurement import ScoordnetEstimator
from kfnet_temporal.published.process import OflowExtractor, OflowProcess
from kfnet_temporal.published.training import Scene, train_both, train_oflow
from reloc_core.errors import DataError, InputError, MapError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.packing import part
from reloc_core.types import (
    Correspondences,
    Evidence,
    Frame,
    ImageArray,
    Localization,
    Query,
)

_PART = "measurement"


class TemporalEstimator(Estimator):
    """KFNet's scheme: measurement, flow process and Kalman filter over scene coordinates.

    Args:
        config: options; see `TemporalConfig`.
    """

    produces = Correspondences
    history: ClassVar[int] = 40

    def __init__(self, config: TemporalConfig) -> None:
        check_temporal(config)
        self.config = config
        self.measurement = build_measurement(config.measurement)
        self.process = build_process(config)
        self.scale = NoiseScale()
        self.calibration = Calibration()
        self.origin = np.zeros(3)
        self.runtime = Runtime(threads=1)
        self.extractor: FeatureExtractor | OflowExtractor | None = None
        self.tracker = Tracker(config.filter)
        self.last: tuple[Frame, FeatureGrid] | None = None
        self.median_std = float("nan")
        self.shown: tuple[ImageArray, Step] | None = None
        self.export: MapExport | None = None

    # ------------------------------------------------------------------------------ training

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`: the measurement, the flow, all noises together, the calibration.

        Raises:
            DataError: no scene coordinates to learn from, or no two consecutive frames.
        """
        stretches = choose_stretches(
            dataset,
            self.config.joint.frames,
            self.config.joint.stretches,
            self.config.filter.max_gap,
        )
        poses = [f.world_from_cam for f in dataset.frames if f.world_from_cam is not None]
        labels = make_labels(dataset, self.config.labels, run)
        self.origin = np.stack(poses)[:, :3, 3].mean(0)
        checkpoint = Checkpoint(run.map)
        stretches = self._fit_measurement(dataset, labels, stretches, run, checkpoint)
        self._prepare(run.runtime)
        if self._published:
            self._fit_published(dataset, labels, run, checkpoint)
        else:
            self._fit_clips(dataset, labels, stretches, run, checkpoint)
        self._freeze()
        self._save(run)

    @property
    def _published(self) -> bool:
        """Whether both networks are the published ones, which learn from images together."""
        return isinstance(self.process, OflowProcess) and getattr(
            self.measurement, "trains_jointly", False
        )

    def _fit_measurement(
        self, dataset: Dataset, labels: Labels, stretches: list[range], run: Run,
        checkpoint: Checkpoint,
    ) -> list[range]:  # fmt: skip
        """Fit the measurement; returns the stretches that it has not learned from."""
        inner = self._inner(run, labels)
        whole = hasattr(self.measurement, "estimate_held_out") or self._published
        if not whole:
            stretches = beginnings(stretches, dataset, self.config.joint.held_out)
            left_out = {i for s in stretches for i in s}
            kept = [i for i in range(len(dataset)) if i not in left_out]
            inner.labels = None  # they are numbered as the whole dataset is
        if checkpoint.finished("measurement"):
            self.measurement.load(inner.map.so_far(), run.runtime)
            inner.map.details.update(checkpoint.notes("measurement"))
        else:
            self.measurement.fit(dataset if whole else Subset(dataset, kept), inner)
            checkpoint.finish("measurement", notes=inner.map.details)
        run.map.details[_PART] = inner.map.details
        return stretches

    def _fit_clips(
        self, dataset: Dataset, labels: Labels, stretches: list[range], run: Run,
        checkpoint: Checkpoint,
    ) -> None:  # fmt: skip
        clips = [self._clip(dataset, labels, s, i, run) for i, s in enumerate(stretches)]
        if not any(bool(torch.isfinite(c.labels).any()) for c in clips):
            raise DataError(
                f"{dataset.name} has no scene coordinates to learn the noises from: its depth images "
                "are empty, or its images do not overlap."
            )
        if isinstance(self.process, OflowProcess):
            scenes = self._scenes(dataset, labels, run)
            train_oflow(self.process, scenes, self.config, run, checkpoint)
            with torch.no_grad():
                self._describe_again(dataset, stretches, clips)
        else:
            train_flow(self.process, clips, self.config, run, checkpoint)
        self.process.requires_grad_(False)
        add_motions(self.process, clips, run)
        self.process.noise.requires_grad_(True)
        train_joint(self.process, self.scale, clips, self.config, run, checkpoint)
        self._freeze()
        with run.progress("Calibration", 1) as progress:
            self.calibration = calibrate(self.process, self.scale, clips, self.config, self.origin)
            progress.advance()

    def _fit_published(
        self, dataset: Dataset, labels: Labels, run: Run, checkpoint: Checkpoint
    ) -> None:
        assert isinstance(self.process, OflowProcess)
        assert isinstance(self.measurement, ScoordnetEstimator)
        self.scale.set_identity()
        scenes = self._scenes(dataset, labels, run)
        train_oflow(self.process, scenes, self.config, run, checkpoint)
        own = Scene(dataset, labels, self.measurement.normalised_from_world)
        train_both(self.measurement, self.process, own, self.config, run, checkpoint)
        self.measurement.freeze()
        self.measurement.save(self._inner(run, labels))

    def _inner(self, run: Run, labels: Labels) -> InnerRun:
        return InnerRun(run.runtime, run.map.part(_PART), run.extra_datasets, run, labels)

    def _scenes(self, dataset: Dataset, labels: Labels, run: Run) -> list[Scene]:
        """The mapped scene and the further ones that the flow may learn from, in world frames."""
        others = [
            Scene(d, make_labels(d, self.config.labels, run), np.eye(4)) for d in run.extra_datasets
        ]
        return [Scene(dataset, labels, np.eye(4)), *others]

    def _clip(self, dataset: Dataset, labels: Labels, frames: range, number: int, run: Run) -> Clip:
        path = run.map.scratch / f"clip{number}.safetensors"
        metadata = [dataset.frames[i] for i in frames]
        if path.is_file():
            return load_clip(path, metadata)
        features, targets, measured, images = [], [], [], []
        held_out = getattr(self.measurement, "estimate_held_out", None)
        grid: FeatureGrid | None = None
        with run.progress("Held-out measurements", len(frames)) as progress:
            for i in frames:
                query = dataset[i]
                grid = self._grid(query)
                evidence = held_out(query, i) if held_out else self.measurement.estimate(query)
                target = labels.at(i, query, grid.pixels) - self.origin
                features.append(grid.features.half())
                targets.append(torch.from_numpy(target).float().T.reshape(3, *grid.shape))
                measured.append(self._state(evidence, grid))
                images.append(grid.grey)
                progress.advance()
        assert grid is not None
        clip = Clip(
            torch.stack(features), torch.stack(targets), measured, images, grid.pixels, grid.scale,
            metadata,
        )  # fmt: skip
        save_clip(path, clip)
        return clip

    def _describe_again(self, dataset: Dataset, stretches: list[range], clips: list[Clip]) -> None:
        """Features of a network that has changed since the clips were made."""
        self._prepare(self.runtime)
        for frames, clip in zip(stretches, clips, strict=True):
            clip.features = torch.stack([self._grid(dataset[i]).features.half() for i in frames])

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
            self.process.load_state_dict(part(tensors, "process"))
            self.scale.load_state_dict(part(tensors, "scale"))
            self.calibration = Calibration(**metadata["calibration"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise MapError(
                f"{scene_map.path} holds no filter of this version ({error}). Train again."
            ) from error
        self._prepare(runtime)
        self._freeze()

    def _prepare(self, runtime: Runtime) -> None:
        self.runtime = runtime
        if isinstance(self.process, OflowProcess):
            self.process.to(runtime.device)
            self.extractor = OflowExtractor(self.process)
            return
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
        self.last, self.median_std = None, float("nan")

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
        elif self.last is not None and np.array_equal(self.last[1].grey, grid.grey):
            step = self.tracker.hold(measured)
        else:
            assert self.last is not None
            assert self.tracker.state is not None
            motion = self.process.motion(
                self.last[1].features,
                grid.features,
                (self.last[1].grey, grid.grey) if self.process.refine else None,
            )
            std = process_std(self.process, motion, self.tracker.state) * self._process_factor
            step = self.tracker.step(measured, motion, std)
        if self.config.export:
            self._export(query, grid, step, event)
        self.last = (without_pixels(query), grid)
        self.shown = (query.image, step)
        return step, grid

    @property
    def _process_factor(self) -> float:
        """On the learned process noise."""
        return float(self.config.filter.process_factor * self.calibration.noise**0.5)

    def _export(self, query: Query, grid: FeatureGrid, step: Step, event: str) -> None:
        if self.export is None:
            self.export = MapExport(self.config.export)
        if not event and self.last is not None:
            self.export.write_flow(self.process, self.last[1], grid, step, self._process_factor)
        self.export.write(query.name, step, self.calibration.output, self.origin)

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
        if np.isfinite(step.measured.median_std):
            self.median_std = step.measured.median_std
        return correspondences(
            step.posterior, grid.pixels, self.origin, self.calibration.output,
            self.calibration.pose_factor(self.median_std),
        )  # fmt: skip

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """See `Estimator.pictures`."""
        if self.shown is None or self.shown[0] is not query.image:
            return {}
        from kfnet_temporal.filtering.pictures import step_pictures

        return step_pictures(query.image, self.shown[1], self.calibration.output)


def without_pixels(query: Query) -> Frame:
    """A query's metadata, so that its pixels need not be kept."""
    return Frame(query.name, query.camera, None, query.timestamp, query.sequence)


def build_process(config: TemporalConfig) -> Process:
    """The process that a config names."""
    options = config.process
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if options.name == "oflownet":
            return OflowProcess(options.resolution, options.min_std, options.weights)
        return FlowProcess(options.radius, options.min_std, options.refine)

"""The estimator `kfnet_temporal`: any dense measurement, filtered over a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import ClassVar

import numpy as np
import torch

from kfnet_temporal.common.grid import FeatureExtractor, FeatureGrid
from kfnet_temporal.common.inner import build_measurement
from kfnet_temporal.compact.process import NarrowProcess
from kfnet_temporal.config import TemporalConfig, check_temporal
from kfnet_temporal.filtering.calibration import Calibration
from kfnet_temporal.filtering.evidence import correspondences, inflate, measured_state
from kfnet_temporal.filtering.export import MapExport
from kfnet_temporal.filtering.kalman import State
from kfnet_temporal.filtering.noise import NoiseScale
from kfnet_temporal.filtering.process import Process, process_std
from kfnet_temporal.filtering.tracker import Step, Tracker
from kfnet_temporal.fitting import MEASUREMENT, Fitting
from kfnet_temporal.memory.flow import FlowProcess
from kfnet_temporal.published.process import OflowExtractor, OflowProcess
from kfnet_temporal.published.schedule import scheduled
from kfnet_temporal.published.tf_import import import_oflownet
from reloc_core.errors import InputError, MapError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.packing import part
from reloc_core.types import (
    Correspondences,
    Evidence,
    Float64Array,
    Frame,
    ImageArray,
    Localization,
    Query,
)


class TemporalEstimator(Estimator):
    """KFNet's scheme: measurement, flow process and Kalman filter over scene coordinates.

    Args:
        config: options; see `TemporalConfig`.
    """

    produces = Correspondences
    history: ClassVar[int] = 40

    def __init__(self, config: TemporalConfig) -> None:
        check_temporal(config)
        self.config = config = scheduled(config)
        self.measurement = build_measurement(config.measurement)
        self.process = build_process(config)
        self.scale = NoiseScale()
        self.calibration = Calibration()
        self.origin: Float64Array = np.zeros(3)
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
        Fitting(self, dataset, run).run_stages()
        self.freeze()
        self._save(run)

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
        self.measurement.load(scene_map.part(MEASUREMENT), runtime)
        try:
            self.origin = tensors["origin"].double().numpy()
            self.process.load_state_dict(part(tensors, "process"))
            self.scale.load_state_dict(part(tensors, "scale"))
            self.calibration = Calibration(**metadata["calibration"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise MapError(
                f"{scene_map.path} holds no filter of this version ({error}). Train again."
            ) from error
        self.prepare(runtime)
        self.freeze()

    def prepare(self, runtime: Runtime) -> None:
        """Choose what describes the images, once the measurement is ready."""
        self.runtime = runtime
        self.process.to(runtime.device)
        if isinstance(self.process, OflowProcess) and not isinstance(self.process, NarrowProcess):
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

    def freeze(self) -> None:
        """Stop training, and take over the calibration."""
        self.process.eval().requires_grad_(False)
        self.scale.eval().requires_grad_(False)
        self.tracker = Tracker(self.config.filter, self.calibration.min_similarity)

    # -------------------------------------------------------------------------- localization

    def start_sequence(self) -> None:
        """See `Estimator.start_sequence`."""
        self.tracker.reset()
        self.last, self.median_std = None, float("nan")

    def grid(self, query: Query) -> FeatureGrid:
        """What the flow of a query's image is computed from."""
        if self.extractor is None:
            raise MapError("kfnet_temporal has no map yet: call load or fit first.")
        return self.extractor(query)

    def state_of(self, evidence: Evidence, grid: FeatureGrid) -> State:
        """The measurement's evidence on the cells of the flow."""
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
        grid = self.grid(query)
        measured = inflate(self.scale(self.state_of(evidence, grid)), self.calibration.noise)
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
        found = correspondences(
            step.posterior, grid.pixels, self.origin, self.calibration.output,
            self.calibration.redundancy_at(self.median_std, step.gain),
        )  # fmt: skip
        return replace(found, signals=step.signals())

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
            network = import_oflownet(options.weights) if options.weights else None
            return OflowProcess(options.resolution, options.min_std, network)
        if options.name == "narrow":
            return NarrowProcess(options.resolution, options.min_std, options.divide)
        return FlowProcess(options.radius, options.min_std, options.refine)

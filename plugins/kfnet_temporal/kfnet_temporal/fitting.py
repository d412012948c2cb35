"""The stages of `TemporalEstimator.fit`, whatever the measurement and the process are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kfnet_temporal.common.grid import FeatureGrid
from kfnet_temporal.common.inner import InnerRun, SubsetLabels
from kfnet_temporal.common.labels import make_labels
from kfnet_temporal.common.sequences import beginnings, choose_stretches
from kfnet_temporal.compact.measurement import NarrowEstimator
from kfnet_temporal.compact.process import NarrowProcess
from kfnet_temporal.compact.training import train_narrow_both, train_narrow_flow
from kfnet_temporal.filtering.calibration import calibrate
from kfnet_temporal.filtering.clips import Clip, add_motions, load_clip, save_clip
from kfnet_temporal.memory.training import train_flow, train_joint
from kfnet_temporal.published.measurement import ScoordnetEstimator
from kfnet_temporal.published.process import OflowProcess
from kfnet_temporal.published.training import Scene, train_both, train_oflow
from reloc_core.datasets.subset import Subset
from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from kfnet_temporal.estimator import TemporalEstimator

MEASUREMENT = "measurement"
"""The measurement's part of the map."""


class Fitting:
    """One training of a temporal estimator.

    Args:
        estimator: whose measurement, process, scale and calibration are found.
        dataset: mapping images.
        run: of the training.

    Raises:
        DataError: no two consecutive frames, no poses, or no scene coordinates.
    """

    def __init__(self, estimator: TemporalEstimator, dataset: Dataset, run: Run) -> None:
        self.estimator, self.config = estimator, estimator.config
        self.dataset, self.run = dataset, run
        joint = self.config.joint
        self.stretches = choose_stretches(
            dataset, joint.frames, joint.stretches, self.config.filter.max_gap
        )
        self.labels = make_labels(dataset, self.config.labels, run)
        poses = [f.world_from_cam for f in dataset.frames if f.world_from_cam is not None]
        estimator.origin = np.stack(poses)[:, :3, 3].mean(0)
        self.checkpoint = Checkpoint(run.map)
        self.learned, self.learned_labels = dataset, self.labels

    def run_stages(self) -> None:
        """The measurement; the process; both or all noises together; the calibration."""
        measurement, process = self.estimator.measurement, self.estimator.process
        published = isinstance(measurement, ScoordnetEstimator)
        narrow = isinstance(measurement, NarrowEstimator)
        if published and isinstance(process, OflowProcess):
            self._measurement(all_images=True)
            self._published(measurement, process)
        elif narrow and isinstance(process, NarrowProcess):
            self._measurement(all_images=False)
            self._narrow(measurement, process)
        else:
            self._measurement(all_images=hasattr(measurement, "estimate_held_out"))
            self._clips()

    def _inner(self) -> InnerRun:
        run = self.run
        return InnerRun(
            run.runtime, run.map.part(MEASUREMENT), run.extra_datasets, run, self.learned_labels
        )

    def _measurement(self, all_images: bool) -> None:
        """Fit the measurement, on all images or on those outside the stretches' beginnings."""
        if not all_images:
            share = self.config.joint.held_out
            self.stretches = beginnings(self.stretches, self.dataset, share)
            left_out = {i for s in self.stretches for i in s}
            kept = [i for i in range(len(self.dataset)) if i not in left_out]
            self.learned = Subset(self.dataset, kept)
            self.learned_labels = SubsetLabels(self.labels, kept)
        inner, measurement = self._inner(), self.estimator.measurement
        if self.checkpoint.finished("measurement"):
            measurement.load(inner.map.so_far(), self.run.runtime)
            inner.map.details.update(self.checkpoint.notes("measurement"))
        else:
            measurement.fit(self.learned, inner)
            self.checkpoint.finish("measurement", notes=inner.map.details)
        self.run.map.details[MEASUREMENT] = inner.map.details
        self.estimator.prepare(self.run.runtime)

    # ------------------------------------------------------------- the published two networks

    def _published(self, measurement: ScoordnetEstimator, process: OflowProcess) -> None:
        self.estimator.scale.set_identity()
        train_oflow(process, self._scenes(), self.config, self.run, self.checkpoint)
        own = Scene(self.dataset, self.labels, measurement.normalised_from_world)
        train_both(measurement, process, own, self.config, self.run, self.checkpoint)
        measurement.freeze()
        measurement.save(self._inner())

    def _scenes(self) -> list[Scene]:
        """The mapped scene and the further ones that the flow may learn from, in world frames."""
        others = [
            Scene(d, make_labels(d, self.config.labels, self.run), np.eye(4))
            for d in self.run.extra_datasets
        ]
        return [Scene(self.dataset, self.labels, np.eye(4)), *others]

    # ----------------------------------------------------------------- the same two, narrow

    def _narrow(self, measurement: NarrowEstimator, process: NarrowProcess) -> None:
        if measurement.bank is None:
            measurement.gather(self.learned, self.learned_labels, self._inner())
        bank, measurement.bank = measurement.bank, None
        assert bank is not None
        rest = (self.learned, bank, self.config, self.run, self.checkpoint)
        train_narrow_flow(process, *rest)
        train_narrow_both(measurement, process, *rest)
        measurement.freeze()
        measurement.save(self._inner())
        process.eval().requires_grad_(False)
        clips = self._recorded()
        add_motions(process, clips, self.run)
        self.estimator.scale.fit(clips)
        self._calibrate(clips)

    # ------------------------------------------------------------------- a fixed measurement

    def _clips(self) -> None:
        estimator, process = self.estimator, self.estimator.process
        clips = self._recorded()
        if isinstance(process, OflowProcess):
            train_oflow(process, self._scenes(), self.config, self.run, self.checkpoint)
            with torch.no_grad():
                self._describe_again(clips)
        else:
            train_flow(process, clips, self.config, self.run, self.checkpoint)
        process.requires_grad_(False)
        add_motions(process, clips, self.run)
        process.noise.requires_grad_(True)
        train_joint(process, estimator.scale, clips, self.config, self.run, self.checkpoint)
        self._calibrate(clips)

    def _describe_again(self, clips: Sequence[Clip]) -> None:
        """Features of a network that has changed since the clips were made."""
        self.estimator.prepare(self.run.runtime)
        for frames, clip in zip(self.stretches, clips, strict=True):
            found = [self.estimator.grid(self.dataset[i]).features.half() for i in frames]
            clip.features = torch.stack(found)

    # -------------------------------------------------------------- measurements held out

    def _calibrate(self, clips: Sequence[Clip]) -> None:
        estimator = self.estimator
        estimator.freeze()
        with self.run.progress("Calibration", 1) as progress:
            estimator.calibration = calibrate(
                estimator.process, estimator.scale, clips, self.config, estimator.origin
            )
            progress.advance()

    def _recorded(self) -> list[Clip]:
        """Measurements of the stretches, which the measurement has not learned from."""
        clips = [self._clip(frames, number) for number, frames in enumerate(self.stretches)]
        if not any(bool(torch.isfinite(c.labels).any()) for c in clips):
            raise DataError(
                f"{self.dataset.name} has no scene coordinates to learn the noises from: its depth "
                "images are empty, or its images do not overlap."
            )
        return clips

    def _clip(self, frames: range, number: int) -> Clip:
        estimator = self.estimator
        path = self.run.map.scratch / f"clip{number}.safetensors"
        metadata = [self.dataset.frames[i] for i in frames]
        if path.is_file():
            return load_clip(path, metadata)
        features, targets, measured, images = [], [], [], []
        held_out = getattr(estimator.measurement, "estimate_held_out", None)
        grid: FeatureGrid | None = None
        with self.run.progress("Held-out measurements", len(frames)) as progress:
            for i in frames:
                query = self.dataset[i]
                grid = estimator.grid(query)
                evidence = held_out(query, i) if held_out else estimator.measurement.estimate(query)
                target = self.labels.at(i, query, grid.pixels) - estimator.origin
                features.append(grid.features.half())
                targets.append(torch.from_numpy(target).float().T.reshape(3, *grid.shape))
                measured.append(estimator.state_of(evidence, grid))
                images.append(grid.grey)
                progress.advance()
        assert grid is not None
        clip = Clip(
            torch.stack(features), torch.stack(targets), measured, images, grid.pixels, grid.scale,
            metadata,
        )  # fmt: skip
        save_clip(path, clip)
        return clip

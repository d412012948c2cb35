"""Adding images to maps that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reloc_core.calibration import Calibration, CalibrationConfig, hold_out
from reloc_core.datasets.subset import Subset
from reloc_core.datasets.upright import Upright
from reloc_core.engine.queries import run_queries
from reloc_core.engine.training import TrainingRun, calibrate, check_dataset, used_frames
from reloc_core.errors import ConfigError, DataError, RelocError
from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Dataset
from reloc_core.mapped import MappedFrames, mapped_frames, save_mapped_frames
from reloc_core.maps import Map, MapWriter, dataset_identity
from reloc_core.pipeline import PARTS, Pipeline
from reloc_core.registry import Component, Registry, default_registry
from reloc_core.runs import Reporter, resolve_runtime
from reloc_core.types import Frame, Query

_ASKED = 8  # new images that the old map is asked for, to see that it is the same world
_FAR_SHARE, _FAR_DEG = 0.1, 10.0  # of the scene's depth; degrees
_SAME = 1e-6


def extend(
    dataset: Dataset,
    map_dir: Path | str,
    *,
    calibration: CalibrationConfig | None = None,
    device: str = "auto",
    threads: int = 0,
    seed: int = 42,
    resume: bool = True,
    reporter: Reporter | None = None,
    registry: Registry | None = None,
) -> Map:
    """Add images to a map, which is replaced when all is done.

    What the map holds stays where it is; only the new images are described. Where they are many, the
    calibration is learned anew from some of them that are held out, else the one that is there is kept.

    Args:
        dataset: images posed in the world of the map; those that are in it already are passed over.
        map_dir: the map.
        calibration: how poses are calibrated; None for the defaults.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; 0 for all cores.
        seed: of everything random.
        resume: continue an interrupted extension by the same images.
        reporter: who hears of the progress; by default the terminal.
        registry: the installed components by default.

    Returns:
        the finished map.

    Raises:
        ConfigError: the map's method cannot add images.
        DataError: there is nothing new, or the poses are of another world.
        MapError: the map cannot be read, or somebody else is writing it.
    """
    registry = registry or default_registry()
    reporter = reporter or Reporter()
    old = Map.open(map_dir)
    component = check_extends(old, registry)
    runtime = resolve_runtime(device, threads, seed)
    check_dataset(component, dataset, runtime)
    if dataset.unit != old.info.unit:
        raise DataError(
            f"{dataset.name} is in the unit '{dataset.unit}', {map_dir} in '{old.info.unit}': images are "
            "added in the world of the map."
        )
    before = mapped_frames(old)
    dataset = Upright.of(dataset)
    new = new_frames(dataset, before)
    if not len(new):
        raise DataError(f"All {len(dataset)} images of {dataset.name} are in {map_dir} already.")
    passed = len(dataset) - len(new)
    fresh = Subset(dataset, new) if passed else dataset
    pipeline = Pipeline.from_map(old, runtime=runtime, registry=registry)
    options = calibration or CalibrationConfig()
    known = Calibration.of_map(old)
    held = hold_out(fresh, options, seed)
    if known is not None and len(held) <= known.held_out:
        held = held[:0]
    identity = {**dataset_identity(fresh), "seed": seed, "extends": dict(old.info.dataset)}
    writer = MapWriter(map_dir, replace(old.info, dataset=identity), resume, overwrite=True)
    run = TrainingRun(runtime, writer, reporter)
    try:
        reporter.create()
        if passed:
            reporter.note(f"{passed} images are in the map already.")
        _check_world(pipeline, fresh, reporter)
        mapped = Subset.without(fresh, held)
        pipeline.estimator.extend(mapped, run)
        frames = [
            Frame(str(i), camera, world_from_cam=pose)
            for i, (camera, pose) in enumerate(
                zip(before.cameras, before.world_from_cam, strict=True)
            )
        ]
        save_mapped_frames(writer, [*frames, *used_frames(writer, mapped)], writer.details)
        if len(held):
            ready = Pipeline.from_map(
                writer.so_far(), runtime=runtime, registry=registry, calibrated=False
            )
            calibrate(ready, fresh, held, run, options).save(writer)
        elif known is not None:
            known.save(writer)
        return writer.finish()
    except RelocError:
        writer.discard_without_checkpoint()
        raise
    finally:
        writer.close()


class Localized(Subset):
    """Images with the poses that a map gives them, those that it does not know left out.

    Args:
        dataset: the images, without poses.
        pipeline: of the map.
        reporter: who hears of the progress.

    Raises:
        DataError: none of them is localized.
    """

    def __init__(self, dataset: Dataset, pipeline: Pipeline, reporter: Reporter) -> None:
        found = {}
        with reporter.progress("Localizing", len(dataset)) as progress:
            for number, outcome in enumerate(run_queries(pipeline, dataset, observed=False)):
                if outcome.localization.localized:
                    found[number] = outcome.localization
                progress.advance(1, localized=str(len(found)))
        if not found:
            raise DataError(
                f"None of the {len(dataset)} images of {dataset.name} is localized in the map: without "
                "known poses, images are added that overlap with it."
            )
        if len(found) < len(dataset):
            reporter.note(
                f"{len(dataset) - len(found)} of {len(dataset)} images are not localized and left out: "
                "add them once those between them and the map are in it."
            )
        super().__init__(dataset, list(found))
        self._poses = [
            replace(
                dataset.frames[number], world_from_cam=pose.world_from_cam,
                camera=pose.camera_of(dataset.frames[number]),
            )
            for number, pose in found.items()
        ]  # fmt: skip
        assert pipeline.map is not None
        self._unit = pipeline.map.info.unit

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata with the poses found."""
        return self._poses

    @property
    def unit(self) -> str:
        """As the map."""
        return self._unit

    def __getitem__(self, index: int) -> Query:
        """Read an image."""
        frame = self._poses[index]
        query = super().__getitem__(index)
        return replace(query, camera=frame.camera, world_from_cam=frame.world_from_cam)

    def without_depth(self) -> Dataset:
        """The same: such images have none."""
        return self


def check_extends(scene_map: Map, registry: Registry | None = None) -> Component:
    """The component that can add images to a map.

    Raises:
        ConfigError: it cannot, and what to do instead.
    """
    info = scene_map.info
    registry = registry or default_registry()
    component = registry.get(info.interface, info.component)
    again = (
        f"Train it again on all images: reloc train {info.interface}={info.component} ... "
        f"map_dir={scene_map.path} overwrite=true"
    )
    if info.interface != "estimator" or not getattr(component.load(), "extends", False):
        raise ConfigError(f"'{info.component}' cannot add images to a map. {again}")
    if info.pipeline.get(PARTS):
        parts = ", ".join(info.pipeline[PARTS])
        raise ConfigError(f"{scene_map.path} also holds what {parts} learned. {again}")
    return component


def new_frames(dataset: Dataset, mapped: MappedFrames) -> list[int]:
    """Indices of the frames whose poses no mapped image has."""
    there = mapped.world_from_cam[:, :3].reshape(-1, 12)
    scale = max(float(np.abs(there).max(initial=1.0)), 1.0)
    poses = (np.asarray(f.world_from_cam)[:3].reshape(1, 12) for f in dataset.frames)
    return [i for i, p in enumerate(poses) if not (abs(there - p) < _SAME * scale).all(1).any()]


def _check_world(pipeline: Pipeline, dataset: Dataset, reporter: Reporter) -> None:
    """Ask the old map where some of the images are.

    Raises:
        DataError: where it knows, the poses say something else.
    """
    asked: Sequence[int] = np.unique(np.linspace(0, len(dataset) - 1, _ASKED).astype(int)).tolist()
    right = wrong = 0
    for index in asked:
        localization = pipeline.localize_alone(dataset, index)
        given, pose = dataset.frames[index].world_from_cam, localization.world_from_cam
        if not localization.localized or given is None or pose is None:
            continue
        depth = localization.support.get("depth") or 1.0
        far = float(np.linalg.norm(pose[:3, 3] - given[:3, 3])) > _FAR_SHARE * depth
        turned = float(rotation_angle_deg(pose[:3, :3], given[:3, :3])) > _FAR_DEG
        right, wrong = right + int(not (far or turned)), wrong + int(far or turned)
    if wrong > right:
        raise DataError(
            f"The poses of {dataset.name} are of another world than the map's: of {right + wrong} of its "
            f"images that the map localizes, {wrong} are elsewhere."
        )
    reporter.note(
        f"The map localizes {right + wrong} of {len(asked)} of the new images, {right} where they are said "
        "to be."
    )

"""Training estimators and refiners into maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reloc_core.calibration import (
    Calibration,
    CalibrationConfig,
    Witnesses,
    fit_calibration,
    foreign_pictures,
    hold_out,
    scene_scale,
)
from reloc_core.composition import compose
from reloc_core.config import TARGET, experiments, plain, typed_config
from reloc_core.datasets.subset import Subset
from reloc_core.datasets.upright import Upright
from reloc_core.engine.queries import run_queries
from reloc_core.errors import ConfigError, DataError, RelocError
from reloc_core.interfaces import Dataset, Progress, Run, Runtime
from reloc_core.map_cache import MapCache
from reloc_core.mapped import FRAMES, mapped_frames, save_mapped_frames
from reloc_core.mapping.pieces import ShareDone
from reloc_core.maps import Map, MapInfo, MapWriter, dataset_identity
from reloc_core.pipeline import PARTS, Pipeline, part_name
from reloc_core.registry import Component, Registry, default_registry
from reloc_core.runs import Reporter, resolve_runtime
from reloc_core.training.ranks import rank, world
from reloc_core.types import Frame, ScenePoints

Choice = str | Mapping[str, Any]
"""A component: its name, or `{"name": NAME, **options}` (`_target_` does as well as `name`)."""


@dataclass
class TrainingRun:
    """What `fit` gets beside the dataset; implements `reloc_core.interfaces.Run`.

    Attributes:
        runtime: device, threads, seed.
        map: where the map is written.
        reporter: who is told.
        extra_datasets: further scenes to learn from.
    """

    runtime: Runtime
    map: MapWriter
    reporter: Reporter
    extra_datasets: Sequence[Dataset] = field(default=())

    def progress(self, title: str, total: int) -> AbstractContextManager[Progress]:
        """Show progress of `total` steps under `title`."""
        return self.reporter.progress(title, total)

    def log(self, event: str, **values: Any) -> None:
        """Record a structured event."""
        self.reporter.log(event, **values)

    def note(self, text: str) -> None:
        """Tell the user something."""
        self.reporter.note(text)

    def show(self, title: str, points: Callable[[], ScenePoints]) -> None:
        """Show the points of the map so far to who watches."""
        self.reporter.show(title, points)


def train(
    dataset: Dataset,
    map_dir: Path | str,
    estimator: Choice | None = None,
    *,
    refiner: Choice | None = None,
    solver: Choice | None = None,
    refiners: Sequence[Choice] | None = None,
    extra_datasets: Sequence[Dataset] = (),
    calibration: CalibrationConfig | None = None,
    device: str = "auto",
    threads: int = 0,
    seed: int = 42,
    resume: bool = True,
    overwrite: bool = False,
    source: Path | None = None,
    share: tuple[int, int] | None = None,
    cache: MapCache | None = None,
    reporter: Reporter | None = None,
    registry: Registry | None = None,
) -> Map | None:
    """Fit an estimator, and the refiners after it, to a scene and write one map.

    Args:
        dataset: posed images of the scene.
        map_dir: directory to write; must not exist, unless `overwrite`.
        estimator: to train, or
        refiner: to train alone, for use after the estimator of another map. Exactly one of the two.
        solver: what localizes with the map by default; None for what the estimator recommends.
        refiners: the same; those that need a map which is neither named by `map_dir` nor that of the
            estimator are trained into this one. `{"name": NAME, "train": PRESET}` says by which preset
            (NAME/compact where there is one), `{"name": NAME, "train": {...}}` by which options.
        extra_datasets: further scenes, for methods that can learn from them.
        calibration: how poses are calibrated; None for the defaults.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; 0 for all cores.
        seed: of everything random.
        resume: continue an interrupted training of the same configuration.
        overwrite: replace a finished map.
        source: a file that another program trained, which the component's importer makes the map of.
        share: (K, N) to make the K-th of N shares of what can be shared, in this process, and no map:
            that is for a call without, when all shares are made.
        cache: where what was fitted before is taken from, and kept for the next time.
        reporter: who hears of the progress; by default the terminal.
        registry: the installed components by default.

    Returns:
        the finished map; None in the helper processes of a distributed training, and for a share.

    Raises:
        ConfigError: components or options are wrong.
        DataError: the dataset lacks what a method needs.
        MapError: a finished map is there, or an unfinished one of another configuration.
    """
    registry = registry or default_registry()
    reporter = reporter or Reporter()
    if (estimator is None) == (refiner is None):
        raise ConfigError("Choose exactly one of estimator=NAME and refiner=NAME to train.")
    interface, chosen = ("estimator", estimator) if estimator is not None else ("refiner", refiner)
    assert chosen is not None
    component, config = configured(chosen, interface, registry)
    if not component.needs_map:
        raise ConfigError(f"{interface} '{component.name}' has nothing to train.")
    runtime = resolve_runtime(device, threads, seed)
    check_dataset(component, dataset, runtime)
    if share is not None:
        _check_share(component, share, source)
    parts = trained_parts(component, refiners, registry) if interface == "estimator" else []
    for part in parts:
        check_dataset(part.component, dataset, runtime)
    pipeline = {
        key: value
        for key, value in (
            ("solver", plain(solver)),
            (
                "refiners",
                [_without_training(r) for r in refiners] if refiners is not None else None,
            ),
            (PARTS, {part.refiner: part.identity for part in parts} or None),
        )
        if value is not None
    }
    plugin = registry.plugins.get(component.plugin)
    info = MapInfo(
        interface=interface,
        component=component.name,
        plugin=component.plugin,
        plugin_version=plugin.version if plugin else "",
        config=plain(config),
        dataset={**dataset_identity(dataset), "seed": seed},
        unit=dataset.unit,
        pipeline=pipeline,
    )
    dataset = Upright.of(dataset)
    fit = component.load()(config).fit
    if source is not None:
        fit = partial(component.load_importer(), source, config)
    if source is not None or share is not None or world() > 1:
        cache = None
    primary = rank() == 0
    writer = MapWriter(map_dir, info, resume, overwrite, primary=primary, share=share)
    reporter.create()
    for note in dataset.notes:
        reporter.note(f"{dataset.name}: {note}")
    if primary and writer.has_checkpoint:
        reporter.note(f"Resuming the interrupted training of {map_dir}.")
    run = TrainingRun(runtime, writer, reporter, extra_datasets)
    options = calibration or CalibrationConfig()
    held = hold_out(dataset, options, seed) if interface == "estimator" else np.zeros(0, np.int64)
    mapped = Subset.without(dataset, held)
    fitted_from = {
        "data": [dataset_identity(d) for d in (mapped, *extra_datasets)] if cache else [],
        "seed": seed,
        "device": runtime.device,
    }
    try:
        _fit(component, config, fit, mapped, run, cache, fitted_from)
        for part in parts:
            inner = TrainingRun(
                runtime, writer.part(part_name(part.refiner)), reporter, extra_datasets
            )
            fit = part.component.load()(part.config).fit
            _fit(part.component, part.config, fit, mapped, inner, cache, fitted_from)
            writer.details[part.refiner] = inner.map.details
        if interface == "estimator" and primary and options.enabled:
            ready = Pipeline.from_map(
                writer.so_far(), runtime=runtime, registry=registry, calibrated=False
            )
            calibrate(ready, dataset, held, run, options).save(writer)
        return writer.finish() if primary else None
    except ShareDone as done:
        reporter.note(str(done))
        return None
    except RelocError:
        # Nothing half-made stays behind; an interrupted run that can resume does.
        writer.discard_without_checkpoint()
        raise
    finally:
        writer.close()


def _check_share(component: Component, share: tuple[int, int], source: Path | None) -> None:
    number, of = share
    if not 1 <= number <= of:
        raise ConfigError(f"A share is K/N with K from 1 to N, got {number}/{of}.")
    if source is not None or not getattr(component.load(), "shares", False):
        raise ConfigError(
            f"The mapping of '{component.name}' cannot be shared among processes: leave share out."
        )


def _fit(
    component: Component,
    config: Any,
    fit: Callable[[Dataset, Run], None],
    dataset: Dataset,
    run: TrainingRun,
    cache: MapCache | None,
    fitted_from: Mapping[str, Any],
) -> None:
    """Fit one component, unless an interrupted run, or another one, already came to its end."""

    def make() -> None:
        fit(dataset, run)
        # Where the map was seen from, for reports, viewers and the calibration. Written last: it says
        # that this component is complete.
        save_mapped_frames(run.map, used_frames(run.map, dataset), run.map.details)

    if not run.map.so_far().has(FRAMES):
        if cache is None:
            make()
            return
        cache.fit(component, {**fitted_from, "config": plain(config)}, run.map, make, run.note)
    run.map.details.update(run.map.so_far().tensors(FRAMES, "np")[1]["details"])


def used_frames(writer: MapWriter, dataset: Dataset) -> Sequence[Frame]:
    """The frames of a dataset that a map is made of."""
    frames = dataset.frames
    return frames if writer.used is None else [frames[i] for i in writer.used]


def calibrate(
    pipeline: Pipeline,
    dataset: Dataset,
    held: npt.NDArray[np.int64],
    run: TrainingRun,
    config: CalibrationConfig,
) -> Calibration:
    """Learn the calibration of a pipeline over a map that is complete but for it.

    Args:
        pipeline: without calibration.
        dataset: all images to map.
        held: indices of those that are not in the map; where there are none, a few of the map stand in.
        run: seed and progress.
        config: options.
    """
    witnesses = ask(pipeline, dataset, held, run, config)
    made = fit_calibration(witnesses, config)
    run.log("calibrated", held_out=made.held_out, spread=asdict(made.spread), **made.details)
    return made


def ask(
    pipeline: Pipeline,
    dataset: Dataset,
    held: npt.NDArray[np.int64],
    run: Run,
    config: CalibrationConfig,
) -> Witnesses:
    """Localize what a calibration is learned from; arguments as those of `calibrate`."""
    own = not len(held)
    asked = held if len(held) else np.unique(np.linspace(0, len(dataset) - 1, 8).astype(np.int64))
    blocks = _Blocks(dataset if pipeline.reads_depth else dataset.without_depth(), asked.tolist())
    count = min(config.foreign, max(24, len(dataset) // 8))
    found, foreign = [], []
    with run.progress("Calibrating", len(blocks) + count) as progress:
        for outcome in run_queries(pipeline, blocks, observed=False):
            found.append((outcome.frame, outcome.localization))
            progress.advance()
        pictures = foreign_pictures(dataset, count, run.runtime.seed)
        for outcome in run_queries(pipeline, pictures, observed=False):
            foreign.append(outcome.localization)
            progress.advance()
    assert pipeline.map is not None
    mapped = mapped_frames(pipeline.map).world_from_cam
    depths = [loc.support["depth"] for _, loc in found if "depth" in loc.support]
    depth = float(np.median(depths)) if depths else scene_scale(mapped)
    memorized = pipeline.estimator.memorizes or bool(pipeline.refiners)
    return Witnesses(found, foreign, mapped, depth, own, memorized)


class _Blocks(Subset):
    """Held-out frames; each run of consecutive ones is a sequence of its own."""

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata, with a sequence per block."""
        starts = np.flatnonzero(np.diff(self._indices, prepend=-2) != 1)
        block = np.searchsorted(starts, np.arange(len(self._indices)), side="right")
        return [
            frame if frame.sequence is None else replace(frame, sequence=f"held-out {number}")
            for frame, number in zip(super().frames, block, strict=True)
        ]


def check_dataset(component: Component, dataset: Dataset, runtime: Runtime) -> None:
    """Refuse early what a component cannot learn from.

    Raises:
        ConfigError: the machine lacks what the component needs.
        DataError: the dataset does.
    """
    if "cuda" in component.requires and runtime.device != "cuda":
        raise ConfigError(f"'{component.name}' needs a CUDA device; this run uses the CPU.")
    if "depth" in component.requires and not dataset.has_depth:
        raise DataError(f"'{component.name}' needs depth images; {dataset.name} has none.")
    unposed = sum(frame.world_from_cam is None for frame in dataset.frames)
    if unposed:
        raise DataError(
            f"{unposed} of {len(dataset)} frames of {dataset.name} have no pose; mapping needs them."
        )


def configured(choice: Choice, interface: str, registry: Registry) -> tuple[Component, Any]:
    """The component that a choice names, and its typed config.

    Raises:
        ConfigError: no name, unknown component or option.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop(TARGET, None) or options.pop("name", None)
    if not name:
        raise ConfigError(f"Every {interface} needs a name, as in {{name: NAME, ...}}.")
    component = registry.get(interface, str(name))
    return component, typed_config(component, options)


@dataclass(frozen=True)
class Part:
    """What is trained for a refiner: the refiner itself, or an estimator whose maps it reads.

    Attributes:
        refiner: its name.
        component: that is trained.
        config: its typed options.
    """

    refiner: str
    component: Component
    config: Any

    @property
    def identity(self) -> dict[str, Any]:
        """What the map says of it."""
        return {
            "interface": self.component.interface,
            "component": self.component.name,
            "config": plain(self.config),
        }


def trained_parts(
    estimator: Component, refiners: Sequence[Choice] | None, registry: Registry
) -> list[Part]:
    """What must be trained beside the estimator so that its refiners have a map.

    Args:
        estimator: of the map.
        refiners: as `train` takes them.
        registry: the installed components.

    Raises:
        ConfigError: an unknown refiner, preset or option.
    """
    parts = []
    for choice in refiners if refiners is not None else estimator.refiners:
        options = {"name": choice} if isinstance(choice, str) else dict(choice)
        component = registry.get("refiner", str(options.get("name", "")))
        if not component.needs_map or options.get("map_dir"):
            continue
        if estimator.name in component.reads_maps_of:
            continue
        reads = component.reads_maps_of
        source = registry.get("estimator", reads[0]) if reads else component
        parts.append(
            Part(component.name, source, _part_config(source, options.get("train"), registry))
        )
    return parts


def _part_config(component: Component, wanted: Any, registry: Registry) -> Any:
    """The typed config to train a part with: options, a preset's, or the defaults."""
    if isinstance(wanted, Mapping):
        return typed_config(component, wanted)
    preset = wanted or f"{component.name}/compact"
    if wanted is None and preset not in experiments(registry):
        return typed_config(component)
    fixed = ["dataset=synthetic", "map_dir=unused", f"experiment={preset}"]
    chosen = compose("train", fixed, registry).get(component.interface)
    if not chosen or registry.get(component.interface, str(chosen[TARGET])) != component:
        raise ConfigError(f"experiment={preset} does not train '{component.name}'.")
    return typed_config(component, chosen)


def _without_training(choice: Choice) -> Any:
    """A refiner as a finished map names it: how it was trained stands elsewhere."""
    if isinstance(choice, str):
        return choice
    return {k: v for k, v in plain(choice).items() if k != "train"}

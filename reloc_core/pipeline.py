"""An estimator, a solver and any number of refiners as one localizer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from reloc_core.calibration import Calibration, support
from reloc_core.config import TARGET, build, config_of_map, typed_config
from reloc_core.errors import ConfigError, DataError, InputError, MapError, RelocError
from reloc_core.geometry import orthonormalized
from reloc_core.interfaces import Dataset, Estimator, Refiner, Runtime, Solver
from reloc_core.mapped import FamiliarCameras, mapped_frames
from reloc_core.maps import REFINER_PART, Map, loading
from reloc_core.orientation import in_any_orientation, upright
from reloc_core.registry import Component, Registry, default_registry
from reloc_core.types import Evidence, ImageArray, Localization, Query


def check_fit(estimator: Component, solver: Component, registry: Registry) -> None:
    """Refuse a solver that does not take the estimator's evidence.

    Raises:
        ConfigError: names the solvers that would fit.
    """
    if estimator.produces in solver.accepts:
        return
    fitting = [c.name for c in registry.components("solver") if estimator.produces in c.accepts]
    raise ConfigError(
        f"Estimator '{estimator.name}' produces {estimator.produces}, solver '{solver.name}' accepts "
        f"{', '.join(solver.accepts)}. Solvers that fit: {', '.join(fitting) or 'none installed'}."
    )


def default_solver(estimator: Component, registry: Registry) -> Component:
    """The solver an estimator recommends, or the first one that takes its evidence."""
    if estimator.solver:
        return registry.get("solver", estimator.solver)
    for component in registry.components("solver"):
        if estimator.produces in component.accepts:
            return component
    raise ConfigError(
        f"No installed solver accepts the {estimator.produces} of '{estimator.name}'."
    )


@dataclass(frozen=True)
class Stage:
    """One component of a pipeline under the name it was registered by.

    Attributes:
        name: of the component.
        requires: what it cannot work without, as in `Component.requires`.
        reads_depth: whether it may look at the depth of a query.
    """

    name: str
    requires: tuple[str, ...] = ()
    reads_depth: bool = True

    @classmethod
    def of(cls, component: Component) -> Stage:
        """The stage that a registered component makes."""
        reads = component.reads_depth and component.interface != "solver"  # solvers see no query
        return cls(component.name, component.requires, reads)


class Stream(Protocol):
    """Frames of a video or a camera that come one after the other."""

    name: str


class Pipeline:
    """Localizes queries: estimate, solve, refine, and judge what came out.

    Args:
        estimator: ready to estimate (fitted or loaded).
        solver: accepts the estimator's evidence.
        refiners: `(name, refiner)`, ready to refine, applied in order.
        runtime: device, threads, seed.
        scene_map: the map that it was loaded from, or None.
        stages: estimator, solver and refiners in words; by default unnamed ones that require nothing.
        calibration: of the map, which turns scores into probabilities; None leaves them as they are.
        orientation: "exif" turns queries upright as their tag says, "any" tries the other orientations
            too where that fails (queries of a sequence excepted).
    """

    def __init__(
        self,
        estimator: Estimator,
        solver: Solver,
        refiners: Sequence[tuple[str, Refiner]] = (),
        runtime: Runtime | None = None,
        scene_map: Map | None = None,
        stages: Sequence[Stage] | None = None,
        calibration: Calibration | None = None,
        orientation: str = "exif",
    ) -> None:
        if orientation not in ("exif", "any"):
            raise ConfigError(f"orientation must be exif or any, got '{orientation}'.")
        self.orientation = orientation
        self.estimator = estimator
        self.solver = solver
        self.refiners = tuple(refiners)
        self.runtime = runtime or Runtime()
        self.map = scene_map
        self.calibration = calibration
        calibrated = scene_map if calibration is not None else None
        self._familiar = FamiliarCameras(mapped_frames(calibrated).cameras if calibrated else ())
        names = (type(estimator).__name__, type(solver).__name__, *(n for n, _ in self.refiners))
        self.stages = tuple(stages) if stages is not None else tuple(Stage(n) for n in names)

    @classmethod
    def from_map(
        cls,
        map_dir: Path | str | Map,
        solver: str | Mapping[str, Any] | None = None,
        refiners: Sequence[str | Mapping[str, Any]] | None = None,
        estimator: str | Mapping[str, Any] | None = None,
        runtime: Runtime | None = None,
        registry: Registry | None = None,
        calibrated: bool = True,
        orientation: str = "exif",
    ) -> Pipeline:
        """Load a map into a ready pipeline.

        Args:
            map_dir: directory written by `reloc train`, or a map that is open already.
            solver: name, or config with `_target_`; None for the one the map or else the estimator
                recommends.
            refiners: names, or `{"name": ..., "map_dir": ..., **options}`; None for those that belong
                to the map or else to the estimator. Without a `map_dir` a refiner uses what was trained
                for it into this map, or this map itself if it can.
            estimator: overrides of the map's estimator config; with a name it must be the map's.
            runtime: device, threads and seed; CPU with two threads by default.
            registry: the installed components by default.
            calibrated: whether the map's calibration judges the poses, where it has one.
            orientation: as in the constructor.

        Raises:
            MapError: the map cannot be used.
            ConfigError: components do not fit or options are wrong.
        """
        registry = registry or default_registry()
        runtime = runtime or Runtime()
        scene_map = map_dir if isinstance(map_dir, Map) else Map.open(map_dir)
        info = scene_map.info
        if info.interface == "collection":
            raise MapError(f"{scene_map.path} is a collection of maps; this needs a single map.")
        if info.interface != "estimator":
            raise MapError(
                f"{scene_map.path} is a map of {info.interface} '{info.component}', not of an "
                f"estimator. Use it as refiners=[{{name: {info.component}, map_dir: {scene_map.path}}}]."
            )
        component = registry.get("estimator", info.component)
        overrides = {TARGET: estimator} if isinstance(estimator, str) else dict(estimator or {})
        wanted = overrides.get(TARGET, component.name)
        if registry.get("estimator", str(wanted)).name != component.name:
            raise MapError(
                f"{scene_map.path} was trained for estimator '{info.component}', not '{wanted}'."
            )
        solver = solver or info.pipeline.get("solver")
        if refiners is None:
            refiners = info.pipeline.get("refiners", component.refiners)
        if isinstance(solver, str):
            solver = {TARGET: solver}
        solver_component = (
            registry.get("solver", str(solver[TARGET]))
            if solver
            else default_solver(component, registry)
        )
        check_fit(component, solver_component, registry)
        solver_object = build(solver or {TARGET: solver_component.name}, "solver", registry)
        loaded: Estimator = component.load()(config_of_map(component, scene_map, overrides))
        with loading(scene_map.path, f"estimator '{component.name}'"):
            loaded.load(scene_map, runtime)
        added = [load_refiner(choice, runtime, registry, scene_map) for choice in refiners]
        used = [component, solver_component, *(registry.get("refiner", n) for n, _ in added)]
        stages = [Stage.of(c) for c in used]
        for stage in stages:
            if "cuda" in stage.requires and runtime.device != "cuda":
                raise ConfigError(f"'{stage.name}' needs a CUDA device; this run uses the CPU.")
        calibration = Calibration.of_map(scene_map) if calibrated else None
        return cls(
            loaded, solver_object, added, runtime, scene_map, stages, calibration, orientation
        )

    @property
    def method(self) -> str:
        """The stages in words."""
        return " + ".join(stage.name for stage in self.stages)

    @property
    def reads_depth(self) -> bool:
        """Whether a stage may look at the depth of a query."""
        return any(stage.reads_depth for stage in self.stages)

    def unused(self, query: Query) -> str:
        """Say what a query brings that no stage looks at; "" for nothing."""
        prior = self.estimator.uses_prior or any(r.uses_prior for _, r in self.refiners)
        unseen = [
            *(["depth"] if query.depth is not None and not self.reads_depth else []),
            *(["the prior pose"] if query.prior is not None and not prior else []),
        ]
        return f"{' and '.join(unseen)} given, but not used by {self.method}" if unseen else ""

    @property
    def history(self) -> int:
        """How many preceding frames of the sequence shape the outcome of a query, about."""
        return max(self.estimator.history, *(r.history for _, r in self.refiners), 0)

    def check(self, queries: Dataset | Stream) -> None:
        """Refuse queries that lack what a stage cannot work without, before the first of them.

        Args:
            queries: a dataset, or the frames of a video, which have no depth.

        Raises:
            DataError: names the stage and what is missing.
        """
        depth, sequence = False, True
        if isinstance(queries, Dataset):
            depth = queries.has_depth
            sequence = any(f.sequence is not None for f in queries.frames)
        if lacking := self._lacking(queries.name, depth, sequence):
            raise DataError(lacking)

    def check_query(self, query: Query) -> None:
        """Refuse a single query that lacks what a stage cannot work without.

        Raises:
            InputError: names the stage and what is missing.
        """
        if lacking := self._lacking(
            query.name, query.depth is not None, query.sequence is not None
        ):
            raise InputError(lacking)

    def _lacking(self, name: str, depth: bool, sequence: bool) -> str:
        """What a stage misses in queries with or without depth and a sequence; "" for nothing."""
        name = name or "the image"
        for stage in self.stages:
            if "depth" in stage.requires and stage.reads_depth and not depth:
                return f"'{stage.name}' needs depth images; {name} has none."
            if "sequence" in stage.requires and not sequence:
                return (
                    f"'{stage.name}' needs the consecutive frames of a video; {name} is of none. Where the "
                    "order of photographs is that of a video, say so: dataset.sequence=order, video=true "
                    "for images of a folder, or sequence=NAME for a single one."
                )
        return ""

    def start_sequence(self) -> None:
        """Forget temporal state; call before the first query of every sequence."""
        self.estimator.start_sequence()
        for _, refiner in self.refiners:
            refiner.start_sequence()

    def estimate(self, query: Query) -> Evidence:
        """The estimator's evidence for a query, without its ground truth."""
        query, undo = upright(query.without_ground_truth())
        return undo.evidence(self.estimator.estimate(query), query.camera)

    def localize(self, query: Query) -> Localization:
        """Localize one query; "not localized" is a result, not an exception.

        Raises:
            InputError: it lacks what a stage cannot work without.
        """
        self.check_query(query)
        return self.localize_with_evidence(query)[1]

    def localize_alone(self, dataset: Dataset, index: int) -> Localization:
        """Localize an image as a photograph that belongs to no video.

        Returns:
            the outcome; a failure with its reason where the image cannot be read or is refused.
        """
        self.start_sequence()
        try:
            return self.localize_batch([replace(dataset[index], sequence=None)])[0][1]
        except RelocError as error:
            return Localization.failure(str(error))

    def localize_with_evidence(self, query: Query) -> tuple[Evidence, Localization]:
        """Like `localize`, and also returns what the solver was given."""
        return self.localize_batch([query])[0]

    def localize_batch(self, queries: Sequence[Query]) -> list[tuple[Evidence, Localization]]:
        """Localize several queries through the batched paths of estimator and solver.

        They are localized upright; what comes back belongs to their stored pixels.

        Returns:
            evidence and outcome of each, the same as one by one; stage times are shares of the batch.

        Raises:
            InputError: a query has no depth and a stage needs it. Queries without a sequence are taken:
                trackers and calibrations measure frames on their own.
        """
        turned = [upright(query.without_ground_truth()) for query in queries]
        found = self._localize_upright([query for query, _ in turned])
        outcomes = []
        for (query, undo), (evidence, localization) in zip(turned, found, strict=True):
            if self.orientation == "any" and query.sequence is None:
                evidence, localization, back = in_any_orientation(
                    query, (evidence, localization), lambda q: self._localize_upright([q])[0]
                )
                evidence = back.evidence(evidence, back.inverse.camera(query.camera))
                localization = back.localization(localization)
            evidence = undo.evidence(evidence, query.camera)
            localization = replace(
                undo.localization(localization), name=query.name, timestamp=query.timestamp
            )
            outcomes.append((evidence, localization))
        return outcomes

    def _localize_upright(self, queries: Sequence[Query]) -> list[tuple[Evidence, Localization]]:
        queries = [replace(q, camera=self._familiar.stated(q.camera)) for q in queries]
        for query in queries:
            if lacking := self._lacking(query.name, query.depth is not None, sequence=True):
                raise InputError(lacking)
        begin = time.perf_counter()
        evidence = self.estimator.estimate_batch(queries)
        estimated = time.perf_counter()
        cameras = [e.camera or q.camera for e, q in zip(evidence, queries, strict=True)]
        solved = self.solver.solve_batch(evidence, cameras, self.runtime)
        done = time.perf_counter()
        seconds = {
            "estimate": (estimated - begin) / len(queries),
            "solve": (done - estimated) / len(queries),
        }
        return [
            (given, self._finish(query, given, result, dict(seconds)))
            for query, given, result in zip(queries, evidence, solved, strict=True)
        ]

    def _finish(
        self, query: Query, evidence: Evidence, result: Localization, seconds: dict[str, float]
    ) -> Localization:
        """Refine and judge what a solver found."""
        stages = [("solve", result.world_from_cam)] if result.world_from_cam is not None else []
        camera = result.camera or evidence.camera
        query = replace(query, camera=camera or query.camera)
        speaks = support(evidence, result, query.camera) if result.localized else {}
        for name, refiner in self.refiners:
            if not result.localized and not refiner.takes_failures:
                continue
            start, known = time.perf_counter(), result.support
            result = refiner.refine(query, result, evidence)
            if speaks:
                told = {k: v for k, v in result.support.items() if k not in known}
                speaks |= {f"signal.{name}.{k}": float(v) for k, v in told.items()}
            seconds[f"refine.{name}"] = time.perf_counter() - start
            if result.world_from_cam is not None:
                stages.append((f"refine.{name}", result.world_from_cam))
        if result.world_from_cam is not None:
            result = replace(result, world_from_cam=orthonormalized(result.world_from_cam))
        result = replace(result, support=speaks, note=self.unused(query))
        if self.calibration is not None:
            result = self.calibration.judge(result)
        return replace(result, seconds=seconds, stages=tuple(stages), camera=camera)

    def pictures(self, query: Query, localization: Localization) -> dict[str, ImageArray]:
        """Titled pictures of all stages that explain a localization of `localize`."""
        query = replace(query.without_ground_truth(), camera=localization.camera_of(query))
        query, undo = upright(query)
        localization = undo.inverse.localization(localization)
        shown = dict(self.estimator.pictures(query, localization))
        for _, refiner in self.refiners:
            if localization.localized:
                shown.update(refiner.pictures(query, localization))
        return shown


def load_refiner(
    choice: str | Mapping[str, Any],
    runtime: Runtime,
    registry: Registry,
    estimator_map: Map | None = None,
) -> tuple[str, Refiner]:
    """Build a refiner from its name or from `{"name": ..., "map_dir": ..., **options}`.

    Args:
        choice: the refiner.
        runtime: device, threads and seed.
        registry: the installed components.
        estimator_map: what a refiner that needs a map uses when none is named and it can read it.

    Raises:
        ConfigError: no name, or no map where one is needed.
        MapError: the map is not one the refiner can read.
    """
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("name", None)
    if not name:
        raise ConfigError(
            "Every refiner needs a name, as in refiners=[{name: NAME, map_dir: DIR}]."
        )
    map_dir = options.pop("map_dir", None)
    options.pop("train", None)  # how it was trained, for `train`
    component = registry.get("refiner", str(name))
    scene_map = Map.open(map_dir) if map_dir else None
    if scene_map is not None and not can_read(component, scene_map):
        raise MapError(f"{map_dir} is a map of '{scene_map.info.component}', not of '{name}'.")
    if scene_map is None and estimator_map is not None:
        own = trained_part(estimator_map, component.name)
        scene_map = own or (estimator_map if can_read(component, estimator_map) else None)
    if scene_map is None:
        if component.needs_map:
            raise ConfigError(
                f"Refiner '{name}' needs a map: refiners=[{{name: {name}, map_dir: DIR}}] with one "
                f"made by 'reloc train'{_trained_by(component)}."
            )
        return component.name, component.load()(typed_config(component, options))
    stored = scene_map.info.config if scene_map.info.interface == "refiner" else {}
    refiner: Refiner = component.load()(typed_config(component, stored, options))
    with loading(scene_map.path, f"refiner '{component.name}'"):
        refiner.load(scene_map, runtime)
    return component.name, refiner


def can_read(refiner: Component, scene_map: Map) -> bool:
    """Whether a refiner can work with a map: its own, or that of an estimator it names."""
    info = scene_map.info
    if info.interface == "refiner":
        return info.component == refiner.name
    return info.component in refiner.reads_maps_of


PARTS = "trained"
"""Key of `MapInfo.pipeline`: what was trained into the map beside its estimator, by refiner."""


def part_name(refiner: str) -> str:
    """Name of the part of a map that was trained for a refiner."""
    return f"{REFINER_PART}{refiner}"


def trained_part(scene_map: Map, refiner: str) -> Map | None:
    """What was trained into an estimator's map for a refiner, as a map of its own; or None."""
    trained = scene_map.info.pipeline.get(PARTS, {}).get(refiner)
    if trained is None:
        return None
    return scene_map.part(part_name(refiner), **trained)


def _trained_by(component: Component) -> str:
    if component.reads_maps_of:
        return f" for {' or '.join(component.reads_maps_of)}"
    return f" refiner={component.name}"

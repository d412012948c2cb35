"""An estimator, a solver and any number of refiners as one localizer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from reloc_core.config import TARGET, build, typed_config
from reloc_core.errors import ConfigError, MapError
from reloc_core.interfaces import Estimator, Refiner, Runtime, Solver
from reloc_core.maps import Map
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


class Pipeline:
    """Localizes queries: estimate, solve, then refine.

    Args:
        estimator: ready to estimate (fitted or loaded).
        solver: accepts the estimator's evidence.
        refiners: `(name, refiner)`, ready to refine, applied in order.
        runtime: device, threads, seed.
        reads_depth: whether a stage may look at the depth of a query.
        orientation: "exif" turns queries upright as their tag says, "any" tries the other orientations
            too where that fails (queries of a sequence excepted).
    """

    def __init__(
        self,
        estimator: Estimator,
        solver: Solver,
        refiners: Sequence[tuple[str, Refiner]] = (),
        runtime: Runtime | None = None,
        reads_depth: bool = True,
        orientation: Literal["exif", "any"] = "exif",
    ) -> None:
        self.reads_depth = reads_depth
        self.orientation = orientation
        self.estimator = estimator
        self.solver = solver
        self.refiners = tuple(refiners)
        self.runtime = runtime or Runtime()

    @classmethod
    def from_map(
        cls,
        map_dir: Path | str,
        solver: str | Mapping[str, Any] | None = None,
        refiners: Sequence[str | Mapping[str, Any]] | None = None,
        estimator: Mapping[str, Any] | None = None,
        runtime: Runtime | None = None,
        registry: Registry | None = None,
    ) -> Pipeline:
        """Load a map into a ready pipeline.

        Args:
            map_dir: directory written by `reloc train`.
            solver: name, or config with `_target_`; None for the one the map or else the estimator
                recommends.
            refiners: names, or `{"name": ..., "map_dir": ..., **options}`; None for those that belong
                to the map or else to the estimator. Without a `map_dir` a refiner uses this map if it can.
            estimator: overrides of the map's estimator config.
            runtime: device, threads and seed; CPU with two threads by default.
            registry: the installed components by default.

        Raises:
            MapError: the map cannot be used.
            ConfigError: components do not fit or options are wrong.
        """
        registry = registry or default_registry()
        runtime = runtime or Runtime()
        scene_map = Map.open(map_dir)
        info = scene_map.info
        if info.interface != "estimator":
            raise MapError(
                f"{map_dir} is a map of {info.interface} '{info.component}', not of an estimator. "
                f"Use it as refiners=[{{name: {info.component}, map_dir: {map_dir}}}]."
            )
        component = registry.get("estimator", info.component)
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
        loaded: Estimator = component.load()(typed_config(component, info.config, estimator or {}))
        loaded.load(scene_map, runtime)
        stages = [load_refiner(choice, runtime, registry, scene_map) for choice in refiners]
        used = [component, *(registry.get("refiner", name) for name, _ in stages)]
        reads_depth = any(c.reads_depth for c in used)
        return cls(loaded, solver_object, stages, runtime, reads_depth)

    @property
    def history(self) -> int:
        """How many preceding frames of the sequence shape the outcome of a query, about."""
        return max(self.estimator.history, *(r.history for _, r in self.refiners), 0)

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
        """Localize one query; "not localized" is a result, not an exception."""
        return self.localize_with_evidence(query)[1]

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

    def localize_with_evidence(self, query: Query) -> tuple[Evidence, Localization]:
        """Like `localize`, and also returns what the solver was given.

        The query is localized upright; what comes back belongs to its stored pixels.
        """
        query, undo = upright(query.without_ground_truth())
        if self.orientation == "any" and query.sequence is None:
            evidence, found, back = in_any_orientation(query, self._localize_upright)
            evidence = back.evidence(evidence, back.inverse.camera(query.camera))
            found = back.localization(found)
        else:
            evidence, found = self._localize_upright(query)
        return undo.evidence(evidence, query.camera), undo.localization(found)

    def _localize_upright(self, query: Query) -> tuple[Evidence, Localization]:
        begin = time.perf_counter()
        evidence = self.estimator.estimate(query)
        estimated = time.perf_counter()
        result = self.solver.solve(evidence, query.camera, self.runtime)
        solved = time.perf_counter()
        seconds = {"estimate": estimated - begin, "solve": solved - estimated}
        stages = [("solve", result.world_from_cam)] if result.world_from_cam is not None else []
        camera = result.camera
        query = replace(query, camera=result.camera_of(query))
        for name, refiner in self.refiners:
            if not result.localized and not refiner.takes_failures:
                continue
            start = time.perf_counter()
            result = refiner.refine(query, result, evidence)
            seconds[f"refine.{name}"] = time.perf_counter() - start
            if result.world_from_cam is not None:
                stages.append((f"refine.{name}", result.world_from_cam))
        return evidence, replace(result, seconds=seconds, stages=tuple(stages), camera=camera)


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
    component = registry.get("refiner", str(name))
    scene_map = Map.open(map_dir) if map_dir else None
    readable = {("refiner", component.name), *(("estimator", e) for e in component.reads_maps_of)}
    if scene_map is not None:
        if (scene_map.info.interface, scene_map.info.component) not in readable:
            raise MapError(f"{map_dir} is a map of '{scene_map.info.component}', not of '{name}'.")
    elif estimator_map is not None and estimator_map.info.component in component.reads_maps_of:
        scene_map = estimator_map
    if scene_map is None:
        if component.needs_map:
            raise ConfigError(
                f"Refiner '{name}' needs a map: refiners=[{{name: {name}, map_dir: DIR}}] with one "
                f"made by 'reloc train'{_trained_by(component)}."
            )
        return component.name, component.load()(typed_config(component, options))
    own = scene_map.info.config if scene_map.info.interface == "refiner" else {}
    refiner: Refiner = component.load()(typed_config(component, own, options))
    refiner.load(scene_map, runtime)
    return component.name, refiner


def _trained_by(component: Component) -> str:
    if component.reads_maps_of:
        return f" for {' or '.join(component.reads_maps_of)}"
    return f" refiner={component.name}"

"""`reloc train`: fit an estimator or a refiner to a scene and write its map."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from reloc_core.config import TARGET, build, experiments, plain, typed_config
from reloc_core.errors import ConfigError, DataError, RelocError
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.mapped import save_mapped_frames
from reloc_core.maps import Map, MapInfo, MapWriter, dataset_identity
from reloc_core.registry import Component, Registry, default_registry
from reloc_core.runs import RunDirectory, resolve_runtime


def chosen_component(cfg: DictConfig, registry: Registry) -> tuple[Component, DictConfig]:
    """The estimator or refiner to train, with its config."""
    chosen = [(i, cfg[i]) for i in ("estimator", "refiner") if cfg.get(i)]
    if len(chosen) != 1:
        what = (
            "No method was chosen" if not chosen else "Both an estimator and a refiner are chosen"
        )
        raise ConfigError(
            f"{what}: add experiment=NAME, one of {', '.join(experiments(registry))}; "
            "or exactly one of estimator=NAME, refiner=NAME."
        )
    interface, config = chosen[0]
    return registry.get(interface, str(config[TARGET])), config


def require(component: Component, dataset: Dataset, runtime: Runtime) -> None:
    """Refuse early what the component cannot work with."""
    if "cuda" in component.requires and runtime.device != "cuda":
        raise ConfigError(f"'{component.name}' needs a CUDA device; this run uses the CPU.")
    if "depth" in component.requires and not dataset.has_depth:
        raise DataError(f"'{component.name}' needs depth images; {dataset.name} has none.")
    unposed = sum(frame.world_from_cam is None for frame in dataset.frames)
    if unposed:
        raise DataError(
            f"{unposed} of {len(dataset)} frames of {dataset.name} have no pose; mapping needs them."
        )


def extra_datasets(cfg: DictConfig, registry: Registry) -> list[Dataset]:
    """The further scenes of `extra_datasets=[{name: DATASET, root: DIR}, ...]`.

    Raises:
        ConfigError: an entry has no name or wrong options.
    """
    found = []
    for entry in plain(cfg.get("extra_datasets")) or []:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise ConfigError(
                f"extra_datasets takes entries such as {{name: ace, root: DIR}}, got {entry!r}."
            )
        options = {"split": "train", **entry}
        name = options.pop("name")
        dataset: Dataset = build({TARGET: name, **options}, "dataset", registry)
        found.append(dataset)
    return found


def recommended_pipeline(cfg: DictConfig) -> dict[str, Any]:
    """Solver and refiners that the preset or the user wants to be used with the map."""
    chosen = {key: plain(cfg.get(key)) for key in ("solver", "refiners")}
    return {key: value for key, value in chosen.items() if value is not None}


def fit_map(
    component: Component,
    config: Any,
    dataset: Dataset,
    run: RunDirectory,
    map_dir: Path | str,
    registry: Registry,
    resume: bool = True,
    overwrite: bool = False,
    pipeline: Mapping[str, Any] | None = None,
) -> Map | None:
    """Train and finish a map; None in the helper processes of a distributed run."""
    require(component, dataset, run.runtime)
    plugin = registry.plugins.get(component.plugin)
    info = MapInfo(
        interface=component.interface,
        component=component.name,
        plugin=component.plugin,
        plugin_version=plugin.version if plugin else "",
        config=plain(config),
        dataset={**dataset_identity(dataset), "seed": run.runtime.seed},
        unit=dataset.unit,
        pipeline=pipeline or {},
    )
    trained = component.load()(config)
    run.map = MapWriter(map_dir, info, resume, overwrite, primary=not run.quiet)
    run.create()
    for note in dataset.notes:
        run.note(f"{dataset.name}: {note}")
    if run.map.primary and run.map.has_checkpoint:
        run.note(f"Resuming the interrupted training of {map_dir}.")
    try:
        trained.fit(dataset, run)
    except RelocError:
        # Nothing half-made stays behind; an interrupted run that can resume does.
        run.map.discard_without_checkpoint()
        raise
    save_mapped_frames(run.map, dataset.frames)
    return run.map.finish() if run.map.primary else None


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    registry = default_registry()
    component, node = chosen_component(cfg, registry)
    config = typed_config(component, node)
    dataset: Dataset = build(cfg.dataset, "dataset", registry)
    helper_process = int(os.environ.get("RANK", "0")) > 0
    runtime = resolve_runtime(cfg.device, cfg.threads, cfg.seed)
    record = RunDirectory(cfg.output_dir, "train", cfg, overrides, runtime, quiet=helper_process)
    record.extra_datasets = extra_datasets(cfg, registry)
    if component.needs_map is False:
        raise ConfigError(f"{component.interface} '{component.name}' has nothing to train.")
    registry.manager.hook.reloc_run_started(verb="train", config=plain(cfg))
    finished = fit_map(
        component,
        config,
        dataset,
        record,
        cfg.map_dir,
        registry,
        cfg.resume,
        cfg.overwrite,
        recommended_pipeline(cfg),
    )
    if finished is None:
        return 0
    result = record.result(
        "ok",
        map={"path": str(cfg.map_dir), "bytes": finished.bytes, **finished.info.details},
        dataset=dict(finished.info.dataset),
    )
    registry.manager.hook.reloc_run_finished(verb="train", result=result)
    record.note(
        f"Map: {cfg.map_dir} ({finished.bytes / 1e6:.1f} MB, {result['seconds']['total']:.0f} s). "
        f"Next: reloc evaluate map_dir={cfg.map_dir} ..."
    )
    return 0

"""`reloc benchmark`: map a scene, localize its test split, and show published numbers beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reloc_core.cli.evaluate import finish, localize_dataset, report_results
from reloc_core.cli.train import chosen_component, fit_map, recommended_pipeline
from reloc_core.config import TARGET, build, plain, typed_config
from reloc_core.errors import ConfigError, MapError
from reloc_core.evaluation.compare import Bootstrap, compare_scene
from reloc_core.evaluation.comparison_page import csv_text, json_content, published_rows, text_table
from reloc_core.evaluation.estimates import read_estimates, read_truth
from reloc_core.evaluation.published import MEAN, read_published
from reloc_core.evaluation.results import QueryResult
from reloc_core.interfaces import Dataset
from reloc_core.io.files import write_atomically
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline, check_fit, default_solver
from reloc_core.registry import Component, default_registry
from reloc_core.runs import RunDirectory, console, resolve_runtime


def _split(cfg: DictConfig, split: str) -> Dataset:
    node = OmegaConf.merge(cfg.dataset, {"split": split})
    dataset: Dataset = build(node, "dataset")  # type: ignore[arg-type]
    return dataset


def _published(cfg: DictConfig) -> None:
    """Refuse early what would fail after hours of training."""
    if cfg.published_table:
        table = read_published(cfg.published_table)
        if cfg.scene not in (*table.scenes, MEAN):
            raise ConfigError(
                f"The table '{cfg.published_table}' has no scene '{cfg.scene}': scene must be one of "
                f"{', '.join((*table.scenes, MEAN))}."
            )


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    registry = default_registry()
    component, node = chosen_component(cfg, registry)
    if component.interface != "estimator":
        raise ConfigError(
            "reloc benchmark maps with an estimator: choose estimator=NAME or a preset."
        )
    config = typed_config(component, node)
    _published(cfg)
    train, test = _split(cfg, cfg.dataset.split), _split(cfg, cfg.test_split)
    if cfg.dry_run:
        return _dry_run(cfg, component, config, train, test)
    runtime = resolve_runtime(cfg.device, cfg.threads, cfg.seed)
    helper_process = int(os.environ.get("RANK", "0")) > 0
    record = RunDirectory(
        cfg.output_dir, "benchmark", cfg, overrides, runtime, quiet=helper_process
    )
    record.create()
    scene_map = _existing(cfg, component.name)
    if scene_map is None:
        scene_map = fit_map(
            component, config, train, record, cfg.map_dir, registry,
            pipeline=recommended_pipeline(cfg),
        )  # fmt: skip
    else:
        record.note(f"Using the map {cfg.map_dir}.")
    if scene_map is None or helper_process:  # the first process of a distributed run measures
        return 0
    solver = plain(cfg.solver) if cfg.get("solver") else None
    pipeline = Pipeline.from_map(cfg.map_dir, solver, plain(cfg.refiners), {}, runtime, registry)
    results = localize_dataset(pipeline, test, record, "Localizing")
    method = " + ".join([component.name, solver[TARGET] if solver else "default solver"])
    result = report_results(results, test, pipeline, scene_map, method, record, bool(cfg.report))
    if cfg.published_table and any(r.truth is not None for r in results):
        _beside_published(cfg, record, method, results)
    return finish(record, results, result)


def _dry_run(
    cfg: DictConfig, component: Component, config: Any, train: Dataset, test: Dataset
) -> int:
    """Say what would be done; raises what would fail before the first step of training."""
    registry = default_registry()
    component.load()(config)
    solver = (
        registry.get("solver", str(cfg.solver[TARGET]))
        if cfg.get("solver")
        else default_solver(component, registry)
    )
    check_fit(component, solver, registry)
    chosen = plain(cfg.refiners)
    refiners = [r if isinstance(r, str) else r["name"] for r in chosen or ()]
    for name in refiners:
        registry.get("refiner", name)
    method = " + ".join([component.name, solver.name, *(refiners or component.refiners)])
    console.print(
        f"{train.name}: {len(train)} images to map, {test.name}: {len(test)} to localize; {method}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def _existing(cfg: DictConfig, component: str) -> Map | None:
    """The finished map at `map_dir`, None where there is none."""
    if not (Path(cfg.map_dir) / "map.yaml").is_file():
        return None
    scene_map = Map.open(cfg.map_dir)
    if scene_map.info.component != component:
        raise MapError(
            f"{cfg.map_dir} was trained for estimator '{scene_map.info.component}', not '{component}'."
        )
    return scene_map


def _beside_published(
    cfg: DictConfig, record: RunDirectory, method: str, results: Sequence[QueryResult]
) -> None:
    truth = read_truth(record.path, cfg.scene)
    scene = compare_scene(truth, [read_estimates(record.path, method)], Bootstrap())
    rows = published_rows(read_published(cfg.published_table), cfg.scene)
    write_atomically(record.path / "compare.csv", csv_text([(scene, rows)]))
    content = json_content({scene.name: scene})
    write_atomically(record.path / "compare.json", json.dumps(content, indent=1) + "\n")
    console.print(text_table(scene, rows))

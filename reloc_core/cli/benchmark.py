"""`reloc benchmark`: map a scene, localize its test split, and show published numbers beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reloc_core.cli.results import finish, report_results
from reloc_core.cli.train import chosen, new_record, train_map
from reloc_core.config import TARGET, build, plain, typed_config
from reloc_core.engine import evaluate
from reloc_core.engine.training import Part, configured, trained_parts
from reloc_core.errors import ConfigError, MapError
from reloc_core.evaluation.compare import Bootstrap, compare_scene
from reloc_core.evaluation.comparison_page import csv_text, json_content, published_rows, text_table
from reloc_core.evaluation.estimates import read_estimates, read_truth
from reloc_core.evaluation.published import MEAN, read_published
from reloc_core.interfaces import Dataset
from reloc_core.io.files import write_atomically
from reloc_core.maps import Map, dataset_identity
from reloc_core.pipeline import PARTS, Pipeline, check_fit, default_solver
from reloc_core.registry import Component, default_registry
from reloc_core.runs import RunDirectory, console


def split(cfg: DictConfig, name: str) -> Dataset:
    """A split of the configured dataset."""
    node = OmegaConf.merge(cfg.dataset, {"split": name})
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
    method = chosen(cfg, default_registry())
    if "estimator" not in method:
        raise ConfigError(
            "reloc benchmark maps with an estimator: choose estimator=NAME or a preset."
        )
    component, config = configured(method["estimator"], "estimator", default_registry())
    _published(cfg)
    mapping, test = split(cfg, cfg.dataset.split), split(cfg, cfg.test_split)
    if cfg.dry_run:
        return _dry_run(cfg, component, config, mapping, test)
    with new_record(cfg, "benchmark", overrides) as record:
        record.create()
        scene_map = _existing(cfg, component, config, mapping)
        if scene_map is None:
            scene_map = train_map(cfg, mapping, cfg.map_dir, record)
        else:
            record.note(f"Using the map {cfg.map_dir}.")
        if scene_map is None or record.quiet:  # the first process of a distributed run measures
            return 0
        solver, refiners = plain(cfg.get("solver")), plain(cfg.refiners)
        pipeline = Pipeline.from_map(scene_map, solver, refiners, runtime=record.runtime)
        evaluation = evaluate(pipeline, test, batch=cfg.batch, reporter=record)
        report_results(evaluation, pipeline, record, bool(cfg.report))
        if cfg.published_table and any(r.truth is not None for r in evaluation.results):
            _beside_published(cfg, record, pipeline.method)
        return finish(record, evaluation.results)


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


def _existing(cfg: DictConfig, component: Component, config: Any, mapping: Dataset) -> Map | None:
    """The finished map at `map_dir`, None where there is none.

    Raises:
        MapError: it is of another configuration, seed or dataset than asked for, or what was trained
            into it for a refiner is.
    """
    if not (Path(cfg.map_dir) / "map.yaml").is_file():
        return None
    scene_map = Map.open(cfg.map_dir)
    info = scene_map.info
    wanted = {**dataset_identity(mapping), "seed": cfg.seed}
    trained = info.pipeline.get(PARTS, {})
    parts = trained_parts(component, plain(cfg.refiners), default_registry())
    differs = [
        what
        for what, same in (
            (f"estimator {info.component}", info.component == component.name),
            ("options of the estimator", plain(typed_config(component, info.config)) == plain(config)
             if info.component == component.name else True),
            *((f"training of {p.refiner}", _same_part(p, trained.get(p.refiner))) for p in parts),
            (f"dataset {info.dataset.get('name')}", dict(info.dataset) == wanted),
        )
        if not same
    ]  # fmt: skip
    if differs:
        raise MapError(
            f"{cfg.map_dir} holds a map of another {', '.join(differs)}. Choose another map_dir, or "
            "measure that map with 'reloc evaluate'."
        )
    return scene_map


def _same_part(wanted: Part, stored: Mapping[str, Any] | None) -> bool:
    """Whether a map holds a refiner's part as it would be trained now."""
    if stored is None or stored["component"] != wanted.component.name:
        return False
    return bool(plain(typed_config(wanted.component, stored["config"])) == plain(wanted.config))


def _beside_published(cfg: DictConfig, record: RunDirectory, method: str) -> None:
    truth = read_truth(record.path, cfg.scene)
    scene = compare_scene(truth, [read_estimates(record.path, method)], Bootstrap())
    rows = published_rows(read_published(cfg.published_table), cfg.scene)
    write_atomically(record.path / "compare.csv", csv_text([(scene, rows)]))
    content = json_content({scene.name: scene})
    write_atomically(record.path / "compare.json", json.dumps(content, indent=1) + "\n")
    console.print(text_table(scene, rows))

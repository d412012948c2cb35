"""`reloc demo`: map the embedded room, localize its test path, write a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from reloc_core.cli.evaluate import finish, localize_dataset, report_results
from reloc_core.cli.train import chosen_component, fit_map
from reloc_core.config import build, plain, typed_config
from reloc_core.interfaces import Dataset
from reloc_core.pipeline import Pipeline
from reloc_core.registry import default_registry
from reloc_core.runs import RunDirectory, resolve_runtime


def _split(cfg: DictConfig, split: str) -> Dataset:
    node = OmegaConf.merge(cfg.dataset, {"split": split})
    assert isinstance(node, DictConfig)
    dataset: Dataset = build(node, "dataset")
    return dataset


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    registry = default_registry()
    component, node = chosen_component(cfg, registry)
    config = typed_config(component, node)
    runtime = resolve_runtime(cfg.device, cfg.threads, cfg.seed)
    record = RunDirectory(cfg.output_dir, "demo", cfg, overrides, runtime)
    record.create()
    map_dir = Path(cfg.output_dir) / "map"
    train, test = _split(cfg, "train"), _split(cfg, "test")
    record.note(
        f"1/3  Mapping {train.name}: {len(train)} posed images with {component.name} "
        f"on {runtime.device}, {runtime.threads} threads"
    )
    scene_map = fit_map(component, config, train, record, map_dir, registry)
    assert scene_map is not None
    record.note(
        f"2/3  Localizing {len(test)} images of another path in the map "
        f"({scene_map.bytes / 1e6:.1f} MB)"
    )
    solver = plain(cfg.solver) if cfg.get("solver") else None
    pipeline = Pipeline.from_map(map_dir, solver, plain(cfg.refiners), runtime=runtime)
    results = localize_dataset(pipeline, test, record, "Localizing")
    record.note("3/3  Writing the report")
    result = report_results(results, test, pipeline, scene_map, component.name, record, True)
    code = finish(record, results, result)
    record.note(
        f"\nLook at {record.path / 'report.html'} in a browser. Try next:\n"
        f"  reloc localize map_dir={map_dir} images=PHOTOS camera.focal=FOCAL_IN_PIXELS\n"
        "  reloc train experiment=landmarks/default dataset=ace dataset.root=DIR map_dir=MAP\n"
        "  reloc train --help"
    )
    return code

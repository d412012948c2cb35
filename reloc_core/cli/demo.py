"""`reloc demo`: map the embedded room, localize its test path, write a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from reloc_core.cli.benchmark import split
from reloc_core.cli.results import finish, report_results
from reloc_core.cli.train import new_record, train_map
from reloc_core.config import plain
from reloc_core.engine import evaluate
from reloc_core.pipeline import Pipeline


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    with new_record(cfg, "demo", overrides) as record:
        record.create()
        map_dir = Path(cfg.output_dir) / "map"
        mapping, test = split(cfg, "train"), split(cfg, "test")
        name = plain(cfg.estimator)["_target_"]
        record.note(
            f"1/3  Mapping {mapping.name}: {len(mapping)} posed images with {name} "
            f"on {record.runtime.device}, {record.runtime.threads} threads"
        )
        scene_map = train_map(cfg, mapping, str(map_dir), record)
        assert scene_map is not None
        record.note(
            f"2/3  Localizing {len(test)} images of another path in the map "
            f"({scene_map.bytes / 1e6:.1f} MB)"
        )
        pipeline = Pipeline.from_map(scene_map, runtime=record.runtime)
        evaluation = evaluate(pipeline, test, reporter=record)
        record.note("3/3  Writing the report")
        report_results(evaluation, pipeline, record, True)
        code = finish(record, evaluation.results)
        record.note(
            f"\nLook at {record.path / 'report.html'} in a browser. Try next:\n"
            f"  reloc localize map_dir={map_dir} images=PHOTOS camera.focal=FOCAL_IN_PIXELS\n"
            "  reloc train experiment=landmarks/default dataset=ace dataset.root=DIR map_dir=MAP\n"
            "  reloc train --help"
        )
        return code

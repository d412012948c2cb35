"""`reloc evaluate`: localize a split and compare with its ground truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from reloc_core.cli.results import finish, load_pipeline, report_results
from reloc_core.config import build
from reloc_core.engine import Evaluation, Outcome, evaluate
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset
from reloc_core.pipeline import Pipeline
from reloc_core.runs import RunDirectory


def evaluate_on_video(pipeline: Pipeline, dataset: Dataset, run: RunDirectory) -> Evaluation:
    """Localize all queries and write a video of it."""
    from reloc_core.evaluation.video import VIDEO_FILE, RunVideo

    with RunVideo(run.path / VIDEO_FILE, dataset.frames) as video:

        def watch(outcome: Outcome) -> None:
            if outcome.query is not None:
                shown = pipeline.pictures(outcome.query, outcome.localization)
                video.add(outcome.query, outcome.localization, shown)

        return evaluate(pipeline, dataset, on_outcome=watch, reporter=run)


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    if cfg.video and cfg.batch > 1:
        raise ConfigError(
            "video=true shows what a method has just seen of each image: leave batch out."
        )
    dataset: Dataset = build(cfg.dataset, "dataset")
    pipeline = load_pipeline(cfg)
    pipeline.check(dataset)
    with RunDirectory(cfg.output_dir, "evaluate", cfg, overrides, pipeline.runtime) as record:
        record.create()
        for note in dataset.notes:
            record.note(f"{dataset.name}: {note}")
        if cfg.video:
            evaluation = evaluate_on_video(pipeline, dataset, record)
        else:
            evaluation = evaluate(pipeline, dataset, batch=cfg.batch, reporter=record)
        report_results(evaluation, pipeline, record, bool(cfg.report))
        return finish(record, evaluation.results)

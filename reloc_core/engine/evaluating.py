"""Localizing the queries of a dataset and comparing with its ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reloc_core.collection import open_pipeline
from reloc_core.datasets.scene_depth import scene_depth
from reloc_core.engine.queries import Localizes, Outcome, run_queries
from reloc_core.evaluation import (
    Metrics,
    QueryResult,
    result_content,
    summarize_results,
    write_result_files,
)
from reloc_core.interfaces import Dataset
from reloc_core.maps import explain_os_errors
from reloc_core.pipeline import Pipeline
from reloc_core.runs import Reporter

OnOutcome = Callable[[Outcome], None]
"""Called after every query, in the calling thread."""


@dataclass(frozen=True)
class Evaluation:
    """Outcome of an evaluation.

    Attributes:
        dataset: what was localized.
        results: one per query, in order.
        depth: of the scene in the dataset's unit, or None where nothing tells it.
    """

    dataset: Dataset
    results: tuple[QueryResult, ...]
    depth: float | None = None

    @property
    def metrics(self) -> Metrics | None:
        """Medians, recalls and calibration; None without ground truth."""
        return summarize_results(self.results, self.depth, self.dataset.unit)

    @property
    def content(self) -> dict[str, Any]:
        """What `result.json` holds of it."""
        return result_content(self.results, self.dataset, self.depth)

    def write(self, directory: Path | str) -> None:
        """Write `localizations.jsonl`, `poses.txt` and `poses_tum.txt`."""
        directory = Path(directory)
        with explain_os_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            write_result_files(directory, self.results, self.dataset.unit)


def evaluate(
    pipeline: Localizes | Path | str,
    dataset: Dataset,
    *,
    batch: int = 1,
    on_outcome: OnOutcome | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Localize every query of a dataset and compare with the ground truth, where there is one.

    Args:
        pipeline: what localizes, or the directory of a map.
        dataset: the queries.
        batch: queries localized together; see `run_queries`.
        on_outcome: hears of every query.
        reporter: who hears of the progress; nobody by default.

    Raises:
        DataError: the queries lack what a stage needs.
        MapError: the map cannot be used.
    """
    if isinstance(pipeline, str | Path):
        pipeline = open_pipeline(pipeline)
    if isinstance(pipeline, Pipeline):
        pipeline.check(dataset)
        if not pipeline.reads_depth:
            dataset = dataset.without_depth()
    results: list[QueryResult] = []
    done = 0
    reporter = reporter or Reporter(quiet=True)
    with reporter.progress("Localizing", len(dataset)) as progress:
        for outcome in run_queries(pipeline, dataset, batch):
            results.append(outcome.result)
            done += outcome.localization.localized
            progress.advance(1, localized=str(done))
            if on_outcome is not None:
                on_outcome(outcome)
    return Evaluation(dataset, tuple(results), _depth(pipeline, dataset))


def _depth(pipeline: Localizes, dataset: Dataset) -> float | None:
    """Depth of the scene as the map knows it from its own points, else as the dataset does."""
    if isinstance(pipeline, Pipeline) and pipeline.calibration is not None:
        return pipeline.calibration.depth
    return None if dataset.unit == "metre" else scene_depth(dataset, matching=False)

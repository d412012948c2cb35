"""Results of an ensemble of maps as one: per image the pose that most correspondences support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from reloc_core.errors import DataError
from reloc_core.evaluation.results import QueryResult
from reloc_core.types import Status


def merge_results(runs: Sequence[Sequence[QueryResult]]) -> list[QueryResult]:
    """Per image the localized result with the most inliers, the first of those that are equal.

    ACE's `merge_ensemble_results.py` (glace sheet, 4.6); unlike there an image that has no inliers in any
    run is "not localized", and not at the origin. Times are the sums over the runs, which an ensemble
    needs all.

    Args:
        runs: results of the same images, in any order.

    Raises:
        DataError: the runs are of different images.
    """
    if not runs:
        raise DataError("There are no results to merge.")
    tables = [{result.name: result for result in run} for run in runs]
    for number, table in enumerate(tables[1:], 2):
        if table.keys() != tables[0].keys():
            name = min(table.keys() ^ tables[0].keys())
            raise DataError(
                f"Result {number} is of other images than the first: {name} is in one only."
            )
    return [_merged([table[name] for table in tables]) for name in tables[0]]


def _merged(found: Sequence[QueryResult]) -> QueryResult:
    counts = [r.num_inliers if r.localized else 0 for r in found]
    best = found[counts.index(max(counts))]
    if best.localized and best.num_inliers == 0:
        lost = math.inf if best.truth is not None else None
        best = replace(
            best, status=Status.NOT_LOCALIZED, reason="no correspondence supports a pose", score=0.0,
            world_from_cam=None, covariance=None, stages=(), camera=None,
            translation_error_m=lost, rotation_error_deg=lost,
        )  # fmt: skip
    stages = dict.fromkeys(name for r in found for name in r.seconds)
    return replace(
        best,
        total_seconds=sum(r.total_seconds for r in found),
        seconds={name: sum(r.seconds.get(name, 0.0) for r in found) for name in stages},
    )

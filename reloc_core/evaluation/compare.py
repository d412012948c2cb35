"""Several methods against one ground truth, under one protocol.

The decisions of `reloc_core.evaluation.metrics` hold: every image of the ground truth counts, a missing
estimate is an infinite error, the median is the upper one, recalls are strict. On top of them

* AUC at T: area under the cumulative curve of e = max(translation in cm, rotation in degrees) from 0 to T,
  divided by T; exactly the mean of max(0, 1 - e / T). In scenes without metres there is none.
* Intervals: 95 % percentile bootstrap over images. Neighbouring frames of a video are not independent;
  `block` draws runs of so many consecutive images instead of single ones.
* An average over scenes is the plain mean of the scenes' numbers, as papers print it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reloc_core.errors import ConfigError, DataError
from reloc_core.evaluation.dcre import dcre_of_all
from reloc_core.evaluation.estimates import Estimates, Truth, match
from reloc_core.evaluation.metrics import (
    THRESHOLDS,
    pose_errors,
    upper_quantile,
)
from reloc_core.types import Float64Array

AUC_LIMITS = (5, 10, 20)
"""Limits of the area under the curve, cm and degrees."""

DCRE_LIMIT = 5.0
"""Pixels: the recall of the maximal DCRE is counted below it."""

METRE = "metre"
_CHUNK = 64


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are estimated.

    Attributes:
        resamples: 0 for none.
        block: consecutive images drawn together.
        seed: of the draws.
        level: of the interval.
    """

    resamples: int = 1000
    block: int = 1
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class Row:
    """One method on one scene, or its average.

    Attributes:
        label: the method.
        errors: (N, 2) metres (or units) and degrees in the truth's order, inf where missing; None for
            averages.
        values: numbers by column: `median_translation_m`, `median_rotation_deg`, `recall_KEY`,
            `auc_T`, `dcre_mean_px`, `dcre_max_px`, `dcre_max_below_5px`; fractions are 0..1.
        intervals: (low, high) by column.
        queries: images of the ground truth.
        missing: of these, without an estimate.
        unknown: estimates of images that the ground truth does not have.
        path: where the estimates come from.
        overconfidence: as in `Estimates`.
    """

    label: str
    errors: Float64Array | None
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    queries: int
    missing: int
    unknown: int = 0
    path: str = ""
    overconfidence: str = ""

    @property
    def marked(self) -> str:
        """The label, with a mark where the poses are overconfident."""
        return f"{self.label} †" if self.overconfidence else self.label


@dataclass(frozen=True)
class SceneComparison:
    """All methods on one scene.

    Attributes:
        name: of the scene.
        unit: of translations.
        rows: in the order given.
        queries: names of the images, in the order of the rows' errors.
    """

    name: str
    unit: str
    rows: tuple[Row, ...]
    queries: tuple[str, ...] = ()


def compare_scene(
    truth: Truth,
    estimates: Sequence[Estimates],
    bootstrap: Bootstrap | None = None,
    dcre_step: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> SceneComparison:
    """Judge methods by one ground truth.

    Args:
        truth: poses, and depth for the DCRE.
        estimates: one per method.
        bootstrap: of the intervals.
        dcre_step: use every n-th row and column of the depth maps; 0 computes no DCRE.
        advance: called after every image of the DCRE.

    Raises:
        DataError: a method shares no image name with the ground truth, or two have one label.
        ConfigError: malformed bootstrap.
    """
    bootstrap = bootstrap or Bootstrap()
    labels = [e.label for e in estimates]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise DataError(f"Two results are called '{twice}'. Name them: LABEL=PATH.")
    found = {}
    for method in estimates:
        names = (*method.poses, *method.failed)
        pairs = match(tuple(truth.poses), names, method.path or method.label)
        found[method.label] = {t: method.poses[e] for t, e in pairs.items() if e in method.poses}
    dense: Mapping[str, Float64Array] = {}
    if dcre_step and truth.dataset is not None and truth.dataset.has_depth and truth.unit == METRE:
        dense = dcre_of_all(truth.dataset, found, dcre_step, advance)
    rows = []
    for method in estimates:
        poses = found[method.label]
        errors = _errors(truth, poses)
        columns = _Columns(truth.unit == METRE, dense.get(method.label))
        rows.append(
            Row(
                method.label,
                errors,
                columns.values(errors, np.arange(len(errors))[None])[0],
                _intervals(errors, columns, bootstrap),
                len(errors),
                len(errors) - len(poses),
                len(method.poses) - len(poses),
                method.path,
                method.overconfidence,
            )
        )
    return SceneComparison(truth.name, truth.unit, tuple(rows), tuple(truth.poses))


def average(scenes: Sequence[SceneComparison]) -> SceneComparison:
    """Plain means over scenes of the methods that all of them have."""
    common = [
        row.label
        for row in scenes[0].rows
        if all(any(other.label == row.label for other in scene.rows) for scene in scenes)
    ]
    rows = []
    for label in common:
        parts = [next(r for r in scene.rows if r.label == label) for scene in scenes]
        shared = [key for key in parts[0].values if all(key in part.values for part in parts)]
        values = {key: float(np.mean([part.values[key] for part in parts])) for key in shared}
        rows.append(
            Row(
                label,
                None,
                values,
                {},
                sum(p.queries for p in parts),
                sum(p.missing for p in parts),
            )
        )
    return SceneComparison(f"mean of {len(scenes)} scenes", scenes[0].unit, tuple(rows))


def joint_error(errors: Float64Array) -> Float64Array:
    """max(translation in cm, rotation in degrees) of (..., 2) errors in metres and degrees."""
    return np.maximum(100 * errors[..., 0], errors[..., 1])


def _errors(truth: Truth, poses: Mapping[str, Float64Array]) -> Float64Array:
    rows = []
    for name, true in truth.poses.items():
        estimate = poses.get(name)
        rows.append((math.inf, math.inf) if estimate is None else pose_errors(estimate, true))
    return np.array(rows).reshape(-1, 2)


class _Columns:
    """All numbers of a method, for many resamples at once."""

    def __init__(self, metric: bool, dense: Float64Array | None) -> None:
        self._metric, self._dense = metric, dense

    def values(self, errors: Float64Array, draws: np.ndarray) -> list[dict[str, float]]:
        """The numbers of each draw, (B, N) indices into the errors."""
        sample = errors[draws]
        n = sample.shape[1]
        middle = min(n // 2, n - 1)
        median = np.partition(sample, middle, axis=1)[:, middle]
        columns = {"median_translation_m": median[:, 0], "median_rotation_deg": median[:, 1]}
        for key, (metres, degrees) in THRESHOLDS.items():
            within = (sample[..., 0] < metres) & (sample[..., 1] < degrees)
            columns[f"recall_{key}"] = within.mean(1)
        if self._metric:
            joint = joint_error(sample)
            for limit in AUC_LIMITS:
                columns[f"auc_{limit}"] = np.maximum(0.0, 1 - joint / limit).mean(1)
        if self._dense is not None:
            dense = self._dense[draws]
            columns["dcre_mean_px"] = _medians(dense[..., 0])
            columns["dcre_max_px"] = _medians(dense[..., 1])
            known = ~np.isnan(dense[..., 1])
            below = (dense[..., 1] < DCRE_LIMIT).sum(1) / np.maximum(known.sum(1), 1)
            columns["dcre_max_below_5px"] = np.where(known.any(1), below, np.nan)
        return [
            {key: float(column[b]) for key, column in columns.items()} for b in range(len(draws))
        ]


def _medians(values: Float64Array) -> Float64Array:
    """Upper medians of rows, without the images that have no depth."""
    return np.array([upper_quantile(row[~np.isnan(row)], 0.5) for row in values])


def _intervals(
    errors: Float64Array, columns: _Columns, bootstrap: Bootstrap
) -> dict[str, tuple[float, float]]:
    n = len(errors)
    if bootstrap.resamples == 0:
        return {}
    if bootstrap.resamples < 0 or bootstrap.block < 1 or not 0 < bootstrap.level < 1:
        raise ConfigError(
            "bootstrap must not be negative, block at least 1, and level within 0..1."
        )
    rng = np.random.default_rng(bootstrap.seed)
    block = min(bootstrap.block, n)
    drawn: list[dict[str, float]] = []
    for start in range(0, bootstrap.resamples, _CHUNK):
        count = min(_CHUNK, bootstrap.resamples - start)
        first = rng.integers(0, n, (count, math.ceil(n / block), 1))
        draws = ((first + np.arange(block)) % n).reshape(count, -1)[:, :n]
        drawn += columns.values(errors, draws)
    tail = (1 - bootstrap.level) / 2
    result = {}
    for key in drawn[0]:
        ordered = np.sort([d[key] for d in drawn])
        if np.isnan(ordered).any():
            continue
        low = int(tail * len(ordered))
        result[key] = (float(ordered[low]), float(ordered[len(ordered) - 1 - low]))
    return result

"""Sections of the report that judge the results: accuracy, trajectory, score and covariance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from reloc_core.calibration.config import RIGHT_DEG, RIGHT_DEPTHS
from reloc_core.evaluation import figures
from reloc_core.evaluation.metrics import (
    NEES_DEGREES,
    SUCCESS,
    THRESHOLDS,
    Metrics,
    RelativeMetrics,
    pose_errors,
    upper_quantile,
)
from reloc_core.evaluation.results import QueryResult, error_array, nees_array
from reloc_core.evaluation.units import (
    METRE,
    format_angle,
    format_length,
    format_percent,
    format_share,
    relative_label,
    success_label,
    threshold_label,
)
from reloc_core.types import Float64Array

_FINAL = "final pose"


def accuracy(
    results: Sequence[QueryResult],
    metrics: Metrics,
    unit: str,
    relative: RelativeMetrics | None = None,
) -> str:
    """Recalls, error quantiles and cumulative error curves; with `relative` also over the depth."""
    rows = "".join(
        f"<tr><td>{escape(threshold_label(key, unit))}</td>"
        f'<td class="bar">{meter(value)}</td><td class="n">{format_percent(value)}</td></tr>'
        for key, value in metrics.recall.items()
    )
    stages = _stage_errors(results)
    limit_m, limit_deg = THRESHOLDS[SUCCESS]
    curves = [
        figures.cumulative_errors(
            {name: errors[:, column] for name, errors in stages.items()}, axis, unit, limit
        )
        for column, axis, unit, limit in (
            (0, "Position error", unit, limit_m),
            (1, "Rotation error", "degree", limit_deg),
        )
    ]
    return (
        "<h2>Accuracy</h2>"
        '<p class="note">Share of queries whose position and rotation errors are both below a '
        "limit. Queries without a pose count as infinitely wrong everywhere.</p>"
        f'<div class="grid"><div class="panel"><h3>Queries within</h3><table>{rows}</table></div>'
        f'<div class="panel"><h3>Errors</h3>{_error_table(stages, unit)}</div>'
        f'<div class="panel"><h3>Share of queries by position error</h3>{curves[0]}'
        f"{_curve_legend(list(stages))}</div>"
        f'<div class="panel"><h3>Share of queries by rotation error</h3>{curves[1]}'
        f"{_curve_legend(list(stages))}</div>{_relative(relative)}</div>"
    )


def _relative(relative: RelativeMetrics | None) -> str:
    """The panel of errors over the scene's depth; "" where it is unknown."""
    if relative is None:
        return ""
    rows = "".join(
        f"<tr><td>{escape(relative_label(key))}</td>"
        f'<td class="bar">{meter(value)}</td><td class="n">{format_percent(value)}</td></tr>'
        for key, value in relative.recall.items()
    )
    remark = (
        f"The unit of this scene is arbitrary; it lies at {relative.depth:.3g} units. The median position "
        f"error is {format_share(relative.median_translation)} of that, 90 % are within "
        f"{format_share(relative.p90_translation)}."
    )
    return (
        f'<div class="panel"><h3>By the depth of the scene</h3><table>{rows}</table>'
        f'<p class="note below">{prose(remark)}</p></div>'
    )


def _stage_errors(results: Sequence[QueryResult]) -> dict[str, Float64Array]:
    """(N, 2) errors over queries with ground truth, by stage; the last is the final pose."""
    judged = [r for r in results if r.truth is not None and r.translation_error_m is not None]
    names = dict.fromkeys(name for r in judged for name, _ in r.stages)
    errors: dict[str, Float64Array] = {}
    for name in list(names)[:-1]:
        rows = []
        for r in judged:
            pose = dict(r.stages).get(name)
            known = pose is not None and r.truth is not None
            rows.append(pose_errors(pose, r.truth) if known else (math.inf, math.inf))  # type: ignore[arg-type]
        errors[f"after {name}"] = np.asarray(rows)
    errors[_FINAL] = error_array(judged)
    return errors


def _error_table(stages: Mapping[str, Float64Array], unit: str) -> str:
    head = '<tr><th></th><th class="n">position</th><th class="n">rotation</th></tr>'
    final = stages[_FINAL]
    found = final[np.isfinite(final).all(1)]
    entries = [(f"median {name}", e, 0.5) for name, e in stages.items() if name != _FINAL]
    entries += [("median", final, 0.5)]
    entries += [(f"{100 * q:.0f} % are below", final, q) for q in (0.75, 0.9, 0.95)]
    entries += [("worst with a pose", found, 1.0)]
    rows = "".join(
        f"<tr><td>{escape(label)}</td>"
        f'<td class="n">{format_length(upper_quantile(errors[:, 0], q), unit)}</td>'
        f'<td class="n">{format_angle(upper_quantile(errors[:, 1], q))}</td></tr>'
        for label, errors, q in entries
    )
    return f"<table>{head}{rows}</table>"


def _curve_legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = [
        f'<span><i class="key line {"main" if n == names[-1] else "dashed"}"></i>{escape(n)}</span>'
        for n in names
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def trajectory(
    results: Sequence[QueryResult],
    mapped: Sequence[Float64Array],
    unit: str,
    bins: Sequence[float],
) -> str:
    """Where the cameras were; "" when no position is known."""
    drawing, remark = figures.trajectory(results, mapped, bins, unit)
    if not drawing:
        return ""
    judged = any(r.truth is not None for r in results)
    keys = []
    if len(mapped):
        keys.append('<span><i class="key line faint"></i>mapping images</span>')
    if judged:
        keys.append(
            '<span><i class="key line ink"></i>ground truth, with viewing directions</span>'
        )
        text = "Dots are estimates, joined to the true position and coloured by the distance."
        scale = figures.legend(bins, unit, failed=any(not r.localized for r in results))
    else:
        text, scale = "Dots are estimated camera positions.", ""
    return (
        f'<h2>Seen from above</h2><p class="note">{text} {escape(remark)}</p>'
        f'<div class="panel">{drawing}<p class="legend">{"".join(keys)}</p>{scale}</div>'
    )


def diagnosis(
    results: Sequence[QueryResult],
    metrics: Metrics,
    unit: str,
    bins: Sequence[float],
    depth: float | None = None,
) -> str:
    """Errors in order and by score, and whether score and covariance can be trusted."""
    failed = any(not r.localized for r in results)
    keys = figures.legend(bins, unit, failed)
    panels = [
        ("Position error of every query, in order",
         figures.error_over_queries(results, bins, unit) + keys),
        ("Position error by score", figures.error_by_score(results, bins, unit) + keys),
    ]  # fmt: skip
    if metrics.reliability:
        panels.append(("Does the score tell?", _score(metrics, unit, depth)))
    if metrics.with_covariance:
        panels.append(("Do the covariances tell?", _covariance(results, metrics)))
    content = "".join(
        f'<div class="panel"><h3>{title}</h3>{content}</div>' for title, content in panels
    )
    return (
        "<h2>Where it errs, and whether it knows</h2>"
        '<p class="note">Hover over a dot for the name of the query.</p>'
        f'<div class="grid">{content}</div>'
    )


def _score(metrics: Metrics, unit: str, depth: float | None) -> str:
    """Reliability diagram, and what it says in words."""
    limit = success_label(unit, depth)
    right = limit
    if depth:
        length = format_length(RIGHT_DEPTHS * depth, unit)
        if unit != METRE:
            length = f"{format_share(RIGHT_DEPTHS)} of the depth"
        right = f"{length}, {RIGHT_DEG:g}°"
    remark = (
        f"Share of right poses (within {right}) over the score, in {len(metrics.reliability)} equal groups "
        f"with their 95 % intervals. The diagonal is ideal, below it is overconfident. The expected "
        f"calibration error is {metrics.calibration_error:.3f}."
    )
    if not math.isnan(metrics.score_auroc):
        remark += (
            f" A query within {limit} scores higher than one outside with probability "
            f"{metrics.score_auroc:.2f}; chance is 0.50."
        )
    drawing = figures.score_reliability(metrics.reliability)
    return f'{drawing}<p class="note below">{prose(remark)}</p>'


def _covariance(results: Sequence[QueryResult], metrics: Metrics) -> str:
    values = nees_array(results)
    remark = (
        f"Share of the {metrics.with_covariance} poses that lie in the confidence region of their "
        f"covariance. The diagonal is ideal, below it is overconfident. "
        f"{format_percent(metrics.within_95)} are in the 95 % region; the mean squared normalised "
        f"error (NEES) is {metrics.mean_nees:.3g}, ideally {NEES_DEGREES}."
    )
    drawing = figures.covariance_calibration(values[~np.isnan(values)])
    return f'{drawing}<p class="note below">{prose(remark)}</p>'


def prose(text: str) -> str:
    """Escaped running text whose numbers stay on one line with their units."""
    return re.sub(r"(?<=[\d.∞]) (?=(%|cm|m|units)\b|%)", "&nbsp;", escape(text))


def meter(fraction: float) -> str:
    """A horizontal bar."""
    share = 0.0 if math.isnan(fraction) else min(max(fraction, 0.0), 1.0)
    return f'<span class="meter"><i style="width:{100 * share:.1f}%"></i></span>'

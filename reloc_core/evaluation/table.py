"""The summary of an evaluation for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reloc_core.evaluation.metrics import Metrics, RelativeMetrics
from reloc_core.evaluation.results import (
    QueryResult,
    relative_results,
    summarize_results,
    timing,
)
from reloc_core.evaluation.units import (
    METRE,
    format_angle,
    format_length,
    format_percent,
    format_seconds,
    format_share,
    relative_label,
    threshold_label,
)

_LISTED = 5


def summary_table(
    results: Sequence[QueryResult],
    title: str = "",
    unit: str = METRE,
    depth: float | None = None,
) -> RenderableType:
    """Accuracy, recalls, speed and failures of an evaluation.

    Args:
        results: all queries.
        title: such as "redkitchen/test with scr_glace".
        unit: of translations.
        depth: of the scene, by which errors are measured where the unit is arbitrary; None if unknown.

    Returns:
        something for `Console.print`.
    """
    metrics, seconds = summarize_results(results, depth, unit), timing(results)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=False,
        pad_edge=False,
    )
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    table.add_row("queries", str(metrics.queries), "")
    share = format_percent(metrics.localized / metrics.queries) if metrics.queries else ""
    table.add_row("localized", str(metrics.localized), share)
    if metrics.with_ground_truth:
        _add_accuracy(
            table, metrics, unit, relative_results(results, depth) if unit != METRE else None
        )
    _add_seconds(table, seconds)
    parts: list[RenderableType] = [Text(title, style="bold"), table] if title else [table]
    failed = [r for r in results if not r.localized]
    if failed:
        lines = [f"Not localized ({len(failed)}):"]
        lines += [f"  {r.name}: {r.reason}" for r in failed[:_LISTED]]
        if len(failed) > _LISTED:
            lines.append(f"  and {len(failed) - _LISTED} more, listed in localizations.jsonl")
        parts.append(Text("\n".join(lines), style="yellow"))
    if metrics.overconfidence:
        parts.append(Text(f"Warning: {metrics.overconfidence}", style="bold red"))
    return Group(*parts)


def _add_accuracy(
    table: Table, metrics: Metrics, unit: str, relative: RelativeMetrics | None
) -> None:
    if metrics.with_ground_truth < metrics.queries:
        table.add_row("with ground truth", str(metrics.with_ground_truth), "")
    table.add_section()
    for label, translation, rotation in (
        ("median error", metrics.median_translation_m, metrics.median_rotation_deg),
        ("90 % are within", metrics.p90_translation_m, metrics.p90_rotation_deg),
    ):
        table.add_row(label, format_length(translation, unit), format_angle(rotation))
    rows = [(threshold_label(key, unit), value) for key, value in metrics.recall.items()]
    if relative is not None:
        # Thresholds in an arbitrary unit say nothing.
        table.add_row("", format_share(relative.median_translation), "median, of the scene's depth")
        rows = [(relative_label(key), value) for key, value in relative.recall.items()]
    table.add_section()
    for label, value in rows:
        style = "green" if value >= 0.9 else "yellow" if value >= 0.5 else "red"
        table.add_row(f"within {label}", Text(format_percent(value), style=style), "")
    if not math.isnan(metrics.mean_nees):
        table.add_section()
        table.add_row("in 95 % region", format_percent(metrics.within_95), "of its covariance")
    if not math.isnan(metrics.calibration_error):
        table.add_row("score is off by", f"{metrics.calibration_error:.3f}", "on average")


def _add_seconds(table: Table, seconds: Mapping[str, Any]) -> None:
    table.add_section()
    total = seconds["per_query"]
    if total["median"] is None:
        return
    p95 = f"95 %: {format_seconds(total['p95'])}"
    table.add_row("time per query", format_seconds(total["median"]), p95)
    for name, stage in seconds["stages"].items():
        p95 = f"95 %: {format_seconds(stage['p95'])}"
        table.add_row(f"  {name}", format_seconds(stage["median"]), p95)

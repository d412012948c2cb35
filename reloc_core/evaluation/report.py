"""`report.html`: an evaluation on one self-contained page.

The page loads nothing from anywhere: styles are inline, figures are SVG, photographs are data URIs.
Whatever comes from the user's data or configuration is escaped.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from reloc_core.evaluation import figures, gallery
from reloc_core.evaluation.gallery import Explain
from reloc_core.evaluation.metrics import RELATIVE_SUCCESS, SUCCESS, Metrics, RelativeMetrics
from reloc_core.evaluation.query_table import query_table
from reloc_core.evaluation.results import (
    QueryResult,
    relative_results,
    summarize_results,
    timing,
)
from reloc_core.evaluation.sections import accuracy, diagnosis, meter, prose, trajectory
from reloc_core.evaluation.units import (
    METRE,
    format_angle,
    format_length,
    format_percent,
    format_seconds,
    format_share,
    success_label,
)
from reloc_core.io.files import write_atomically
from reloc_core.types import Float64Array

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class ReportInfo:
    """What a report says beside the results.

    Attributes:
        scene: name of scene and split.
        method: estimator, solver and refiners in words.
        unit: of translations.
        result: content of `result.json`; its seconds, memory, versions and overrides are shown.
        config_text: the resolved configuration as YAML.
        environment: machine and software, as in `environment.json`.
        notes: what a user should know about the dataset or run.
        mapped: `world_from_cam` (4, 4) of the images that the map was built from, where known.
        map_bytes: size of the map, or None.
        depth: of the scene, by which errors are measured where the unit is arbitrary; None if unknown.
    """

    scene: str
    method: str
    unit: str = METRE
    result: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    mapped: Sequence[Float64Array] = ()
    map_bytes: int | None = None
    depth: float | None = None


def write_report(
    path: Path, results: Sequence[QueryResult], info: ReportInfo, explain: Explain | None = None
) -> None:
    """Write the page, atomically.

    Args:
        path: such as OUT/report.html.
        results: one per query, in the dataset's order.
        info: titles, configuration and environment.
        explain: gives image and evidence of a query, for the queries shown; see
            `reloc_core.evaluation.gallery.explainer`. Without it no photographs are shown.
    """
    write_atomically(path, render_report(results, info, explain))


def render_report(
    results: Sequence[QueryResult], info: ReportInfo, explain: Explain | None = None
) -> str:
    """The page as text; arguments as in `write_report`."""
    metrics = summarize_results(results, info.depth, info.unit)
    judged = metrics.with_ground_truth > 0
    warning = metrics.overconfidence
    relative = relative_results(results, info.depth) if info.unit != METRE else None
    bins = figures.error_bins(metrics.median_translation_m if judged else 0.0)
    sections = [
        f'<p class="banner">{prose(warning)}</p>' if warning else "",
        accuracy(results, metrics, info.unit, relative) if judged else "",
        trajectory(results, info.mapped, info.unit, bins),
        diagnosis(results, metrics, info.unit, bins, info.depth) if judged else "",
        _queries(results, info, explain),
        _failures(results),
        query_table(results, info.unit),
        _time(results, info),
        _run(info),
    ]
    template = Template(files(__package__).joinpath("report_template.html").read_text("utf-8"))
    today = datetime.date.today()
    version = info.result.get("versions", {}).get("reloc", "")
    subtitle = [info.method, f"{len(results)} queries", f"{today.day} {today:%B %Y}"]
    return template.substitute(
        title=escape(f"{info.scene} · reloc"),
        scene=escape(info.scene),
        subtitle=escape(" · ".join(part for part in subtitle if part)),
        lead=prose(_lead(metrics, info.unit, relative)),
        tiles=_tiles(results, metrics, info, relative),
        sections="\n".join(section for section in sections if section),
        footer=escape(f"Made by reloc {version}".strip())
        + ". Numbers of every query are in localizations.jsonl beside this page.",
    )


def _lead(metrics: Metrics, unit: str, relative: RelativeMetrics | None) -> str:
    lost = metrics.queries - metrics.localized
    found = f"{metrics.localized} of {metrics.queries} images were localized."
    if not metrics.with_ground_truth:
        return found + " They come without ground truth, so their errors are unknown."
    parts = []
    if math.isfinite(metrics.median_translation_m):
        parts.append(
            f"The median error is {_median(metrics, unit, relative)} and "
            f"{format_angle(metrics.median_rotation_deg)}; {_within(metrics, relative)} of the queries "
            f"are within {_limit(unit, relative).replace(', ', ' and ')}."
        )
    else:
        parts.append("At least half of the queries were not localized, so the median is infinite.")
    if lost:
        were = "query was" if lost == 1 else "queries were"
        parts.append(f"{lost} {were} not localized and count as infinitely wrong.")
    if metrics.with_ground_truth < metrics.queries:
        parts.append(f"{metrics.with_ground_truth} queries have ground truth.")
    return " ".join(parts)


def _median(metrics: Metrics, unit: str, relative: RelativeMetrics | None) -> str:
    """The median position error, over the scene's depth where the unit tells nothing."""
    if relative is None:
        return format_length(metrics.median_translation_m, unit)
    return f"{format_share(relative.median_translation)} of the scene's depth"


def _within(metrics: Metrics, relative: RelativeMetrics | None) -> str:
    return format_percent(
        metrics.recall[SUCCESS] if relative is None else relative.recall[RELATIVE_SUCCESS]
    )


def _limit(unit: str, relative: RelativeMetrics | None) -> str:
    return success_label(unit, None if relative is None else relative.depth)


def _tiles(
    results: Sequence[QueryResult],
    metrics: Metrics,
    info: ReportInfo,
    relative: RelativeMetrics | None,
) -> str:
    tiles = []
    if metrics.with_ground_truth:
        tiles += [
            (format_length(metrics.median_translation_m, info.unit), "position error, median")
            if relative is None
            else (format_share(relative.median_translation), "of the depth, median position error"),
            (format_angle(metrics.median_rotation_deg), "rotation error, median"),
            (_within(metrics, relative), f"within {_limit(info.unit, relative)}"),
        ]
    tiles.append((f"{metrics.localized} / {metrics.queries}", "localized"))
    tiles.append((format_seconds(timing(results)["per_query"]["median"]), "time per query, median"))
    if info.map_bytes is not None:
        tiles.append((f"{info.map_bytes / 1e6:.1f} MB", "map size"))
    return "".join(
        f'<div class="tile"><b>{_with_small_unit(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )


def _with_small_unit(value: str) -> str:
    """Such as "0.34 cm" with the unit in small letters, so that long ones fit into their box."""
    number, blank, unit = value.rpartition(" ")
    if not blank or not unit.isalpha():
        return escape(value)
    return f"{escape(number)} <small>{escape(unit)}</small>"


def _queries(results: Sequence[QueryResult], info: ReportInfo, explain: Explain | None) -> str:
    choice = gallery.choose(results)
    if explain is None or not (choice.worst or choice.typical):
        return ""
    bins = gallery.PIXEL_BINS
    names = [f"below {b:g} px" for b in bins] + ["larger"]
    keys = "".join(f'<span><i class="key p{i}"></i>{n}</span>' for i, n in enumerate(names))
    parts = [
        "<h2>Single queries</h2>",
        '<p class="note">Dots are the image points that support the pose; a line leads from each to '
        "where its 3D point reprojects. Pale dots are correspondences that the solver rejected.</p>",
        f'<p class="legend" style="margin:0 0 16px">{keys}</p>',
    ]
    for title, chosen in (("The worst", choice.worst), ("Typical ones", choice.typical)):
        if chosen:
            cards = "".join(gallery.card(i, results[i], explain, info.unit) for i in chosen)
            parts.append(f'<h3>{title}</h3><div class="gallery">{cards}</div>')
    return "".join(parts)


def _failures(results: Sequence[QueryResult]) -> str:
    failed = [r for r in results if not r.localized]
    if not failed:
        return ""
    rows = "".join(
        f'<tr><td class="text">{escape(r.name)}</td><td class="text">{escape(r.reason)}</td></tr>'
        for r in failed
    )
    table = f"<table><tr><th>query</th><th>why</th></tr>{rows}</table>"
    if len(failed) > 15:
        table = f"<details><summary>Show all {len(failed)}</summary>{table}</details>"
    return f'<h2>Not localized ({len(failed)})</h2><div class="panel scroll">{table}</div>'


def _time(results: Sequence[QueryResult], info: ReportInfo) -> str:
    seconds = timing(results)
    if seconds["per_query"]["median"] is None:
        return ""
    entries = [
        *((escape(name), stage) for name, stage in seconds["stages"].items()),
        ("<b>whole query</b>", seconds["per_query"]),
        ("reading the image", seconds["read_image"]),
    ]
    longest = max(float(seconds["per_query"]["p95"]), 1e-9)
    rows = "".join(
        f'<tr><td>{name}</td><td class="bar">{meter(stage["median"] / longest)}</td>'
        f'<td class="n">{format_seconds(stage["median"])}</td>'
        f'<td class="n">{format_seconds(stage["p95"])}</td></tr>'
        for name, stage in entries
    )
    facts = []
    total = info.result.get("seconds", {}).get("total")
    if total is not None:
        facts.append(f"The run took {format_seconds(float(total))}.")
    if info.result.get("peak_memory_mb") is not None:
        facts.append(f"Peak memory {float(info.result['peak_memory_mb']):.0f} MB.")
    facts.append("Images are read while the query before is localized, so reading is not counted.")
    return (
        f'<h2>Time</h2><p class="note">{escape(" ".join(facts))}</p><div class="panel scroll">'
        '<table><tr><th>stage</th><th></th><th class="n">median</th><th class="n">95 %</th></tr>'
        f"{rows}</table></div>"
    )


def _run(info: ReportInfo) -> str:
    facts = [("dataset note", str(note)) for note in info.notes]
    if info.result.get("overrides"):
        facts.append(("command line", " ".join(str(o) for o in info.result["overrides"])))
    if info.result.get("config_hash"):
        facts.append(("config hash", str(info.result["config_hash"])))
    facts += [
        (str(key).replace("_", " "), str(value))
        for key, value in info.environment.items()
        if not isinstance(value, Mapping)
    ]
    versions = info.result.get("versions") or info.environment.get("versions") or {}
    if versions:
        facts.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    rows = "".join(
        f'<tr><th>{escape(key)}</th><td class="text">{escape(value)}</td></tr>'
        for key, value in facts
    )
    config = (
        f"<details{' open' if info.config_text.count(chr(10)) < 40 else ''}>"
        f"<summary>Configuration</summary><pre>{escape(info.config_text)}</pre></details>"
        if info.config_text
        else ""
    )
    if not rows and not config:
        return ""
    table = f'<div class="panel wide scroll"><table>{rows}</table></div>' if rows else ""
    panel = f'<div class="panel">{config}</div>' if config else ""
    return f"<h2>Run</h2>{table}{panel}"

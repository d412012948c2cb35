"""A comparison as text table, CSV and self-contained HTML page."""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from reloc_core.evaluation.compare import DCRE_LIMIT, METRE, Row, SceneComparison, joint_error
from reloc_core.evaluation.gallery import data_uri
from reloc_core.evaluation.metrics import THRESHOLDS
from reloc_core.evaluation.paired import PairedTest
from reloc_core.evaluation.published import STATUSES, PublishedTable
from reloc_core.evaluation.svg import Axes, path
from reloc_core.evaluation.units import format_angle, format_length, threshold_label
from reloc_core.types import Float64Array, ImageArray

COLOURS = ("#0b7a75", "#d9730d", "#7048b8", "#c1272d", "#2f6fd0", "#8a7a1f", "#b0307f", "#4d8f2b")
"""Readable on the light and the dark page."""
_WRONG = 50.0
"""cm and degrees beyond which a larger error says nothing more."""
_SHOWN = 12  # queries in which methods differ
Picture = Callable[[str, str], ImageArray | None]
"""The RGB image of a query by scene and name, or None."""
SHOWN_TESTS = 12
"""Paired tests that are shown before the others are folded away or only counted."""


def columns(scene: SceneComparison, published: Sequence[tuple[Row, str]]) -> list[str]:
    """Columns that any row has a number for, in their order."""
    have = {key for row in (*scene.rows, *(r for r, _ in published)) for key in row.values}
    order = [
        "median_translation_m", "median_rotation_deg", *(f"recall_{k}" for k in THRESHOLDS),
        "auc_5", "auc_10", "auc_20", "dcre_mean_px", "dcre_max_px", "dcre_max_below_5px",
    ]  # fmt: skip
    return [key for key in order if key in have]


def published_rows(table: PublishedTable, scene: str) -> list[tuple[Row, str]]:
    """Rows of a published table for one scene, each with a text that marks it."""
    rows = []
    for entry in table.rows:
        values = entry.values.get(scene)
        if not values:
            continue
        details = [f"{STATUSES[entry.status]}: {entry.source}"]
        if entry.map_mb is not None:
            details.append(f"map {entry.map_mb:g} MB")
        if entry.mapping_time:
            details.append(f"mapping {entry.mapping_time}")
        if entry.note:
            details.append(entry.note)
        rows.append((Row(entry.method, None, values, {}, 0, 0), "; ".join(details)))
    return rows


def title_of(column: str, unit: str) -> str:
    """Heading of a column."""
    if column.startswith("recall_"):
        return threshold_label(column.removeprefix("recall_"), unit)
    return {
        "median_translation_m": "median position",
        "median_rotation_deg": "median rotation",
        "dcre_mean_px": "DCRE mean",
        "dcre_max_px": "DCRE max",
        "dcre_max_below_5px": f"DCRE max < {DCRE_LIMIT:g} px",
    }.get(column, f"AUC {column.removeprefix('auc_')}")


def cell(column: str, value: float | None, unit: str, published: bool = False) -> str:
    """A number as people read it: recalls and areas in percent with one decimal.

    Published numbers keep the digits they were published with.
    """
    if value is None or math.isnan(value):
        return ""
    if published and column.startswith("median"):
        metres = column == "median_translation_m"
        return f"{100 * value:.6g} cm" if metres else f"{value:.6g}°"
    if column == "median_translation_m":
        return format_length(value, unit)
    if column == "median_rotation_deg":
        return format_angle(value)
    if column in ("dcre_mean_px", "dcre_max_px"):
        return "∞" if math.isinf(value) else f"{value:.1f} px"
    return f"{100 * value:.1f}"


def text_table(scene: SceneComparison, published: Sequence[tuple[Row, str]]) -> Table:
    """The comparison for the terminal."""
    keys = columns(scene, published)
    listed = {key for row, _ in published for key in row.values}
    shown = [c for c in keys if c in listed or c in _telling(scene, keys)]
    shown = [c for c in shown if not c.startswith("dcre_mean")]
    table = Table(title=scene.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("failed", justify="right")
    for column in shown:
        table.add_column(title_of(column, scene.unit), justify="right")
    for row in scene.rows:
        cells = [cell(c, row.values.get(c), scene.unit) for c in shown]
        table.add_row(Text(row.marked), f"{row.missing}/{row.queries}", *cells)
    if published:
        table.add_section()
    for row, source in published:
        cells = [cell(c, row.values.get(c), scene.unit, True) for c in shown]
        mark = "published, unverified" if source.startswith("unverified") else "published"
        table.add_row(Text(f"{row.label} ({mark})", style="dim"), "", *cells, style="dim")
    return table


def csv_text(scenes: Sequence[tuple[SceneComparison, Sequence[tuple[Row, str]]]]) -> str:
    """All numbers with their intervals: metres, degrees, pixels, and fractions 0..1."""
    keys = list(dict.fromkeys(c for scene, rows in scenes for c in columns(scene, rows)))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["scene", "method", "kind", "source", "queries", "failed", "unknown"]
    for key in keys:
        head += [key, f"{key}_low", f"{key}_high"]
    writer.writerow(head)
    for scene, published in scenes:
        entries = [(row, "measured", row.path) for row in scene.rows]
        entries += [(row, "published", source) for row, source in published]
        for row, kind, source in entries:
            counts = [row.queries, row.missing, row.unknown] if kind == "measured" else ["", "", ""]
            line: list[object] = [scene.name, row.label, kind, source, *counts]
            for key in keys:
                low, high = row.intervals.get(key, (math.nan, math.nan))
                line += [_plain(row.values.get(key)), _plain(low), _plain(high)]
            writer.writerow(line)
    return buffer.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.9g}"


def html_page(
    title: str,
    scenes: Sequence[tuple[SceneComparison, Sequence[tuple[Row, str]]]],
    notes: Sequence[str],
    version: str,
    tests: Mapping[str, Sequence[PairedTest]],
    picture: Picture = lambda scene, query: None,
) -> str:
    """The page: per scene a table with intervals, paired tests, the cumulative curves, and queries.

    Args:
        title: of the page.
        scenes: with their published rows.
        notes: how it was measured.
        version: of reloc.
        tests: by scene.
        picture: of a query of a scene, None where it is not known.
    """
    sections = []
    for scene, published in scenes:
        measured = _table(scene, _telling(scene, columns(scene, [])), [])
        sections.append(f"<h2>{escape(scene.name)}</h2>{measured}")
        sections.append(_tests(tests.get(scene.name, ())))
        if any(row.errors is not None for row in scene.rows):
            sections.append(_curves(scene))
            sections.append(_differences(scene, picture))
        if published:
            sections.append(_beside_published(scene, published))
    listed = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    template = Template(files(__package__).joinpath("report_template.html").read_text("utf-8"))
    today = datetime.date.today()
    return template.substitute(
        title=escape(f"{title} · reloc"),
        scene=escape(title),
        subtitle=escape(f"Comparison · {today.day} {today:%B %Y}"),
        lead="Every image of the ground truth counts; a missing estimate is infinitely wrong.",
        tiles="",
        sections="\n".join(sections) + f"<h2>How it was measured</h2>{listed}",
        footer=escape(f"Made by reloc {version}".strip()) + ". All numbers are in compare.csv.",
    )


def _tests(tests: Sequence[PairedTest]) -> str:
    """One line per pair, all but the first ones folded away."""
    if not tests:
        return ""
    lines = [f"{escape(str(test))}." for test in tests]
    more = "<br>".join(lines[SHOWN_TESTS:])
    folded = f"<details><summary>{len(lines) - SHOWN_TESTS} more pairs</summary>{more}</details>"
    return (
        '<div class="note below" style="max-width:none;margin-bottom:16px">'
        f"{'<br>'.join(lines[:SHOWN_TESTS])}{folded if more else ''}</div>"
    )


def _beside_published(scene: SceneComparison, published: Sequence[tuple[Row, str]]) -> str:
    """Measured and published rows, with the columns that the latter have."""
    shared = [c for c in columns(scene, published) if any(c in row.values for row, _ in published)]
    return (
        '<h3 style="margin-top:24px">Beside published numbers</h3>'
        '<p class="note">Published numbers are for the published test split of the scene.</p>'
        f"{_table(scene, shared, published)}"
    )


def _telling(scene: SceneComparison, keys: Sequence[str]) -> list[str]:
    """Columns without those where every method has reached all or nothing."""
    found = {key: {row.values[key] for row in scene.rows if key in row.values} for key in keys}
    return [
        key for key in keys if key.startswith(("median", "dcre")) or not found[key] <= {0.0, 1.0}
    ]


def _table(
    scene: SceneComparison, keys: Sequence[str], published: Sequence[tuple[Row, str]]
) -> str:
    head = "".join(f'<th class="n">{escape(title_of(c, scene.unit))}</th>' for c in keys)
    extra = '<th style="padding-left:24px">source</th>' if published else ""
    mine = '<td style="padding-left:24px"><small>measured</small></td>' if published else ""
    rows = []
    for index, row in enumerate(scene.rows):
        key = f'<i style="color:{COLOURS[index % len(COLOURS)]}">&#9632;</i> '
        cells = "".join(_html_cell(c, row, scene.unit) for c in keys)
        failed = f'<td class="n">{row.missing} / {row.queries}</td>'
        name = f'<td style="min-width:9em">{key}{escape(row.marked)}</td>'
        rows.append(f"<tr>{name}{failed}{cells}{mine}</tr>")
    for row, source in published:
        cells = "".join(_html_cell(c, row, scene.unit, True) for c in keys)
        rows.append(
            f'<tr style="color:var(--soft)"><td>{escape(row.label)}</td><td class="n"></td>{cells}'
            '<td style="min-width:16em;padding-left:24px">'
            f"<small>published, {escape(source)}</small></td></tr>"
        )
    return (
        f'<div class="panel wide scroll"><table><tr><th>method</th><th class="n">failed</th>{head}'
        f"{extra}</tr>{''.join(rows)}</table></div>"
    )


def _html_cell(column: str, row: Row, unit: str, published: bool = False) -> str:
    text = escape(cell(column, row.values.get(column), unit, published))
    interval = row.intervals.get(column)
    if interval is None or not text:
        return f'<td class="n">{text}</td>'
    low, high = (escape(cell(column, v, unit)) for v in interval)
    return (
        f'<td class="n" title="95 %: {low} – {high}">{text}<br>'
        f'<small style="opacity:.65">{low} – {high}</small></td>'
    )


def _curves(scene: SceneComparison) -> str:
    """Cumulative curves of the joint error, up to 10 cm and degrees, and up to 50."""
    series = [
        (row.label, joint_error(row.errors) if scene.unit == "metre" else row.errors[:, 1])
        for row in scene.rows
        if row.errors is not None
    ]
    if scene.unit == "metre":
        figures = [_figure(series, limit, "max of cm and degrees") for limit in (10.0, 50.0)]
    else:
        figures = [_figure(series, 10.0, "rotation error, degrees")]
    panels = "".join(f'<div class="panel">{figure}</div>' for figure in figures)
    return f'<div class="grid">{panels}</div>'


def most_different(scene: SceneComparison) -> list[int]:
    """Indices of the queries in which the methods differ most, those of the largest difference first.

    Errors count up to `_WRONG`: beyond it, and without a pose, a query is as wrong as it can be.
    """
    errors = [_judged(scene, row.errors) for row in scene.rows if row.errors is not None]
    if len(errors) < 2:
        return []
    spread = np.ptp(np.minimum(np.stack(errors), _WRONG), axis=0)
    order = np.argsort(-spread, kind="stable")[:_SHOWN]
    return [int(i) for i in order if spread[i] > 0]


def _judged(scene: SceneComparison, errors: Float64Array) -> Float64Array:
    """max(cm, degrees), or degrees alone without metres."""
    return joint_error(errors) if scene.unit == METRE else errors[:, 1]


def _differences(scene: SceneComparison, picture: Picture) -> str:
    """Cards of the queries in which the methods differ most: a picture, and every method's error."""
    cards = []
    for index in most_different(scene):
        name = scene.queries[index]
        image = picture(scene.name, name)
        shown = (
            f'<img src="{data_uri(image, 400)}" alt="" style="width:100%">'
            if image is not None
            else ""
        )
        lines = []
        for number, row in enumerate(scene.rows):
            if row.errors is None:
                continue
            metres, degrees = row.errors[index]
            error = (
                f"{format_length(metres, scene.unit)}, {format_angle(degrees)}"
                if math.isfinite(metres)
                else "not localized"
            )
            square = f'<i style="color:{COLOURS[number % len(COLOURS)]}">&#9632;</i>'
            lines.append(f"{square} {escape(row.label)}: {error}")
        cards.append(
            f'<figure class="card">{shown}<figcaption><span class="name">{escape(name)}</span>'
            f"{'<br>'.join(lines)}</figcaption></figure>"
        )
    if not cards:
        return ""
    return (
        '<h3 style="margin-top:24px">Where they differ most</h3>'
        f'<div class="gallery">{"".join(cards)}</div>'
    )


def _figure(series: Sequence[tuple[str, np.ndarray]], limit: float, axis: str) -> str:
    title = f"Share of images below an error, up to {limit:g}"
    legend = _Legend([label for label, _ in series], 440)
    plot = Axes(
        440,
        306 + legend.height,
        (0.0, limit),
        (0.0, 1.0),
        label=f"{title}: {axis}",
        margins=(46, 30, 22, 42 + legend.height),
    )
    plot.text(plot.left, 16, title, "title")
    plot.x_ticks([(limit * k / 5, f"{limit * k / 5:g}") for k in range(6)], axis)
    plot.y_ticks([(v / 4, f"{25 * v} %") for v in range(5)])
    for index, (label, errors) in enumerate(series):
        ordered = np.sort(errors)
        grid = np.linspace(0, limit, 241)
        share = np.searchsorted(ordered, grid, "left") / len(ordered)
        points = np.array([(plot.x(x), plot.y(y)) for x, y in zip(grid, share, strict=True)])
        plot.add(
            f'<path class="curve" style="{_style(index)}" d="{path(points)}">'
            f"<title>{escape(label)}</title></path>"
        )
    legend.draw(plot)
    return plot.render()


def _style(index: int) -> str:
    """Of the curve of a method: eight colours, then the same dashed."""
    dashes = "" if index < len(COLOURS) else ";stroke-dasharray:5 3"
    return f"stroke:{COLOURS[index % len(COLOURS)]}{dashes}"


class _Legend:
    """Keys below a figure, in two columns where the labels are short.

    More methods than there are styles of curves are only counted; curves tell their names when pointed at.
    """

    def __init__(self, labels: Sequence[str], width: float) -> None:
        self._labels = labels[: 2 * len(COLOURS)]
        self._more = len(labels) - len(self._labels)
        most = max((len(label) for label in labels), default=0)
        self._columns = 2 if most <= 24 and len(labels) > 1 else 1
        # A letter of the text is about 7 wide; longer labels are in the table above.
        self._letters = int((width - 46) / self._columns - 34) // 7
        self._step = (width - 46) / self._columns
        lines = -(-len(self._labels) // self._columns) + bool(self._more)
        self.height = 17 * lines + 8

    def draw(self, plot: Axes) -> None:
        """Add it below the axis title."""
        top = plot.bottom + 42 + 16
        for index, label in enumerate(self._labels):
            x = plot.left + (index % self._columns) * self._step
            y = top + 17 * (index // self._columns)
            half = self._letters // 2  # of a sweep's jobs the last option often is what differs
            short = label if len(label) <= self._letters else f"{label[: half - 1]}…{label[-half:]}"
            plot.add(f'<path class="curve" style="{_style(index)}" d="M{x:g} {y - 4:g}h22"/>')
            plot.text(x + 28, y, short)
        if self._more:
            y = top + 17 * -(-len(self._labels) // self._columns)
            plot.text(plot.left, y, f"and {self._more} more", "axis")


def json_content(scenes: Mapping[str, SceneComparison]) -> dict[str, object]:
    """The measured numbers for programs; undefined ones are None."""
    return {
        name: [
            {
                "method": row.label,
                "queries": row.queries,
                "failed": row.missing,
                "unknown": row.unknown,
                "overconfident": bool(row.overconfidence),
                **{k: v if math.isfinite(v) else None for k, v in row.values.items()},
                "intervals": {
                    k: [x if math.isfinite(x) else None for x in v]
                    for k, v in row.intervals.items()
                },
            }
            for row in scene.rows
        ]
        for name, scene in scenes.items()
    }

"""The table of all queries in the report, which the reader sorts and filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from reloc_core.evaluation.results import QueryResult
from reloc_core.evaluation.units import format_angle, format_length, format_seconds

_MOST = 5000
_COLUMNS = (("query", False), ("position error", True), ("rotation error", True), ("score", True),
            ("inliers", True), ("time", True), ("why not localized", False))  # fmt: skip
# Sorts by a click on a column's title, the other way round at the next one; hides what lacks the text.
_SCRIPT = """
<script>
(() => {
  const table = document.getElementById("queries"), body = table.tBodies[0];
  const rows = [...body.rows], shown = document.getElementById("queries-shown");
  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  for (const [i, title] of [...table.tHead.rows[0].cells].entries()) {
    title.firstChild.addEventListener("click", () => {
      const up = title.ariaSort !== "ascending", numeric = title.classList.contains("n");
      for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
      title.ariaSort = up ? "ascending" : "descending";
      const by = numeric ? (a, b) => value(a, i) - value(b, i)
                         : (a, b) => value(a, i).localeCompare(value(b, i), undefined, {numeric: true});
      rows.sort((a, b) => up ? by(a, b) : by(b, a));
      body.append(...rows);
    });
  }
  const filter = () => {
    const words = document.getElementById("queries-filter").value.toLowerCase();
    const kind = document.getElementById("queries-kind").value;
    let count = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(words) || (kind && row.dataset.kind !== kind);
      count += !row.hidden;
    }
    shown.textContent = count + " of " + rows.length;
  };
  document.getElementById("queries-filter").addEventListener("input", filter);
  document.getElementById("queries-kind").addEventListener("change", filter);
})();
</script>
"""


def query_table(results: Sequence[QueryResult], unit: str) -> str:
    """All queries with their errors, score and time, in order; at most 5000 of them, the worst."""
    if not results:
        return ""
    kept = range(len(results))
    note = "Click on a title to sort."
    if len(results) > _MOST:
        order = sorted(kept, key=lambda i: -_badness(results[i]))
        kept = sorted(order[:_MOST])  # type: ignore[assignment]
        note += f" The {_MOST} worst; localizations.jsonl has all {len(results)}."
    titles = "".join(
        f'<th{" class=n" if numeric else ""} aria-sort="none"><button>{name}</button></th>'
        for name, numeric in _COLUMNS
    )
    rows = "".join(_row(results[i], unit) for i in kept)
    return (
        f'<h2>All queries</h2><p class="note">{note}</p><div class="panel">'
        '<p class="controls"><input id="queries-filter" type="search" aria-label="Filter queries" '
        'placeholder="Part of a name or reason"> <select id="queries-kind" aria-label="Which queries">'
        '<option value="">all</option><option value="yes">localized</option>'
        '<option value="no">not localized</option></select> '
        f'<span id="queries-shown">{len(kept)} of {len(kept)}</span></p>'
        f'<div class="scroll tall"><table id="queries"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>{_SCRIPT}"
    )


def _badness(result: QueryResult) -> float:
    error = result.translation_error_m
    return math.inf if not result.localized else 0.0 if error is None else error


def _row(r: QueryResult, unit: str) -> str:
    position, rotation = r.translation_error_m, r.rotation_error_deg
    cells = (
        (position, "" if position is None else format_length(position, unit)),
        (rotation, "" if rotation is None else format_angle(rotation)),
        (r.score, f"{r.score:.2f}"),
        (r.num_inliers, str(r.num_inliers)),
        (r.total_seconds, format_seconds(r.total_seconds)),
    )
    numbers = "".join(
        f'<td class="n" data-v="{_sortable(value)}">{escape(text)}</td>' for value, text in cells
    )
    return (
        f'<tr data-kind="{"yes" if r.localized else "no"}"><td class="text">{escape(r.name)}</td>'
        f'{numbers}<td class="text">{escape(r.reason)}</td></tr>'
    )


def _sortable(value: float | None) -> str:
    """A number that JavaScript reads; unknown ones before all, infinite ones after all."""
    if value is None or math.isnan(value):
        return "-1"
    return "Infinity" if math.isinf(value) else repr(float(value))

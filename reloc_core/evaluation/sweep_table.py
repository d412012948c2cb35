"""Tables of sweeps: one row per configuration, with numbers over its repetitions."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from reloc_core.errors import ConfigError, DataError, MapError, did_you_mean
from reloc_core.evaluation.metrics import (
    RELATIVE_SUCCESS,
    RELATIVE_THRESHOLDS,
    THRESHOLDS,
    overconfidence,
)
from reloc_core.evaluation.paired import PairedTest, paired_tests
from reloc_core.evaluation.results import error_array, read_localizations
from reloc_core.evaluation.sweeps import Average, Job, Sweep, average, groups
from reloc_core.evaluation.units import METRE
from reloc_core.maps import Map


@dataclass(frozen=True)
class Column:
    """A number of the results.

    Attributes:
        title: as in a table's head.
        key: in `result.json`, dotted.
        factor: from its unit to the title's.
        digits: after the point.
        most: largest possible value in the title's unit; the smallest is 0.
    """

    title: str
    key: str
    factor: float = 1.0
    digits: int = 4
    most: float = math.inf


COLUMNS = {
    "median_cm": Column("median cm", "metrics.median_translation_m", 100.0, 2),
    "median_deg": Column("median deg", "metrics.median_rotation_deg", 1.0, 3),
    **{
        f"recall_{key}": Column(
            f"{key.replace('_', ' ')} %", f"metrics.recall.{key}", 100.0, 1, 100.0
        )
        for key in THRESHOLDS
    },
    "median_percent": Column(
        "median % of the depth", "metrics.relative.median_translation_percent", 1.0, 2
    ),
    **{
        f"recall_{key}": Column(
            f"{key.replace('_', ' ')} %", f"metrics.relative.recall.{key}", 100.0, 1, 100.0
        )
        for key in RELATIVE_THRESHOLDS
        if "." not in key  # keys of results are dotted
    },
    "localized": Column("localized", "metrics.localized", 1.0, 1),
    "query_ms": Column("ms per query", "seconds.per_query.median", 1000.0, 1),
    "total_s": Column("total s", "seconds.total", 1.0, 1),
    "map_mb": Column("map MB", "map.bytes", 1e-6, 2),
    "peak_mb": Column("peak MB", "peak_memory_mb", 1.0, 0),
}
DEFAULT = ("median_cm", "median_deg", "recall_5cm_5deg", "query_ms", "total_s", "peak_mb")
MARK = "†"
OVERCONFIDENT = (
    f"{MARK} The poses of at least one job are overconfident: their covariances are far too small for the "
    "errors, see its report"
)
_RELATIVE = {"median_cm": "median_percent", "recall_5cm_5deg": f"recall_{RELATIVE_SUCCESS}"}
LEGEND = "mean ± standard deviation [95 % interval of the mean, Student's t]"


@dataclass(frozen=True)
class SweepTable:
    """What a sweep says.

    Attributes:
        options: that differ between the rows.
        columns: names and columns of the numbers.
        rows: values of the options, finished and all jobs, and a number per column.
        tests: paired tests between the rows on the same queries.
        overconfident: by row, finished jobs whose covariances are far too small for their errors.
    """

    options: tuple[str, ...]
    columns: tuple[tuple[str, Column], ...]
    rows: tuple[tuple[tuple[str, ...], int, int, tuple[Average, ...]], ...]
    tests: tuple[PairedTest, ...]
    overconfident: tuple[int, ...] = ()

    def notes(self) -> list[str]:
        """Below the table: what its mark means, and the paired tests."""
        return [*([OVERCONFIDENT] if any(self.overconfident) else []), *map(str, self.tests)]

    def cells(self) -> list[list[str]]:
        """Head and rows as people read them."""
        head = [
            *(self.options or ["configuration"]),
            "finished",
            *(c.title for _, c in self.columns),
        ]
        body = [
            [*(values or ["all"]), f"{done}/{count}{' ' + MARK if marked else ''}",
             *(_cell(n, c) for n, (_, c) in zip(numbers, self.columns, strict=True))]
            for (values, done, count, numbers), marked in zip_longest(self.rows, self.overconfident)
        ]  # fmt: skip
        return [head, *body]

    def records(self) -> list[dict[str, Any]]:
        """Rows as programs read them: means, standard deviations and limits as numbers of their own."""
        found = []
        for (values, done, count, numbers), marked in zip_longest(self.rows, self.overconfident):
            record: dict[str, Any] = dict(zip(self.options, values, strict=True))
            record |= {"finished": done, "jobs": count, "overconfident": marked or 0}
            for number, (name, column) in zip(numbers, self.columns, strict=True):
                low, high = interval(number, column)
                scaled = {"": number.mean, "_std": number.std}
                record |= {
                    f"{name}{end}": None if v is None else v * column.factor
                    for end, v in scaled.items()
                }
                record |= {f"{name}_low": low, f"{name}_high": high, f"{name}_n": number.count}
            found.append(record)
        return found

    def csv(self) -> str:
        """Comma-separated numbers; empty where there is none."""
        file = io.StringIO()
        records = self.records()
        writer = csv.DictWriter(file, list(records[0]) if records else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return file.getvalue()

    def markdown(self) -> str:
        """A table for a README."""
        head, *body = [[c.replace("|", "\\|") for c in row] for row in self.cells()]
        marks = ["---"] * len(self.options or [1]) + ["---:"] * (1 + len(self.columns))
        lines = [f"| {' | '.join(row)} |" for row in (head, marks, *body)]
        return "\n".join(
            [*lines, "", f"{LEGEND}.", *(f"\n{n.rstrip('.')}." for n in self.notes()), ""]
        )

    def latex(self) -> str:
        """A table for a paper (booktabs)."""
        head, *body = [[_tex(cell) for cell in row] for row in self.cells()]
        form = "l" * len(self.options or [1]) + "r" * (1 + len(self.columns))
        lines = [
            f"\\begin{{tabular}}{{{form}}}",
            "\\toprule",
            " & ".join(head) + r" \\",
            "\\midrule",
        ]
        lines += [" & ".join(row) + r" \\" for row in body]
        notes = [f"% {_tex(LEGEND)}", *(f"% {_tex(n)}" for n in self.notes())]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes, ""])

    def frame(self) -> Any:
        """A pandas DataFrame of `records`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ConfigError("A frame needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.records())


def sweep_table(sweep: Sweep, over: str = "seed", columns: Sequence[str] = DEFAULT) -> SweepTable:
    """The numbers of a sweep by configuration.

    Args:
        sweep: read by `read_sweep`.
        over: the option whose values are repetitions.
        columns: names of `COLUMNS`, or dotted keys of `result.json`; the default ones are over the scene's
            depth where the unit of the poses is arbitrary.

    Raises:
        ConfigError: no such column.
    """
    if columns is DEFAULT and _is_arbitrary(sweep):
        columns = [_RELATIVE.get(name, name) for name in DEFAULT]
    chosen = tuple((name, _column(name)) for name in columns)
    options = tuple(key for key in sweep.varied if key != over)
    rows, errors, marked = [], {}, []
    for key, jobs in groups(sweep, over).items():
        values = tuple(value for _, value in key)
        done = [job for job in jobs if job.finished]
        numbers = tuple(average([_value(job, c) for job in done]) for _, c in chosen)
        rows.append((values, len(done), len(jobs), numbers))
        marked.append(sum(map(_overconfident, done)))
        errors[", ".join(values) or "all"] = _errors(done)
    return SweepTable(options, chosen, tuple(rows), tuple(paired_tests(errors)), tuple(marked))


def _overconfident(job: Job) -> bool:
    keys = ("mean_nees", "within_95", "with_covariance")
    found = [job.value(f"metrics.calibration.{key}") for key in keys]
    nees, within, count = (math.nan if value is None else value for value in found)
    return count >= 0 and bool(overconfidence(nees, within, int(count)))


def _is_arbitrary(sweep: Sweep) -> bool:
    """Whether no job's poses are in metres."""
    found = [job.result.get("dataset") for job in sweep.jobs if job.finished]
    units = {str(d.get("unit", METRE)) for d in found if isinstance(d, Mapping)}
    return bool(units) and METRE not in units


def interval(number: Average, column: Column) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean in the column's unit, clipped to what is possible."""
    if number.mean is None or number.half_width is None:
        return None, None
    low = (number.mean - number.half_width) * column.factor
    high = (number.mean + number.half_width) * column.factor
    return max(low, 0.0), min(high, column.most)


def _column(name: str) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    if re.fullmatch(r"\w+(\.\w+)+", name):
        return Column(name, name, most=math.inf)
    raise ConfigError(f"There is no column '{name}'.{did_you_mean(name, COLUMNS)}")


def _value(job: Job, column: Column) -> float | None:
    found = job.value(column.key)
    if found is None and column.key == "map.bytes":
        try:
            return float(Map.open(job.folder / "map").bytes)
        except MapError:
            return None
    return found


def _errors(jobs: Sequence[Job]) -> dict[str, Any]:
    """Errors by query over the repetitions; queries without ground truth are left out."""
    found: dict[str, list[Any]] = {}
    for job in jobs:
        print_of = job.result.get("dataset")
        room = print_of.get("fingerprint") if isinstance(print_of, dict) else ""
        try:
            results = read_localizations(job.folder / "localizations.jsonl")
        except DataError:
            continue
        known = [r for r in results if r.truth is not None]
        for result, error in zip(known, error_array(known), strict=True):
            found.setdefault(f"{room}/{result.name}", []).append(error)
    return {name: np.stack(errors) for name, errors in found.items()}


def _cell(number: Average, column: Column) -> str:
    if number.mean is None:
        return "-"
    text = f"{number.mean * column.factor:.{column.digits}f}"
    low, high = interval(number, column)
    if number.std is not None and low is not None and high is not None:
        text += f" ± {number.std * column.factor:.{column.digits}f}"
        text += f" [{low:.{column.digits}f}, {high:.{column.digits}f}]"
    return text


def _tex(text: str) -> str:
    text = re.sub(r"([%&_#$])", r"\\\1", text.replace("\\", r"\textbackslash "))
    text = text.replace(MARK, r"$\dagger$")
    return text.replace("±", r"$\pm$").replace("{}", "")

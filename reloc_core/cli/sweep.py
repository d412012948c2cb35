"""`reloc sweep table | resume | plot`: what comes after `reloc VERB -m`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from reloc_core.cli.multirun import multirun
from reloc_core.config import literal
from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.evaluation.comparison_page import SHOWN_TESTS
from reloc_core.evaluation.sweep_table import COLUMNS, DEFAULT, LEGEND, SweepTable, sweep_table
from reloc_core.evaluation.sweeps import Sweep, average, groups, key_of, read_sweep
from reloc_core.overrides import quoted
from reloc_core.runs import SafeConsole
from reloc_core.storage import explain_os_errors

USAGE = """\
Usage: reloc sweep table DIR [over=seed] [format=text|csv|markdown|latex] [columns=NAME,...]
                                                             numbers over seeds, and paired tests
       reloc sweep resume DIR                                run what is missing or failed
       reloc sweep plot DIR [over=seed] [value=KEY]          DIR/sweep.png; KEY as in result.json
Columns: {columns}, or a key of result.json
Sweeps are made with -m:  reloc benchmark -m experiment=sweep/methods output_dir=DIR
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE.format(columns=", ".join(COLUMNS)), end="")
        return 0
    action, rest = arguments[0], list(arguments[1:])
    if action not in ("table", "resume", "plot"):
        raise ConfigError(
            f"There is no 'reloc sweep {action}'.{did_you_mean(action, ['table', 'resume', 'plot'])}"
        )
    allowed = {"table": ("over", "format", "columns"), "resume": (), "plot": ("over", "value")}[
        action
    ]
    of_hydra = ("hydra.", "hydra/")
    more = [a for a in rest if key_of(a).startswith(of_hydra)] if action == "resume" else []
    rest = [a for a in rest if a not in more]
    known = ("over", "format", "value", "columns")
    folders = [
        a for a in rest if a.partition("=")[0] not in known and ("=" not in a or Path(a).is_dir())
    ]
    options = dict(a.split("=", 1) for a in rest if a not in folders)
    unknown = [key for key in options if key not in allowed]
    if len(folders) != 1 or unknown:
        raise ConfigError(
            f"'reloc sweep {action}' takes one DIR{''.join(f' [{a}=...]' for a in allowed)}."
        )
    sweep = read_sweep(folders[0])
    if action == "resume":
        return resume(sweep, more)
    over = options.get("over", "seed")
    if action == "plot":
        print(plot(sweep, over, options.get("value", COLUMNS["median_cm"].key)))
        return 0
    columns = [name for name in options.get("columns", "").split(",") if name] or DEFAULT
    table = sweep_table(sweep, over, columns)
    form = options.get("format", "text")
    writers = {"csv": table.csv, "markdown": table.markdown, "latex": table.latex}
    if form in writers:
        print(writers[form](), end="")
    elif form == "text":
        _print(table, sweep)
    else:
        raise ConfigError(f"format={form} is unknown: use text, {', '.join(writers)}.")
    return 0


def _print(table: SweepTable, sweep: Sweep) -> None:
    head, *body = table.cells()
    shown = Table(*head, box=None, header_style="bold")
    for row in body:
        shown.add_row(*row)
    console = SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(shown)
    console.print(LEGEND, style="dim", markup=False)
    hidden = max(len(table.tests) - SHOWN_TESTS, 0)
    notes = table.notes()
    for note in notes[: len(notes) - hidden]:
        console.print(note, markup=False, soft_wrap=True)
    if hidden:
        console.print(f"and {hidden} more pairs: format=markdown")
    open_jobs = [job for job in sweep.jobs if not job.finished]
    for job in open_jobs[:5]:
        console.print(f"job {job.number}: {job.status}. {job.why}", markup=False, soft_wrap=True)
    if open_jobs:
        console.print(
            f"{len(open_jobs)} of {len(sweep.jobs)} jobs are not finished: "
            f"reloc sweep resume {sweep.path}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def resume(sweep: Sweep, more: Sequence[str] = ()) -> int:
    """Run what is missing or failed, with the options as they were typed.

    Args:
        sweep: as it lies on disk.
        more: options of Hydra to add, such as the launcher.
    """
    record = sweep.record
    for override in record.left_out:
        print(
            f"Not taken from the folder: {override[:80]!r}. If you want it, add it to this command.",
            file=sys.stderr,
        )
    if not record.sampled:
        left = sum(not job.finished for job in sweep.jobs)
        print(
            f"{len(sweep.jobs) - left} of {len(sweep.jobs)} jobs are finished, {left} to do.",
            flush=True,
        )
        if not left:
            return 0
    given = {key_of(o) for o in more}
    # Options of a launcher or sweeper that is replaced do not fit its successor.
    replaced = [f"{key_of(o).replace('/', '.')}." for o in more if o not in record.hydra]
    hydra = [
        o
        for o in record.hydra
        if key_of(o) not in given and not key_of(o).startswith(tuple(replaced))
    ]
    folder = f"output_dir={quoted(literal(str(sweep.path.resolve())))}"
    return multirun(record.verb, [*hydra, *more, *record.task, folder], resume=True)


def plot(sweep: Sweep, over: str, value: str) -> Path:
    """Draw one number of all configurations with its interval; returns the picture's path.

    Raises:
        ConfigError: no finished job has the number.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [
        (
            ", ".join(str(v) for _, v in key) or "all",
            average([j.value(value) for j in jobs if j.finished]),
        )
        for key, jobs in groups(sweep, over).items()
    ]
    bars = [(label, found) for label, found in bars if found.mean is not None]
    if not bars:
        raise ConfigError(f"No finished job of {sweep.path} has the number '{value}'.")
    figure = Figure(figsize=(8, 1.9 + 0.32 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars.reverse()  # the first one on top
    places = range(len(bars))
    means = [found.mean or 0.0 for _, found in bars]
    axes.plot(means, places, "o", color="#2a6fb0", label=f"mean over {over}")
    known = [
        (place, found) for place, (_, found) in enumerate(bars) if found.half_width is not None
    ]
    if known:
        axes.errorbar(
            [found.mean or 0.0 for _, found in known],
            [place for place, _ in known],
            xerr=[found.half_width or 0.0 for _, found in known],
            fmt="none",
            color="#2a6fb0",
            capsize=3,
            label="95 % interval of the mean",
        )
    axes.set_yticks(places, [label for label, _ in bars])
    axes.set_ylabel(", ".join(k for k in sweep.varied if k != over))
    axes.set_xlabel(value)
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    done = sum(job.finished for job in sweep.jobs)
    figure.suptitle(f"{sweep.path.resolve().name}: {done} of {len(sweep.jobs)} jobs", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    path = sweep.path / "sweep.png"
    with explain_os_errors(path):
        figure.savefig(path, dpi=150)
    return path

"""`reloc report compare`: several methods, ours and published, against one ground truth."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reloc_core import __version__
from reloc_core.cli import report_merge
from reloc_core.cli.report_jobs import with_jobs
from reloc_core.config import build
from reloc_core.errors import ConfigError, DataError, RelocError, did_you_mean
from reloc_core.evaluation.compare import Bootstrap, SceneComparison, average, compare_scene
from reloc_core.evaluation.comparison_page import (
    SHOWN_TESTS,
    Picture,
    csv_text,
    html_page,
    json_content,
    published_rows,
    text_table,
)
from reloc_core.evaluation.estimates import Estimates, Truth, read_estimates, read_truth
from reloc_core.evaluation.paired import NOTE, PairedTest, pairs_of_scene
from reloc_core.evaluation.published import (
    MEAN,
    PublishedTable,
    published_names,
    read_published,
)
from reloc_core.interfaces import Dataset
from reloc_core.io.files import read_text, write_atomically
from reloc_core.maps import explain_os_errors
from reloc_core.runs import SafeConsole, console, show_progress
from reloc_core.storage import read_yaml
from reloc_core.types import ImageArray

USAGE = """\
reloc report compare - one table of several methods against one ground truth

Usage: reloc report compare truth=TRUTH [LABEL=]RESULT ... [option=value ...]
       reloc report compare SCENES.json [option=value ...]
       reloc report merge --help      the results of several maps of one scene as one

TRUTH   a split in the ACE layout (brings depth for the DCRE), a pose list of the pseudo ground truth
        format, or a result of reloc evaluate (its ground truth)
RESULT  output folder of reloc evaluate, of a sweep (its ground truth unless one is named) or of jobs of
        it, both labelled by what differs, or a localizations.jsonl; a pose list (name qw qx qy qz tx ty
        tz, world-to-camera: published estimates, hloc); a pose log of DSAC*, ACE, GLACE
SCENES  {{"scenes": [{{"name": ..., "pgt": TRUTH,
                      "estimates": [{{"algo": LABEL, "estimated_poses": RESULT}}]}}]}}
        as in the repository of the pseudo ground truth; paths from the file's folder

Options:
  published=           tables of published numbers, shown below, comma-separated
  scene=               scene of the published table; "mean" for averages
  output_dir=outputs/compare
  bootstrap=1000       resamples of the 95 % intervals; 0 for none
  block=1              consecutive images drawn together; about a second's worth for video
  seed=0
  dcre=4               every n-th row and column of the depth maps; 0 for no DCRE

Published tables: {tables}
"""
_OPTIONS = ("truth", "published", "scene", "output_dir", "bootstrap", "block", "seed", "dcre")


@dataclass
class _Job:
    name: str
    truth: Truth
    estimates: list[Estimates]


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if arguments and arguments[0] == "merge":
        return report_merge.run(arguments[1:])
    if not arguments or arguments[0] in ("-h", "--help") or "--help" in arguments:
        print(USAGE.format(tables=", ".join(published_names())), end="")
        return 0
    if arguments[0] != "compare":
        hint = did_you_mean(arguments[0], ["compare", "merge"])
        raise ConfigError(f"There is no 'reloc report {arguments[0]}'.{hint}")
    options, results = _parse(arguments[1:])
    jobs = _jobs(options, results)
    bootstrap = Bootstrap(
        _integer(options, "bootstrap", 1000),
        _integer(options, "block", 1, 1),
        _integer(options, "seed", 0),
    )
    step = _integer(options, "dcre", 4)
    tables = [read_published(name) for name in options.get("published", "").split(",") if name]
    scenes = [_compare(job, bootstrap, step) for job in jobs]
    if len(scenes) > 1:
        scenes.append(average(scenes))
    asked = options.get("scene")
    shown = [(scene, _published(tables, scene, asked, len(jobs))) for scene in scenes]
    tests = {scene.name: pairs_of_scene(scene) for scene in scenes}
    output = Path(options.get("output_dir", "outputs/compare"))
    notes = _notes(bootstrap, step, scenes, jobs)
    if any(tests.values()):
        notes.append(NOTE)
    _write(output, options, shown, notes, tests, _pictures(jobs))
    _print(SafeConsole(width=_width(), highlight=False), shown, tests)
    for note in _warnings(scenes):
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"Page, table and numbers: {output}", markup=False, soft_wrap=True)
    return 0


def _parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    options: dict[str, str] = {}
    results: list[tuple[str, str]] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            raise ConfigError(f"'reloc report compare' has no flag '{argument}'.")
        if equals and key in _OPTIONS:
            options[key] = value
        elif equals and not Path(argument).exists():
            if not value:
                raise ConfigError(f"{key}= names no result.")
            if not Path(value).expanduser().exists():
                hint = did_you_mean(key, _OPTIONS)
                suffix = hint if "Did you mean" in hint else ""
                raise DataError(f"{value} does not exist.{suffix}")
            results.append((key, value))
        else:
            results.append(("", argument))
    return options, results


def _integer(options: dict[str, str], key: str, default: int, lowest: int = 0) -> int:
    text = options.get(key, str(default))
    with contextlib.suppress(ValueError):
        if int(text) >= lowest:
            return int(text)
    raise ConfigError(f"{key} must be a whole number of at least {lowest}, got '{text}'.")


def _jobs(options: dict[str, str], results: Sequence[tuple[str, str]]) -> list[_Job]:
    configs = [path for label, path in results if not label and path.endswith(".json")]
    if configs:
        if len(results) > 1 or "truth" in options:
            raise ConfigError("A file of scenes stands alone: leave out truth= and other results.")
        return _jobs_of_file(Path(configs[0]))
    if not results:
        raise ConfigError("Name at least one result to compare; see 'reloc report compare --help'.")
    results, truth_of_sweep = with_jobs(results)
    if truth_of_sweep:
        options = {"truth": truth_of_sweep, **options}
    if "truth" not in options:
        raise ConfigError("Name the ground truth: truth=PATH.")
    truth = read_truth(options["truth"], options.get("scene", ""))
    return [_Job(truth.name, truth, [read_estimates(path, label) for label, path in results])]


def _jobs_of_file(path: Path) -> list[_Job]:
    try:
        content: Any = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no valid JSON ({error.msg}).") from None
    try:
        jobs = []
        for scene in content["scenes"]:
            base = path.parent
            name = str(scene["name"])
            estimates = [
                read_estimates(base / e["estimated_poses"], str(e["algo"]))
                for e in scene["estimates"]
            ]
            jobs.append(_Job(name, read_truth(base / scene["pgt"], name), estimates))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: a scene needs name, pgt and estimates (algo, estimated_poses); {error}."
        ) from None
    if not jobs or any(not job.estimates for job in jobs):
        raise DataError(f"{path} lists no scenes or no estimates.")
    return jobs


def _compare(job: _Job, bootstrap: Bootstrap, step: int) -> SceneComparison:
    dataset = job.truth.dataset
    dense = bool(step) and dataset is not None and dataset.has_depth and job.truth.unit == "metre"
    if not dense:
        return compare_scene(job.truth, job.estimates, bootstrap)
    with show_progress("DCRE", len(job.truth.poses)) as bar:
        return compare_scene(job.truth, job.estimates, bootstrap, step, bar.advance)


def _published(
    tables: Sequence[PublishedTable], scene: SceneComparison, asked: str | None, count: int
) -> list[Any]:
    """Published rows of a scene: the one asked for, or the one of that name; means beside averages."""
    rows = []
    for table in tables:
        name = asked or (MEAN if scene.name.startswith("mean of ") else scene.name)
        known = {s.lower(): s for s in (*table.scenes, MEAN)}
        found = known.get(name.lower())
        if asked and found is None:
            raise ConfigError(
                f"The table '{table.name}' has no scene '{asked}'.{did_you_mean(asked, known)}"
            )
        if found is None and count == 1:
            raise ConfigError(
                f"Which scene of the table '{table.name}'? Add scene=NAME, one of "
                f"{', '.join((*table.scenes, MEAN))}."
            )
        if found is not None:
            rows += published_rows(table, found)
    return rows


def _notes(
    bootstrap: Bootstrap, step: int, scenes: Sequence[SceneComparison], jobs: Sequence[_Job]
) -> list[str]:
    notes = [
        "Medians are upper medians; recalls count images strictly below both limits, in percent.",
        "AUC is the area under the curve of max(cm, degrees) up to its limit, in percent.",
    ]
    if bootstrap.resamples:
        drawn = "images" if bootstrap.block == 1 else f"runs of {bootstrap.block} images"
        notes.append(
            f"Intervals: 95 %, percentile bootstrap over {drawn}, {bootstrap.resamples} resamples."
        )
        if bootstrap.block == 1:
            notes.append(
                "Neighbouring images of a video depend on each other; block=30 widens the intervals."
            )
    if any("dcre_max_px" in row.values for scene in scenes for row in scene.rows):
        notes.append(
            "DCRE: distance in pixels between a pixel and its projection by the estimated pose, over "
            f"depths of 0.3 to 10 m, every {step}th row and column; median over images of its mean "
            "and maximum."
        )
    notes += [f"Ground truth {job.name}: {len(job.truth.poses)} images." for job in jobs]
    return notes + _warnings(scenes)


def _warnings(scenes: Sequence[SceneComparison]) -> list[str]:
    rows = [(scene, row) for scene in scenes for row in scene.rows]
    unknown = [
        f"{scene.name}: {row.unknown} estimates of {row.label} belong to no image of the ground truth."
        for scene, row in rows
        if row.unknown
    ]
    return unknown + [
        f"{row.marked}: {row.overconfidence}" for _, row in rows if row.overconfidence
    ]


def _pictures(jobs: Sequence[_Job]) -> Picture:
    """Images of queries: of the ground truth's dataset, or of the one that a result was measured on."""
    datasets: dict[str, tuple[Dataset, dict[str, int]] | None] = {}

    def picture(scene: str, query: str) -> ImageArray | None:
        if scene not in datasets:
            job = next((j for j in jobs if j.name == scene), None)
            found = _dataset(job) if job is not None else None
            names = {frame.name: i for i, frame in enumerate(found.frames)} if found else {}
            datasets[scene] = (found, names) if found is not None else None
        known = datasets[scene]
        if known is None or query not in known[1]:
            return None
        try:
            return known[0][known[1][query]].image
        except (RelocError, OSError):
            return None

    return picture


def _dataset(job: _Job) -> Dataset | None:
    if job.truth.dataset is not None:
        return job.truth.dataset
    for estimates in job.estimates:
        try:
            options: Any = read_yaml(Path(estimates.path).expanduser() / "config.yaml")
            chosen = dict(options["dataset"])
            if "test_split" in options:  # of a benchmark, which maps the other one
                chosen["split"] = options["test_split"]
            found: Dataset = build(chosen, "dataset")
            if job.truth.poses.keys() <= {frame.name for frame in found.frames}:
                return found
        except (RelocError, OSError, ValueError, LookupError, TypeError):
            continue
    return None


def _print(
    to: SafeConsole,
    shown: Sequence[Any],
    tests: Mapping[str, Sequence[PairedTest]],
    most: int = SHOWN_TESTS,
) -> None:
    """The tables, each with at most so many paired tests below it."""
    for scene, published in shown:
        to.print(text_table(scene, published))
        found = tests[scene.name]
        for test in found[:most]:
            to.print(str(test), markup=False, soft_wrap=True)
        if len(found) > most:
            to.print(f"and {len(found) - most} more pairs: compare.txt")


def _write(
    output: Path,
    options: dict[str, str],
    shown: Sequence[Any],
    notes: Sequence[str],
    tests: Mapping[str, Sequence[PairedTest]],
    picture: Picture,
) -> None:
    with explain_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    title = options.get("scene") or (shown[0][0].name if len(shown) == 1 else "Methods compared")
    write_atomically(output / "compare.csv", csv_text(shown))
    write_atomically(
        output / "compare.html", html_page(title, shown, notes, __version__, tests, picture)
    )
    content = {
        "scenes": json_content({scene.name: scene for scene, _ in shown}),
        "tests": {name: [vars(test) for test in found] for name, found in tests.items()},
        "notes": list(notes),
    }
    write_atomically(output / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    text = SafeConsole(width=200, highlight=False, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    _print(text, shown, tests, sys.maxsize)
    write_atomically(output / "compare.txt", text.export_text())


def _width() -> int | None:
    """Tables are wide; where nobody watches a terminal they are not folded."""
    return None if console.is_terminal else 200

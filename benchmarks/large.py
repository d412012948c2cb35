"""What a map costs and what it is worth as the place grows: methods over 1, 4, 16, 64 rooms in one world.

    python benchmarks/large.py --work DIR [--rooms 1 4 16] [--methods landmarks ...]
        [--repeat 4] [--doors 4]

The rooms are generated (`dataset=rooms dataset.generate=N`), 100 mapping images and 12 queries each, with
pictures, door, sofa and sideboard the same in all of them. `--repeat 4` makes every fourth room the
one before it once more, `--doors 4` joins rows of four by doorways. Images are rendered first. Mapping and
localization run in processes of their own, whose processor time and largest resident memory are measured,
with the pages of files and without them ("own"). The processor time of a query is that of the first room's
queries, one by one, in a third process. Finished rows are kept in `benchmarks/results/large.json`; the
table is printed, and drawn beside it as `large.svg`.

A pose is wrong beyond 25 cm or 10 degrees; it is confidently wrong if its score is 0.5 or more besides.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.composition import compose
from reloc_core.config import build
from reloc_core.evaluation.svg import Axes, path
from reloc_core.interfaces import Dataset
from reloc_core.pipeline import Pipeline
from reloc_core.runs import resolve_runtime

RESULTS = Path(__file__).parent / "results" / "large.json"
METHODS: Mapping[str, tuple[str, ...]] = {
    "landmarks": ("experiment=landmarks/default",),
    "sfm_matching": ("estimator=sfm_matching",),
    "gnn_relpose": ("experiment=gnn_relpose/compact",),
    "gnn_matched": ("experiment=gnn_relpose/matched",),
    "gsplat_loc": ("experiment=gsplat_loc/compact",),
    "glace": ("experiment=scr_glace/rooms",),
}
_WIDTH = 320  # of images that the plot shows, pixels
_WRONG_M, _WRONG_DEG, _SURE = 0.25, 10.0, 0.5
_DRAWN = (
    ("mapping_cpu_s", "mapping, processor seconds"),
    ("mapping_mb", "mapping, MB of memory"),
    ("map_kb", "map, kB per image"),
    ("query_cpu_ms", "query, processor ms"),
)
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#718096")


def world(rooms: int, options: argparse.Namespace) -> list[str]:
    """Overrides that choose the place."""
    room = {
        "width": options.width, "height": options.width * 3 // 4, "shared": "true",
        "train_frames": options.images, "test_frames": options.queries,
    }  # fmt: skip
    return [
        "dataset=rooms", f"dataset.generate={rooms}", "dataset.spacing=8",
        f"dataset.seeds={16 if rooms > 16 else 0}", f"dataset.repeat={options.repeat}",
        f"dataset.doors={min(options.doors, rooms)}",
        *(f"dataset.room.{key}={value}" for key, value in room.items()),
    ]  # fmt: skip


def reloc(*arguments: str) -> dict[str, float]:
    """Run a verb in a process of its own and return what it cost; its messages go to the screen."""
    command = [sys.executable, "-m", "reloc_core.cli", *arguments]
    begin = time.perf_counter()
    child = subprocess.Popen(command)
    own_kb, done = 0, 0
    while not done:
        own_kb = max(own_kb, anonymous_kb(child.pid))
        time.sleep(0.1)
        done, status, usage = os.wait4(child.pid, os.WNOHANG)
    if status:
        sys.exit("reloc " + " ".join(arguments) + " failed.")
    return {
        "s": round(time.perf_counter() - begin, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "mb": round(usage.ru_maxrss / 1e3),
        "own_mb": round(own_kb / 1e3),
    }


def anonymous_kb(process: int) -> int:
    """Memory of a process now, without pages of files, which the system takes back at need."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which leaves no memory behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def load(place: Sequence[str], split: str) -> Dataset:
    """The place's images of a split."""
    return build(
        compose("train", [*place, f"dataset.split={split}", "map_dir=_"]).dataset, "dataset"
    )


def render(place: Sequence[str]) -> None:
    """Draw all images of a place that were not drawn yet."""
    for split in ("train", "test"):
        dataset = load(place, split)
        for index in range(len(dataset)):
            dataset[index]


def ask(map_dir: Path, place: Sequence[str], threads: int, count: int) -> float:
    """Processor time of a query in milliseconds, mean over the first ones, best of three rounds."""
    pipeline = Pipeline.from_map(map_dir, runtime=resolve_runtime("cpu", threads, 42))
    dataset = load(place, "test")
    asked = [dataset[index] for index in range(count)]
    spent = []
    for _ in range(4):
        begin = time.process_time()
        for query in asked:
            pipeline.localize(replace(query, sequence=None))
        spent.append(time.process_time() - begin)
    return round(1e3 * min(spent[1:]) / count, 1)


def queries(file: Path) -> dict[str, Any]:
    """Numbers of an evaluation, from `localizations.jsonl`."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    errors = [(r["translation_error_m"], r["rotation_error_deg"], r["score"]) for r in rows]
    found = [(m, deg, score) for m, deg, score in errors if m is not None]
    wrong = [score for m, deg, score in found if m > _WRONG_M or deg > _WRONG_DEG]
    metres = sorted(np.inf if m is None else m for m, _, _ in errors)
    middle = metres[len(metres) // 2]
    return {
        "queries": len(rows),
        "localized": len(found),
        "recall": sum(m < 0.05 and deg < 5 for m, deg, _ in found) / len(rows),
        "median_m": middle if np.isfinite(middle) else None,
        "wrong": len(wrong),
        "confidently_wrong": sum(score >= _SURE for score in wrong),
        "query_ms": round(1e3 * float(np.median([r["seconds"]["total"] for r in rows])), 1),
    }


def measure(method: str, rooms: int, options: argparse.Namespace) -> dict[str, Any]:
    """Map a place by a method and localize its queries; a finished map is taken as it is."""
    name = f"{method}-{rooms}" + f"-repeat{options.repeat}" * bool(options.repeat)
    name += f"-doors{options.doors}" * bool(options.doors)
    name += f"-width{options.width}" * (options.width != _WIDTH)
    work = options.work / name
    place = world(rooms, options)
    chosen = [*place, f"threads={options.threads}"]
    cost_file = work / "mapping.json"
    if not cost_file.is_file():
        alone(render, place)
        cost = reloc("train", *METHODS[method], *chosen, *options.option, f"map_dir={work / 'map'}",
                     f"output_dir={work / 'fit'}")  # fmt: skip
        cost_file.write_text(json.dumps(cost))
    mapping = json.loads(cost_file.read_text())
    asking = reloc("evaluate", f"map_dir={work / 'map'}", *chosen, "dataset.split=test", "report=false",
                   f"output_dir={work / 'test'}")  # fmt: skip
    spent = alone(ask, work / "map", place, options.threads, options.queries)
    size = sum(file.stat().st_size for file in (work / "map").iterdir())
    images = rooms * options.images
    return {
        "method": method, "rooms": rooms, "repeat": options.repeat, "doors": options.doors,
        "images": images, "width": options.width, "threads": options.threads, "options": options.option,
        **{f"mapping_{key}": value for key, value in mapping.items()},
        "map_kb": round(size / 1e3 / images, 2), "query_mb": asking["mb"],
        "query_cpu_ms": spent,
        **queries(work / "test" / "localizations.jsonl"),
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, by method and number of rooms."""
    lines = [
        "| method | rooms | images | within 5 cm, 5° | median | confidently wrong | mapping, CPU "
        "| memory (own) | map per image | query |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        median = "lost" if row["median_m"] is None else f"{100 * row['median_m']:.1f} cm"
        again = f", every {row['repeat']}th repeated" if row["repeat"] else ""
        again += f", {row['doors']} in a row with doors" if row.get("doors") else ""
        again += f", {row['width']} pixels wide" * (row["width"] != _WIDTH)
        own = f"{row['mapping_own_mb'] / 1e3:.1f}" if "mapping_own_mb" in row else "?"
        # Rows of an earlier version have no processor time of a query.
        asked = f"{row['query_cpu_ms']:.0f} ms" if "query_cpu_ms" in row else "?"
        lines.append(
            f"| {row['method']} | {row['rooms']}{again} | {row['images']} | {100 * row['recall']:.0f} % | "
            f"{median} | {row['confidently_wrong']} of {row['queries']} | {row['mapping_cpu_s']:.0f} s | "
            f"{row['mapping_mb'] / 1e3:.1f} GB ({own}) | {row['map_kb']:.1f} kB "
            f"| {asked} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG with a panel for each cost over the number of rooms, both logarithmic."""
    rows = [r for r in rows if not r["repeat"] and not r.get("doors") and r["width"] == _WIDTH]
    panels = []
    most = max([row["rooms"] for row in rows], default=1)
    for number, (key, title) in enumerate(_DRAWN):
        values = [row[key] for row in rows if key in row] or [1.0]
        low, high = min(values) / 1.5, max(values) * 1.5
        axes = Axes(340, 260, (0.8, max(most * 1.25, 2)), (low, high), True, True, title)
        axes.x_ticks([(n, str(n)) for n in (1, 4, 16, 64) if n <= most], f"rooms: {title}")
        axes.y_ticks([(value, f"{value:.3g}") for value in (min(values), max(values))])
        for method, colour in zip(METHODS, _COLOURS, strict=True):
            own = sorted(
                (row["rooms"], row[key]) for row in rows if row["method"] == method and key in row
            )
            if not own:
                continue
            points = np.array([(axes.x(n), axes.y(value)) for n, value in own])
            axes.add(f'<path d="{path(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
            axes.add(f'<g fill="{colour}" class="{method}">')
            axes.text(points[-1][0] - 4, points[-1][1] - 5, method, anchor="end")
            axes.add("</g>")
        row, column = divmod(number, 2)
        drawing = axes.render().replace("<svg ", f'<svg x="{340 * column}" y="{260 * row}" ', 1)
        panels.append(drawing.replace("<svg ", '<svg width="340" height="260" ', 1))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 520" font-family="sans-serif" '
        'font-size="11"><style>.grid{stroke:#ddd}</style>' + "".join(panels) + "</svg>\n"
    )


def main() -> None:
    """Measure what is asked and print the table of all that was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="maps and results; resumed")
    parser.add_argument("--rooms", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["landmarks"])
    parser.add_argument(
        "--repeat", type=int, default=0, help="every so manieth room is a repetition"
    )
    parser.add_argument("--doors", type=int, default=0, help="rooms in a row joined by doorways")
    parser.add_argument("--images", type=int, default=100, help="mapping images of a room")
    parser.add_argument("--queries", type=int, default=12, help="of a room")
    parser.add_argument("--width", type=int, default=_WIDTH, help="of images, pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--option", nargs="*", default=[], help="more for the mapping, KEY=VALUE")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    order = list(METHODS)
    rows = json.loads(options.json.read_text()) if options.json.is_file() else []
    for rooms in options.rooms:
        for method in options.methods:
            row = measure(method, rooms, options)
            same = ("method", "rooms", "repeat", "doors", "width")
            rows = [r for r in rows if any(r.get(key, 0) != row[key] for key in same)] + [row]
            rows.sort(
                key=lambda r: (
                    r["repeat"],
                    r.get("doors", 0),
                    order.index(r["method"]),
                    r["width"],
                    r["rooms"],
                )
            )
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
            options.json.with_suffix(".svg").write_text(plot(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

"""One map of many rooms: 1, 4 and 8 rooms of `synthetic` side by side in one world.

    python benchmarks/rooms.py --work DIR [--rooms 1 4 8] [--images 60] [--queries 12] [--threads 1]

GLACE is the preset `scr_glace/rooms`; ACE is that without a global encoding, with one centre; landmarks the
recommended method. Every room has its own mapping images and queries; the training of a head grows neither
in steps nor in width with the rooms, as in the published comparison. Finished rows are kept in
`benchmarks/results/rooms.json`, and the table for docs/scr_glace.md is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "rooms.json"
METHODS = {
    "ACE": (
        "experiment=scr_glace/rooms", "estimator.global_descriptor.name=none",
        "estimator.global_descriptor.neighbours=0", "estimator.head.decoder_clusters=1",
    ),
    "GLACE": ("experiment=scr_glace/rooms",),
    "landmarks": ("experiment=landmarks/default",),
}  # fmt: skip
SPACING = 8.0


def world(rooms: int, images: int, queries: int, seed: int) -> list[str]:
    """Overrides that choose the rooms."""
    room = f"width: 320, height: 240, train_frames: {images}, test_frames: {queries}, depth: false"
    listed = ", ".join(
        f"{{name: synthetic, seed: {number}, {room}}}" for number in range(seed, seed + rooms)
    )
    return ["dataset=rooms", f"dataset.rooms=[{listed}]", f"dataset.spacing={SPACING}"]


def reloc(*arguments: str) -> None:
    """Run a verb; its messages go to the screen."""
    command = [sys.executable, "-m", "reloc_core.cli", *arguments]
    if subprocess.run(command).returncode:
        sys.exit("reloc " + " ".join(arguments) + " failed.")


def measure(method: str, options: argparse.Namespace, rooms: int) -> dict[str, Any]:
    """Map rooms by a method and localize the queries of all of them."""
    work = options.work / f"{method}-{rooms}"
    chosen = [
        *world(rooms, options.images, options.queries, options.seed),
        f"threads={options.threads}",
    ]
    more = options.option if method != "landmarks" else []
    begin, seconds = time.perf_counter(), None
    if not (work / "map" / "map.yaml").is_file():
        reloc("train", *METHODS[method], *more, *chosen, "calibration.enabled=false",
              f"map_dir={work / 'map'}", f"output_dir={work / 'fit'}")  # fmt: skip
        seconds = round(time.perf_counter() - begin, 1)
    reloc("evaluate", f"map_dir={work / 'map'}", *chosen, "dataset.split=test", "report=false",
          f"output_dir={work / 'test'}")  # fmt: skip
    metrics = json.loads((work / "test" / "result.json").read_text())["metrics"]
    return {
        "method": method, "rooms": rooms, "images": options.images, "queries": metrics["queries"],
        "localized": metrics["localized"], "recall": metrics["recall"],
        "median_m": metrics["median_translation_m"], "median_deg": metrics["median_rotation_deg"],
        "mapping_s": seconds, "options": options.option,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, by method and number of rooms."""
    lines = [
        "| rooms | method | median | within 5 cm, 5° | within 10 cm, 5° | localized | mapping |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: (r["rooms"], list(METHODS).index(r["method"]))):
        median = "lost"
        if row["median_m"] is not None:
            median = f"{100 * row['median_m']:.2f} cm / {row['median_deg']:.2f}°"
        # Of a map that was there already the time is not known.
        spent = "" if row["mapping_s"] is None else f"{row['mapping_s']:.0f} s"
        recall = [f"{100 * row['recall'][key]:.0f} %" for key in ("5cm_5deg", "10cm_5deg")]
        lines.append(
            f"| {row['rooms']} | {row['method']} | {median} | {recall[0]} | {recall[1]} | "
            f"{row['localized']} of {row['queries']} | {spent} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="maps and results; resumed")
    parser.add_argument("--rooms", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--images", type=int, default=60, help="mapping images of a room")
    parser.add_argument("--queries", type=int, default=12, help="of a room")
    parser.add_argument("--seed", type=int, default=0, help="of the first room")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--option", nargs="*", default=[], help="more of GLACE and ACE, KEY=VALUE")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json.is_file() else []
    for rooms in options.rooms:
        for method in options.methods:
            row = measure(method, options, rooms)
            rows = [r for r in rows if (r["method"], r["rooms"]) != (method, rooms)] + [row]
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

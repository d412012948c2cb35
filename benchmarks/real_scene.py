"""Map and localize the real scene with the commands of the README; print and save the table.

    python benchmarks/real_scene.py --data DIR [--experiment landmarks/default] [--protocol easy hard]

Protocols on `redkitchen_seq01`: "easy" maps all training frames, "hard" only frames 0-199. Both are
measured on the same test frames, which no training or tuning has seen.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

SCENE = "redkitchen_seq01"
PROTOCOLS = {"easy": [], "hard": ["dataset.frames=0:200"]}
# What a map of this scene must reach, from the project's goals for two CPU cores.
GOALS = {
    "landmarks/default": {"mapping s": 180, "map MB": 10, "peak MB": 4000, "median cm": 1.0,
                          "median deg": 0.35, "5cm/5deg %": 99, "query ms": 80},
    "gsplat_loc/compact": {"mapping s": 720, "peak MB": 6000, "median cm": 1.2, "median deg": 0.4,
                           "5cm/5deg %": 95, "coarse cm": 3.0, "coarse deg": 0.8, "psnr dB": 21},
    "gnn_relpose/compact": {"mapping s": 1800, "median cm": 20.0, "median deg": 4.0},
    "gnn_relpose/matched": {"mapping s": 1200, "median cm": 1.0, "median deg": 0.4},
    "kfnet_temporal/compact": {"mapping s": 1800, "median cm": 4.0},
    "kfnet_temporal/memory": {"mapping s": 600, "peak MB": 4000, "map MB": 20, "median cm": 0.8,
                               "5cm/5deg %": 99, "query ms": 125},
    "nefes_refine/compact": {"mapping s": 1800, "peak MB": 4000, "median cm": 10.0, "median deg": 4.0},
    "nefes_refine/align": {"mapping s": 1200, "peak MB": 4000, "median cm": 2.0, "median deg": 1.0,
                           "query ms": 5000},
}  # fmt: skip


def reloc(*arguments: str) -> float:
    """Run a verb; returns its wall time in seconds."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "reloc_core.cli", *arguments]
    print("$ reloc " + " ".join(arguments), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def measure(
    root: Path, experiment: str, protocol: str, work: Path, more: list[str]
) -> dict[str, float]:
    """One row of the table."""
    map_dir, fit, out = work / "map", work / "fit", work / "out"
    train_wall = reloc("train", f"experiment={experiment}", "dataset=ace", f"dataset.root={root}",
                       f"map_dir={map_dir}", f"output_dir={fit}", *PROTOCOLS[protocol], *more)  # fmt: skip
    reloc("evaluate", f"map_dir={map_dir}", "dataset=ace", f"dataset.root={root}",
          "dataset.split=test", f"output_dir={out}")  # fmt: skip
    trained = json.loads((fit / "result.json").read_text())
    result = json.loads((out / "result.json").read_text())
    metrics, seconds = result["metrics"], result["seconds"]
    field = field_quality(root, map_dir, work / "coarse") if "gsplat_loc" in experiment else {}
    return {
        "mapping s": trained["seconds"]["total"],
        "with start s": train_wall,
        "peak MB": trained["peak_memory_mb"],
        "map MB": trained["map"]["bytes"] / 1e6,
        "median cm": 100 * metrics["median_translation_m"],
        "median deg": metrics["median_rotation_deg"],
        "5cm/5deg %": 100 * metrics["recall"]["5cm_5deg"],
        "2cm/2deg %": 100 * metrics["recall"]["2cm_2deg"],
        "query ms": 1000 * seconds["per_query"]["median"],
        "query p95 ms": 1000 * seconds["per_query"]["p95"],
        "in region %": 100 * (metrics["calibration"]["within_95"] or 0.0),
        **field,
    }


def field_quality(root: Path, map_dir: Path, out: Path) -> dict[str, float]:
    """Of a field of Gaussians: the pose without its refiner, and how well it renders test images."""
    import numpy as np
    from gsplat_loc.estimator import rendered_psnr
    from gsplat_loc.field.fieldmap import load_field
    from gsplat_loc.mapping.views import Views

    from reloc_core.datasets.ace import AceDataset
    from reloc_core.datasets.config import AceConfig
    from reloc_core.maps import Map

    reloc("evaluate", f"map_dir={map_dir}", "dataset=ace", f"dataset.root={root}",
          "dataset.split=test", "refiners=[]", "report=false", f"output_dir={out}")  # fmt: skip
    coarse = json.loads((out / "result.json").read_text())["metrics"]
    scene_map = Map.open(map_dir)
    field = load_field(scene_map, "cpu")
    dataset = AceDataset(AceConfig(root=str(root), split="test"))
    resolution = int(scene_map.info.config["image"]["resolution"])
    views = Views(dataset, np.arange(0, len(dataset), 5), resolution, 0)
    return {
        "coarse cm": 100 * coarse["median_translation_m"],
        "coarse deg": coarse["median_rotation_deg"],
        "coarse in region %": 100 * (coarse["calibration"]["within_95"] or 0.0),
        "psnr dB": float(np.mean([rendered_psnr(field, views, i, 2) for i in range(len(views))])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the scenes")
    parser.add_argument("--experiment", nargs="+", default=["landmarks/default"])
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--json", type=Path, help="save the rows here")
    arguments = parser.parse_args()
    root = (arguments.data / SCENE).resolve()
    if not root.is_dir():
        sys.exit(f"{root} is missing: --data names the folder that holds {SCENE}.")
    rows = []
    for experiment in arguments.experiment:
        for protocol in arguments.protocol:
            for seed in arguments.seeds:
                with tempfile.TemporaryDirectory() as work:
                    row = measure(root, experiment, protocol, Path(work), [f"seed={seed}"])
                rows.append({"experiment": experiment, "protocol": protocol, "seed": seed, **row})
    table = Table(title=f"{SCENE} test on {platform.machine()}")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        values = (row.get(column, "") for column in columns)
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values))
    for experiment in arguments.experiment:
        goals = GOALS.get(experiment, {})
        cells = (str(goals.get(column, "")) for column in columns[3:])
        table.add_row(f"goal of {experiment}", "", "", *cells)
    # A file has no width that the columns would have to fit into.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

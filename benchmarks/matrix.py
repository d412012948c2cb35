"""Every estimator x solver x refiner that fits, on several scenes, under one protocol.

    python benchmarks/matrix.py --data DIR --work WORK [--scenes room redkitchen_seq01 fox]
                                [--size compact|tiny] [--train 100] [--test 40] [--out PREFIX]

Each estimator with a preset `NAME/compact` (or `/default`, `/matched`) is mapped once per scene;
then its map is measured with every solver that takes its evidence, alone and followed by every refiner that
has a map of the scene. All combinations of a scene see the same mapping images and the same queries. What
is finished in WORK is not done again, so the same command goes on after an interruption; what fails is a
row that says so.

Writes PREFIX.json, PREFIX.md and PREFIX.png: accuracy with 95 % bootstrap intervals (over runs of ten
consecutive images in videos), time per stage, memory, mapping time, map size; published rows beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reloc_core.composition import compose
from reloc_core.config import experiments
from reloc_core.evaluation.compare import Bootstrap, compare_scene
from reloc_core.evaluation.comparison_page import published_rows
from reloc_core.evaluation.estimates import read_estimates, read_truth
from reloc_core.evaluation.published import read_published
from reloc_core.io.files import write_atomically
from reloc_core.registry import Component, default_registry


@dataclass(frozen=True)
class Scene:
    """A scene and how its images are divided.

    Attributes:
        dataset: kind of dataset.
        folder: below --data; "" where none is needed.
        depth: whether it has depth.
        video: whether frames follow each other; images of the bootstrap are then drawn in runs.
        train: further overrides of the mapping images; {train} and {test} are numbers of frames.
        test: of the queries.
        published: table and scene whose rows are shown beside.
    """

    dataset: str
    folder: str = ""
    depth: bool = True
    video: bool = True
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ("dataset.split=test",)
    published: tuple[str, str] = ("", "")


_ROOM = ("dataset.train_frames={train}", "dataset.test_frames={test}", "dataset.width=320",
         "dataset.height=240")  # fmt: skip
# Thinning keeps the order; the filter along a video needs consecutive queries, so these are a block.
SCENES = {
    "room": Scene(
        "synthetic",
        train=_ROOM, test=("dataset.split=test", *_ROOM),
    ),
    "redkitchen_seq01": Scene(
        "ace", "redkitchen_seq01",
        train=("dataset.max_frames={train}",),
        test=("dataset.split=test", "dataset.frames=0:{test}"),
        published=("7scenes_sfm", "redkitchen"),
    ),
    "fox": Scene("transforms", "fox", depth=False, video=False),
}  # fmt: skip

SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "compact": {},
    "tiny": {
        "landmarks": ("estimator.keypoints.kind=xfeat", "estimator.keypoints.resolution=240"),
        "sfm_matching": (),
        "gsplat_loc": ("estimator.image.resolution=120", "estimator.train.iterations=120",
                       "estimator.init.count=8000", "estimator.gaussians.max_gaussians=10000",
                       "estimator.densify.start=40", "estimator.densify.stop=80",
                       "estimator.features.images=12", "estimator.features.resolution=240"),
        "gnn_regressor": ("estimator.resolution=120", "estimator.retrieval.clusters=4",
                        "estimator.graph.neighbours=4", "estimator.network.channels=32",
                        "estimator.augment.views=1", "estimator.train.iterations=60",
                        "estimator.train.batch_size=4"),
        "gnn_matched": ("estimator.image.resolution=120", "estimator.image.cells=120",
                        "estimator.retrieval.clusters=4", "estimator.graph.neighbours=4",
                        "estimator.network.channels=32", "estimator.train.iterations=30",
                        "estimator.train.batch_size=4", "estimator.train.candidates=6"),
        "kfnet_temporal": ("estimator.process.iterations=10", "estimator.process.resolution=240",
                           "estimator.joint.iterations=4", "estimator.joint.window=4",
                           "estimator.joint.frames=24", "estimator.joint.stretches=2",
                           "++estimator.measurement.options.resolution=240",
                           "++estimator.measurement.options.iterations=200"),
        "nefes_regressor": ("estimator.view.resolution=160", "estimator.field.levels=4",
                            "estimator.field.log2_entries=13", "estimator.field.finest_resolution=64",
                            "estimator.field.occupancy=16", "estimator.training.colour_steps=60",
                            "estimator.training.feature_steps=60", "estimator.training.fusion_steps=10",
                            "estimator.training.rays=512", "estimator.training.patch_size=8",
                            "estimator.regressor.epochs=8"),
        "scr_glace": ("estimator.image.resolution=240", "estimator.head.channels=192",
                      "estimator.head.decoder_clusters=8", "estimator.buffer.size=60000",
                      "estimator.buffer.samples_per_image=256", "estimator.buffer.max_visits=4",
                      "estimator.train.iterations=400", "estimator.train.batch_size=1024"),
    },
}  # fmt: skip
"""Options of each estimator by size; "compact" is the preset itself."""


@dataclass
class Matrix:
    """Runs and their folder."""

    data: Path | None
    work: Path
    size: str
    train: int
    test: int
    threads: int
    estimators: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """What a finished run depends on."""
        return {"size": self.size, "train": self.train, "test": self.test, "threads": self.threads}

    def open(self) -> None:
        """Make the folder, or go on in one that was made with the same settings."""
        file = self.work / "settings.json"
        if file.is_file():
            found = json.loads(file.read_text())
            if found != self.settings():
                sys.exit(
                    f"{self.work} holds a matrix with other settings: {found}. Use another --work."
                )
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(self.settings()))

    def dataset(self, scene: Scene, overrides: Sequence[str]) -> list[str]:
        """Overrides that choose a scene's images."""
        root = (
            [f"dataset.root={(self.data / scene.folder).resolve()}"]
            if scene.folder and self.data
            else []
        )
        numbers = {"train": self.train, "test": self.test}
        return [f"dataset={scene.dataset}", *root, *(o.format(**numbers) for o in overrides)]

    def run_scene(self, name: str) -> None:
        """Map and measure everything on one scene."""
        scene, folder = SCENES[name], self.work / name
        registry = default_registry()
        maps: dict[str, Path] = {}
        for experiment, component in methods(self.estimators):
            why = unfit(component, scene)
            if why:
                self.rows.append({"scene": name, "estimator": component.name, "status": why})
                continue
            map_dir = folder / component.name / "map"
            if self.fit(scene, experiment, component, folder / component.name):
                maps[component.name] = map_dir
            else:
                self.rows.append(
                    {"scene": name, "estimator": component.name, "status": "mapping failed"}
                )
        refiners: list[tuple[str, Path | None]] = [("", None)]
        for refiner in registry.components("refiner"):
            refiners += [(refiner.name, maps[e]) for e in refiner.reads_maps_of if e in maps]
        for estimator in maps:
            component = registry.get("estimator", estimator)
            for solver in registry.components("solver"):
                if component.produces not in solver.accepts:
                    continue
                for refiner_name, refiner_map in refiners:
                    self.measure(name, component, solver.name, refiner_name, refiner_map)
        self.intervals(name)

    def fit(self, scene: Scene, experiment: str, component: Component, folder: Path) -> bool:
        """Map a scene; True where there is a map afterwards."""
        map_dir, record = folder / "map", folder / "fit.json"
        if (map_dir / "map.yaml").is_file() and record.is_file():
            return True
        options = SIZES[self.size].get(component.name, ())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        done = reloc("train", f"experiment={experiment}", *self.dataset(scene, scene.train), *options,
                     f"map_dir={map_dir}", f"output_dir={folder / 'fit'}",
                     f"threads={self.threads}")  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not done:
            return False
        result = json.loads((folder / "fit" / "result.json").read_text())
        content = {
            "mapping_s": round(time.perf_counter() - begin, 1),
            "mapping_cpu_s": round(
                after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
            ),
            "peak_mb": result["peak_memory_mb"],
            "map_mb": round(result["map"]["bytes"] / 1e6, 2),
        }
        write_atomically(record, json.dumps(content))
        return True

    def measure(
        self, name: str, component: Component, solver: str, refiner: str, refiner_map: Path | None
    ) -> None:
        """Localize a scene's queries with one combination; adds a row."""
        folder = self.work / name / component.name
        owner = refiner_map.parent.name if refiner_map else ""
        out = folder / "-".join(
            filter(None, (solver, refiner, owner if owner != component.name else ""))
        )
        finished = out / "result.json"
        if not (finished.is_file() and json.loads(finished.read_text())["status"] == "ok"):
            shutil.rmtree(out, ignore_errors=True)
            chosen = f"[{{name: {refiner}, map_dir: '{refiner_map}'}}]" if refiner else "[]"
            scene = SCENES[name]
            reloc("evaluate", f"map_dir={folder / 'map'}", *self.dataset(scene, scene.test),
                  f"solver={solver}", f"refiners={chosen}", "report=false", f"output_dir={out}",
                  f"threads={self.threads}")  # fmt: skip
        row = {"scene": name, "estimator": component.name, "solver": solver, "refiner": refiner}
        row |= {"own_map": owner in ("", component.name)}
        result = json.loads(finished.read_text()) if finished.is_file() else {"status": "failed"}
        if "metrics" not in result:
            self.rows.append({**row, "status": result["status"]})
            return
        seconds, metrics = result["seconds"], result["metrics"]
        stages = {k: 1000 * v["median"] for k, v in seconds["stages"].items()}
        self.rows.append({
            **row, "status": "ok", "path": str(out), "unit": result["dataset"]["unit"],
            "queries": metrics["queries"], "localized": metrics["localized"],
            **{k: metrics["calibration"][k] for k in ("mean_nees", "within_95")},
            "query_ms": round(1000 * seconds["per_query"]["median"], 1),
            "query_p95_ms": round(1000 * seconds["per_query"]["p95"], 1),
            "estimate_ms": round(stages.get("estimate", 0.0), 1),
            "solve_ms": round(stages.get("solve", 0.0), 1),
            "refine_ms": round(sum(v for k, v in stages.items() if k.startswith("refine")), 1),
            "query_peak_mb": result["peak_memory_mb"],
            **json.loads((folder / "fit.json").read_text()),
        })  # fmt: skip

    def intervals(self, name: str) -> None:
        """Accuracy of all combinations of a scene against one ground truth."""
        rows = [r for r in self.rows if r["scene"] == name and r["status"] == "ok"]
        if not rows:
            return
        block = 10 if SCENES[name].video else 1
        estimates = [read_estimates(Path(r["path"]), label_of(r)) for r in rows]
        found = compare_scene(read_truth(Path(rows[0]["path"])), estimates, Bootstrap(1000, block))
        for row, judged in zip(rows, found.rows, strict=True):
            del row["path"]
            row["values"] = {k: rounded(v) for k, v in judged.values.items()}
            row["intervals"] = {k: [rounded(x) for x in v] for k, v in judged.intervals.items()}


def methods(chosen: Sequence[str]) -> Iterator[tuple[str, Component]]:
    """Presets for small machines, and their estimators."""
    for experiment in experiments():
        if not experiment.endswith(("/compact", "/default", "/matched")):
            continue
        cfg = compose("train", [f"experiment={experiment}", "dataset=synthetic", "map_dir=x"])
        if not cfg.get("estimator"):  # a refiner's
            continue
        component = default_registry().get("estimator", cfg.estimator["_target_"])
        if not chosen or component.name in chosen:
            yield experiment, component


def unfit(component: Component, scene: Scene) -> str:
    """Why an estimator cannot map a scene, "" where it can."""
    if "depth" in component.requires and not scene.depth:
        return "needs depth"
    return "needs video" if "sequence" in component.requires and not scene.video else ""


def reloc(*arguments: str) -> bool:
    """Run a verb; False and its message where it fails."""
    print("$ reloc " + " ".join(arguments), flush=True)
    command = [sys.executable, "-m", "reloc_core.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip()[-500:], flush=True)
    return done.returncode == 0


def label_of(row: Mapping[str, Any]) -> str:
    """A combination in words."""
    refiner = row["refiner"] and row["refiner"] + ("" if row["own_map"] else " (its own map)")
    return " + ".join(filter(None, (row["estimator"], row["solver"], refiner)))


def rounded(value: float) -> float | None:
    """Six digits; None for infinity, which JSON does not have."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None


# ------------------------------------------------------------------------------------- table and picture

_HEADINGS = ("estimator", "solver", "refiner", "median position", "median rotation", "5 cm, 5°",
             "localized", "in 95 % region", "estimate ms", "solve ms", "refine ms", "query p95 ms",
             "mapping s (CPU s)", "map MB", "peak MB, mapping", "peak MB, queries")  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Markdown: a section per scene, best first, published rows below."""
    lines = [f"Size `{settings['size']}`, {settings['threads']} thread(s). Brackets: 95 % bootstrap "
             "intervals. Times contend with whatever else the machine did.", ""]  # fmt: skip
    for name in dict.fromkeys(r["scene"] for r in rows):
        mine = [r for r in rows if r["scene"] == name and r["status"] == "ok"]
        other = [r for r in rows if r["scene"] == name and r["status"] != "ok"]
        unit = mine[0]["unit"] if mine else "metre"
        lines += [f"### {name}", ""]
        if mine:
            lines += [
                f"{mine[0]['queries']} queries" + (", scene units" if unit != "metre" else ""),
                "",
            ]
        lines += ["| " + " | ".join(_HEADINGS) + " |", "|" + " --- |" * len(_HEADINGS)]
        for row in sorted(mine, key=lambda r: r["values"]["median_translation_m"] or 1e9):
            lines.append("| " + " | ".join(_cells(row, unit)) + " |")
        lines += [f"| {r['estimator']} | {r.get('solver', '')} | {r.get('refiner', '')} | {r['status']} |"
                  + " |" * (len(_HEADINGS) - 4) for r in other]  # fmt: skip
        published, scene = SCENES[name].published
        if published:
            lines += _published(published, scene)
        lines.append("")
    return "\n".join(lines) + "\n"


def _published(name: str, scene: str) -> list[str]:
    found, empty = [], " |" * (len(_HEADINGS) - 6)
    for row, _ in published_rows(read_published(name), scene):
        v = row.values
        median = f"{100 * v['median_translation_m']:.2f} cm" if "median_translation_m" in v else ""
        angle = f"{v['median_rotation_deg']:.2f}°" if "median_rotation_deg" in v else ""
        recall = f"{100 * v['recall_5cm_5deg']:.1f} %" if "recall_5cm_5deg" in v else ""
        found.append(f"| *{row.label}* | *published* | | {median} | {angle} | {recall} |" + empty)
    return [*found, "", f"Published rows are those of `{name}`, {scene}: the whole test split, mapped from "
            "all training images. They are orientation, not a comparison."]  # fmt: skip


def _cells(row: Mapping[str, Any], unit: str) -> list[str]:
    values, intervals = row["values"], row["intervals"]

    def cell(key: str, factor: float, digits: int, suffix: str) -> str:
        if values.get(key) is None:
            return "not localized"
        low, high = intervals.get(key, (None, None))
        text = f"{factor * values[key]:.{digits}f}{suffix}"
        if low is None:
            return text
        end = "inf" if high is None else f"{factor * high:.{digits}f}"
        return f"{text} [{factor * low:.{digits}f}, {end}]"

    metric = unit == "metre"
    refiner = row["refiner"] + ("" if row["own_map"] or not row["refiner"] else " *")
    return [
        row["estimator"], row["solver"], refiner,
        cell("median_translation_m", 100 if metric else 1, 2 if metric else 4, " cm" if metric else ""),
        cell("median_rotation_deg", 1, 2, "°"), cell("recall_5cm_5deg", 100, 0, " %"),
        f"{row['localized']}/{row['queries']}",
        "" if row["within_95"] is None else f"{100 * row['within_95']:.0f} %",
        f"{row['estimate_ms']:.0f}", f"{row['solve_ms']:.1f}",
        f"{row['refine_ms']:.0f}" if row["refiner"] else "", f"{row['query_p95_ms']:.0f}",
        f"{row['mapping_s']:.0f} ({row['mapping_cpu_s']:.0f})", f"{row['map_mb']:.1f}",
        f"{row['peak_mb']:.0f}", f"{row['query_peak_mb']:.0f}",
    ]  # fmt: skip


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against latency, one panel per scene; a row whose median failed has no mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [r for r in rows if r["status"] == "ok" and r["values"].get("median_translation_m")]
    scenes = list(dict.fromkeys(r["scene"] for r in good))
    if not scenes:
        return
    estimators = sorted({r["estimator"] for r in rows})
    refiners = ["", *sorted({r["refiner"] for r in good} - {""})]
    colours = dict(zip(estimators, pyplot.get_cmap("tab10").colors, strict=False))
    marks = dict(zip(refiners, "os^Dv", strict=False))
    figure, axes = pyplot.subplots(1, len(scenes), figsize=(5.2 * len(scenes), 4.4), squeeze=False)
    for axis, scene in zip(axes[0], scenes, strict=True):
        mine = [r for r in good if r["scene"] == scene]
        metric = mine[0]["unit"] == "metre"
        for row in mine:
            filled = colours[row["estimator"]] if row["own_map"] else "none"
            axis.scatter(row["query_ms"], row["values"]["median_translation_m"] * (100 if metric else 1),
                         marker=marks[row["refiner"]], facecolor=filled, s=46,
                         edgecolor=colours[row["estimator"]], alpha=0.85)  # fmt: skip
        axis.set(xscale="log", yscale="log", title=scene, xlabel="median time per query (ms)",
                 ylabel=f"median position error ({'cm' if metric else 'scene units'})")  # fmt: skip
        axis.grid(True, which="both", alpha=0.25)
    handles = [
        pyplot.Line2D([], [], marker="o", ls="", color=colours[e], label=e) for e in estimators
    ]
    handles += [pyplot.Line2D([], [], marker=marks[r], ls="", color="grey", label=r or "no refiner")
                for r in refiners]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.get_layout_engine() or figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds the scenes")
    parser.add_argument("--work", type=Path, required=True, help="maps and results; resumed")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=["room"])
    parser.add_argument("--estimators", nargs="+", default=[], help="only these")
    parser.add_argument("--size", choices=SIZES, default="compact")
    parser.add_argument("--train", type=int, default=700, help="mapping images, at most")
    parser.add_argument("--test", type=int, default=200, help="queries, at most")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="prefix of the table, picture and JSON")
    options = parser.parse_args()
    for name in options.scenes:
        folder = SCENES[name].folder
        if folder and not (options.data and (options.data / folder).is_dir()):
            sys.exit(f"--data must name the folder that holds {folder}.")
    matrix = Matrix(options.data, options.work, options.size, options.train, options.test,
                    options.threads, options.estimators)  # fmt: skip
    matrix.open()
    prefix = options.out or options.work / "matrix"
    for name in options.scenes:
        matrix.run_scene(name)
        content = {"settings": matrix.settings(), "rows": matrix.rows}
        write_atomically(prefix.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        write_atomically(prefix.with_suffix(".md"), table(matrix.rows, matrix.settings()))
        picture(matrix.rows, prefix.with_suffix(".png"))
    print(table(matrix.rows, matrix.settings()))


if __name__ == "__main__":
    main()

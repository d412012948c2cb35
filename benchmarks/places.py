"""Every place at hand: presets beside classical matching, run by one command.

    python benchmarks/places.py --data DIR [--places lund brighton ...] [--experiment landmarks/default ...]
    python benchmarks/places.py --own DIR ... [--holdout 8]

`--own` takes COLMAP models of your own (`reloc data reconstruct` makes them). Other places are split as
their data packs say; the classical rows map from the same images: key points (SIFT with Lowe's ratio,
XFeat), all pairs or the 20 most similar, points triangulated with the poses fixed, PoseLib's PnP on the
matches with the ten images that match best. Errors are in percent of the median distance of the
scene, one for all rows of a place, and in degrees. Results are saved as JSON; `--write` puts their table
into docs/places.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloc_core import geometry
from reloc_core.cli.main import main as reloc
from reloc_core.config import build
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.mapping import (
    Detector,
    Reconstruction,
    ReconstructionOptions,
    evenly,
    mutual_matches,
    reconstruct,
)
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.testing import start_run

RESULTS = Path(__file__).parent / "results" / "places.json"
PAGE = Path(__file__).parents[1] / "docs" / "places.md"
LARGE = 100  # mapping images from which the classical rows map from a subset


@dataclass(frozen=True)
class Place:
    """Where images lie and which of them are mapped: overrides of the mapping and the query split."""

    dataset: str
    folder: str = ""
    mapping: tuple[str, ...] = ()
    queries: tuple[str, ...] = ("dataset.split=test",)


ROOM = "redkitchen_seq01"
PLACES = {
    "redkitchen": Place("ace", ROOM),
    "redkitchen, 0-199 mapped": Place("ace", ROOM, ("dataset.frames=0:200",)),
    "the same, frames 300-999": Place(
        "ace", ROOM, ("dataset.frames=0:200",),
        ("dataset.split=train", "dataset.frames=200:700", "dataset.frame_step=10"),
    ),
    "fox": Place("transforms", "fox"),
    "lund": Place("colmap", "lund"),
    "brighton": Place("colmap", "brighton"),
    **{
        f"synthetic, seed {seed}, 12 images": Place(
            "synthetic", "", (f"dataset.seed={seed}", "dataset.train_frames=12"),
            ("dataset.split=test", f"dataset.seed={seed}", "dataset.train_frames=12",
             "dataset.test_frames=20"),
        )
        for seed in (1, 2, 3)
    },
}  # fmt: skip


def overrides(place: Place, data: Path, which: str) -> list[str]:
    """Arguments of a verb for the mapping images or the queries of a place."""
    chosen = place.mapping if which == "mapping" else place.queries
    root = [f"dataset.root={data / place.folder}"] if place.folder else []
    return [f"dataset={place.dataset}", *root, *chosen]


def opened(place: Place, data: Path, which: str, most: int | None) -> Dataset:
    """The images as a dataset."""
    options: dict[str, object] = {"_target_": place.dataset}
    for text in overrides(place, data, which)[1:]:
        key, value = text.removeprefix("dataset.").split("=", 1)
        options[key] = int(value) if value.isdigit() else value
    if most is not None and place.dataset != "synthetic" and which == "queries":
        options["max_frames"] = most
    return build(options, "dataset")


def depth_of(points: np.ndarray, images: Dataset) -> float:
    """Median distance of the points (N, 3) that the images have in view, in the unit of the poses."""
    found = []
    for frame in images.frames:
        local = geometry.transform(geometry.inverse(frame.world_from_cam), points)
        local = local[local[:, 2] > 0]
        pixels, _ = geometry.project(frame.camera, local)
        size = [frame.camera.width, frame.camera.height]
        seen = ((pixels >= 0) & (pixels < size)).all(1)
        found.append(np.linalg.norm(local[seen], axis=1))
    return float(np.median(np.concatenate(found)))


def errors(estimates: list[np.ndarray | None], queries: Dataset, depth: float) -> dict:
    """Median errors over the depth, and recall; a query without a pose counts as infinitely wrong."""
    lengths, degrees = [], []
    for estimate, frame in zip(estimates, queries.frames, strict=True):
        truth = frame.world_from_cam
        if estimate is None:
            lengths.append(np.inf)
            degrees.append(180.0)
            continue
        lengths.append(float(np.linalg.norm(estimate[:3, 3] - truth[:3, 3])))
        degrees.append(float(geometry.rotation_angle_deg(estimate[:3, :3], truth[:3, :3])))
    percent = 100 * np.array(lengths) / depth
    good = (percent < 1) & (np.array(degrees) < 1)
    near = (np.array(lengths) < 0.05) & (np.array(degrees) < 5)
    metric = {"within 5 cm, 5 deg": int(near.sum())} if queries.unit == "metre" else {}
    return {
        "percent": float(np.median(percent)),
        "degrees": float(np.median(degrees)),
        "localized": int(np.isfinite(percent).sum()),
        "within 1 %, 1 deg": int(good.sum()),
        **metric,
        "queries": len(percent),
    }


def surveyed(kind: str, mapping: Dataset) -> tuple[Detector, int, Reconstruction]:
    """The detector of a kind, its key points per image, and the points of a place."""
    from reloc_core.features.keypoints import KeypointDetector
    from reloc_core.features.sift import SiftDetector

    short = min(min(f.camera.width, f.camera.height) for f in mapping.frames)
    sift = kind == "SIFT"
    detector = SiftDetector(min(short, 1080)) if sift else KeypointDetector(min(short, 768))
    most = 4096 if len(mapping) < LARGE else 2048
    options = ReconstructionOptions(
        keypoints=most, near=10, spread=10, ratio=0.85 if sift else 1.0,
        min_similarity=-1 if sift else 0.8, min_parallax_deg=1.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        frames = evenly(len(mapping), LARGE)
        run = start_run(Path(folder) / "map", "landmarks")
        return detector, most, reconstruct(mapping, frames, detector, run, options)


Estimates = tuple[list[np.ndarray | None], dict[str, float]]
"""Poses of the queries, and what else stands in the row."""


def classical(kind: str, mapping: Dataset, queries: Dataset) -> tuple[Estimates, np.ndarray]:
    """Match, triangulate, PnP: what any library does; and the points."""
    import poselib

    sift = kind == "SIFT"
    begin = time.perf_counter()
    detector, most, made = surveyed(kind, mapping)
    tracks, features = made.tracks, made.features
    seconds = time.perf_counter() - begin
    images = features.images[tracks.rows]
    estimates, spent = [], []
    for query in queries:
        begin = time.perf_counter()
        found = detector.detect([query.image], most)[0]
        per_image = []
        for image in range(len(features.frames)):
            seen = np.flatnonzero(images == image)
            ours, theirs, _ = mutual_matches(
                found.descriptors.numpy(), features.descriptors[tracks.rows[seen]],
                -1 if sift else 0.8, 0.85 if sift else 1.0,
            )  # fmt: skip
            per_image.append((found.pixels[ours], tracks.points[tracks.labels[seen[theirs]]]))
        best = sorted(per_image, key=lambda match: -len(match[0]))[:10]
        p2, p3 = (np.concatenate([m[k] for m in best]) for k in (0, 1))
        camera = query.camera
        model = {
            "model": camera.model, "width": camera.width, "height": camera.height,
            "params": [*camera.params],
        }  # fmt: skip
        pose = None
        if len(p2) >= 4:
            found_pose, info = poselib.estimate_absolute_pose(
                p2, p3, model, {"max_reproj_error": 6.0, "min_iterations": 1000}, {}
            )
            if info["num_inliers"] >= 12:
                cam_from_world = np.eye(4)
                cam_from_world[:3] = found_pose.Rt
                pose = geometry.inverse(cam_from_world)
        estimates.append(pose)
        spent.append(time.perf_counter() - begin)
    row = {"mapping s": seconds, "query ms": 1000 * float(np.median(spent))}
    return (estimates, row), tracks.points


def preset(experiment: str, place: Place, data: Path, queries: Dataset, depth: float) -> dict:
    """One of our presets by the verbs that a user runs."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        begin = time.perf_counter()
        code = reloc([
            "train", f"experiment={experiment}", *overrides(place, data, "mapping"),
            f"map_dir={folder / 'map'}", f"output_dir={folder / 'fit'}", "threads=1",
        ])  # fmt: skip
        if code:
            return {
                "queries": len(queries),
                "localized": 0,
                "within 1 %, 1 deg": 0,
                "note": "no map",
            }
        seconds = time.perf_counter() - begin
        estimates, spent = [], []
        pipeline = Pipeline.from_map(Map.open(folder / "map"), runtime=Runtime(threads=1))
        for query in queries:
            begin = time.perf_counter()
            result = pipeline.localize(query.without_ground_truth())
            spent.append(time.perf_counter() - begin)
            estimates.append(result.world_from_cam if result.localized else None)
        size = sum(f.stat().st_size for f in (folder / "map").iterdir() if f.is_file())
    row = errors(estimates, queries, depth)
    row |= {"mapping s": seconds, "query ms": 1000 * float(np.median(spent)), "map MB": size / 1e6}
    return row


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| place | method | error, % of distance | degrees | localized | within 1 %, 1 deg | within 5 cm, "
        "5 deg | mapping s | query ms | map MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        cells = [
            r["place"], r["method"], f"{r.get('percent', np.inf):.3f}", f"{r.get('degrees', 180):.3f}",
            f"{r['localized']} of {r['queries']}", str(r["within 1 %, 1 deg"]),
            str(r.get("within 5 cm, 5 deg", "")),
            f"{r.get('mapping s', 0):.0f}", f"{r.get('query ms', 0):.0f}",
            f"{r['map MB']:.1f}" if "map MB" in r else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """A page with its table of places replaced."""
    lines = page.split("\n")
    begin = next(i for i, line in enumerate(lines) if line.startswith("| place |"))
    end = next(
        i for i in range(begin, len(lines) + 1) if not "".join(lines[i : i + 1]).startswith("|")
    )
    return "\n".join([*lines[:begin], text, *lines[end:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(), help="folder that holds the scenes")
    parser.add_argument("--places", nargs="+", choices=PLACES)
    parser.add_argument(
        "--own", nargs="+", type=Path, default=[], help="COLMAP models to run instead"
    )
    parser.add_argument(
        "--holdout", type=int, default=8, help="every n-th image of --own is a query"
    )
    parser.add_argument("--experiment", nargs="+", default=["landmarks/default"])
    parser.add_argument(
        "--classical", nargs="*", choices=("SIFT", "XFeat"), default=["SIFT", "XFeat"]
    )
    parser.add_argument("--queries", type=int, help="at most so many per place, evenly spread")
    parser.add_argument("--write", action="store_true", help="put the table into docs/places.md")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text()) if arguments.json.is_file() else []
    chosen = arguments.places or ([] if arguments.own else PLACES)
    places = [(name, PLACES[name], arguments.data.resolve()) for name in chosen]
    split = f"dataset.holdout={arguments.holdout}"
    for own in map(Path.resolve, arguments.own):
        place = Place("colmap", own.name, (split,), ("dataset.split=test", split))
        places.append((own.name, place, own.parent))
    for name, place, data in places:
        if place.folder and not (data / place.folder).is_dir():
            sys.exit(
                f"{data / place.folder} is missing: --data names the folder that holds the scenes."
            )
        mapping = opened(place, data, "mapping", None)
        queries = opened(place, data, "queries", arguments.queries)
        made: list[dict] = []
        found = {kind: classical(kind, mapping, queries) for kind in arguments.classical}
        # One scale for all rows, also where there is no classical one.
        clouds = [points for _, points in found.values()]
        points = clouds[0] if clouds else surveyed("XFeat", mapping)[2].tracks.points
        depth = depth_of(points, queries)
        for kind, ((estimates, more), _) in found.items():
            row = errors(estimates, queries, depth) | more
            made.append({"place": name, "method": f"{kind}, SfM, PnP", **row})
        for experiment in arguments.experiment:
            row = preset(experiment, place, data, queries, depth)
            made.append({"place": name, "method": experiment, **row})
        fresh = {(r["place"], r["method"]) for r in made}
        rows = [r for r in rows if (r["place"], r["method"]) not in fresh] + made
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(table(made), flush=True)
    if arguments.write:
        page = PAGE.read_text()
        PAGE.write_text(with_table(page, table(rows)))


if __name__ == "__main__":
    main()

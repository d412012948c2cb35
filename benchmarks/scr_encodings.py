"""What scr_glace's options beyond the published method are worth: global encodings, depth-adjusted loss.

    python benchmarks/scr_encodings.py --data DIR --work DIR [--splits far blocks] [--threads 2]

All images are training images of redkitchen. `far` maps frames 0-199 and asks every fifth of the frames
300-499 and 600-699; `blocks` maps every other block of twenty and asks every fifth of the rest. The preset
is `scr_glace/compact` with 600 of its 1,000 steps and 0.6 of its samples; of it are changed the encoding
(VLAD; an embedding of the covisibility graph of the mapping images, as in R-SCoRe; none, which is ACE) and
`loss.depth_adjust`. An encoding of the graph knows mapping images only: a query gets those of the images
most similar to it by VLAD, one after the other, and keeps the pose with the most inliers. The same is tried
with VLAD itself. Rows are kept in `benchmarks/results/scr_encodings.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from scr_glace.config import GlobalConfig
from scr_glace.networks.global_descriptor import FileDescriptor
from scr_glace.views import make_view

from reloc_core import geometry
from reloc_core.cli.main import main as reloc
from reloc_core.config import build
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.types import Localization

RESULTS = Path(__file__).parent / "results" / "scr_encodings.json"
BLOCK, EVERY = 20, 5
ENCODINGS = ("VLAD", "graph", "none")
HYPOTHESES = 3
DIMENSION = 64
SHORT = (
    "estimator.train.iterations=600", "estimator.buffer.size=480000", "calibration.enabled=false",
)  # fmt: skip
# Depths that overlaps are computed with, in metres, and the least overlap of an edge.
DEPTHS, EDGE = (0.5, 3.5), 0.2
WALK = 10  # steps of the random walks whose co-occurrences are embedded


def chosen(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training images to map and to ask."""
    if split == "far":  # images 200-499 are frames 300-499 and 600-699
        return np.arange(200), np.arange(200, 500, EVERY)
    block = np.arange(count) // BLOCK % 2
    return np.flatnonzero(block == 0), np.flatnonzero(block == 1)[::EVERY]


def linked(source: Path, folder: Path, rows: np.ndarray) -> None:
    """An ACE folder of some images of another."""
    for kind in ("rgb", "poses", "calibration"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        files = sorted((source / kind).iterdir())
        for file in (files[i] for i in rows):
            link = folder / kind / file.name
            if not link.is_symlink():
                link.symlink_to(file)


def overlaps(images: Dataset, rng: np.random.Generator) -> np.ndarray:
    """Overlap (N, N) of images from their poses alone, as R-SCoRe has it.

    Random pixels with random depths count, where another image has them in its frustum, by the cosine of
    the angle between the two lines of sight; both directions by their harmonic mean.
    """
    poses = np.stack([f.world_from_cam for f in images.frames])
    seen = np.zeros((len(poses), len(poses)))
    for i, (frame, pose) in enumerate(zip(images.frames, poses, strict=True)):
        camera = frame.camera
        pixels = rng.uniform(size=(1024, 2)) * [camera.width, camera.height]
        rays = geometry.unproject(camera, pixels)
        world = geometry.transform(pose, rays * rng.uniform(*DEPTHS, size=(1024, 1)))
        for j, other in enumerate(poses):
            local = geometry.transform(geometry.inverse(other), world)
            there, _ = geometry.project(images.frames[j].camera, local)
            inside = (local[:, 2] > 0.1) & (there >= 0).all(1)
            inside &= (there < [camera.width, camera.height]).all(1)
            lines = [(world - p[:3, 3]) for p in (pose, other)]
            lines = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in lines]
            seen[i, j] = np.mean(inside * (1 + (lines[0] * lines[1]).sum(1)) / 2)
    both = seen + seen.T
    return np.where(both > 0, 2 * seen * seen.T / np.where(both > 0, both, 1), 0)


def embedding(weights: np.ndarray, dimension: int) -> np.ndarray:
    """Unit vectors (N, D) of the nodes of a graph: what random walks on it learn, in closed form.

    A skip-gram of random walks factorizes the logarithm of how much likelier two nodes are within a walk
    than by chance (NetMF, Qiu et al. 2018); here it is factorized directly.
    """
    weights = np.where(weights >= EDGE, weights, 0)
    np.fill_diagonal(weights, 0)
    lonely = ~weights.any(1)
    weights[lonely, lonely] = 1.0
    parts, _ = connected_components(weights)
    print(f"graph: {len(weights)} images, {np.count_nonzero(weights) // 2} edges, {parts} parts")
    degree = weights.sum(1)
    step = weights / degree[:, None]
    power, walks = np.eye(len(weights)), np.zeros_like(weights)
    for _ in range(WALK):
        power = power @ step
        walks += power / WALK
    likelier = np.log(np.maximum(degree.sum() * walks / degree, 1.0))
    left, values, _ = np.linalg.svd(likelier)
    vectors = (left * np.sqrt(values))[:, : min(dimension, len(weights) - 1)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def saved(path: Path, images: Dataset, vectors: np.ndarray) -> Path:
    """A file of encodings for `global_descriptor.name=file`."""
    names = [Path(frame.name).name for frame in images.frames]
    np.savez(path, names=names, features=vectors)
    return path


def similar(vlad: Path, images: Dataset) -> np.ndarray:
    """Numbers (Q, HYPOTHESES) of the mapping images most similar to the queries, by a map's VLAD."""
    estimator = Pipeline.from_map(Map.open(vlad)).estimator
    rows = []
    for query in images:
        view = make_view(estimator.encoder, query.image, query.camera, estimator.scene.image)
        with torch.inference_mode():
            features = estimator.encoder.describe(view.grey)
            vector = estimator.descriptor.describe(query, features)
        rows.append((estimator.scene.descriptors @ vector).topk(HYPOTHESES).indices.numpy())
    return np.stack(rows)


def localized(
    map_dir: Path, queries: Dataset, path: Path | None, threads: int
) -> list[Localization]:
    """Outcomes of the queries, with the encodings of a file where one is given."""
    pipeline = Pipeline.from_map(Map.open(map_dir), runtime=Runtime(threads=threads))
    if path:
        pipeline.estimator.descriptor = FileDescriptor(GlobalConfig("file", path=str(path)))
    return [pipeline.localize(query.without_ground_truth()) for query in queries]


def best(attempts: Sequence[list[Localization]]) -> list[Localization]:
    """Of several outcomes of every query that with the most inliers."""
    return [max(group, key=lambda r: r.num_inliers) for group in zip(*attempts, strict=True)]


def errors(results: list[Localization], queries: Dataset) -> dict:
    """Median errors (a query without a pose counts as infinitely wrong) and recall."""
    found = np.full((len(results), 2), np.inf)
    for i, (result, frame) in enumerate(zip(results, queries.frames, strict=True)):
        if result.localized:
            pose, truth = result.world_from_cam, frame.world_from_cam
            found[i] = (
                100 * np.linalg.norm(pose[:3, 3] - truth[:3, 3]),
                geometry.rotation_angle_deg(pose[:3, :3], truth[:3, :3]),
            )
    median = np.median(found, axis=0)
    return {
        "queries": len(found),
        "localized": int(np.isfinite(found[:, 0]).sum()),
        "median_cm": float(median[0]) if np.isfinite(median[0]) else None,
        "median_deg": float(median[1]) if np.isfinite(median[1]) else None,
        **{
            f"within {d} cm, {a} deg": int(((found[:, 0] < d) & (found[:, 1] < a)).sum())
            for d, a in ((1, 1), (5, 5), (10, 5))
        },
    }


def measure(split: str, encoding: str, adjust: float, options: argparse.Namespace) -> list[dict]:
    """Train one map, unless it is there, and ask it."""
    work = options.work.resolve() / split
    mapping, queries = (
        build({"_target_": "ace", "root": str(work), "split": s}, "dataset")
        for s in ("train", "test")
    )
    overrides = []
    if encoding == "none":
        overrides = ["global_descriptor.name=none", "global_descriptor.neighbours=0"]
    elif encoding == "graph":
        graph = embedding(overlaps(mapping, np.random.default_rng(0)), DIMENSION)
        path = saved(work / "graph.npz", mapping, graph)
        overrides = ["global_descriptor.name=file", f"global_descriptor.path={path}"]
    map_dir = work / f"{encoding}-{adjust:g}"
    if not (map_dir / "map.yaml").is_file() and reloc([
        "train", "experiment=scr_glace/compact", *SHORT, "dataset=ace", f"dataset.root={work}",
        f"map_dir={map_dir}", f"output_dir={map_dir}-fit", f"threads={options.threads}",
        f"estimator.loss.depth_adjust={adjust:g}", *(f"estimator.{o}" for o in overrides),
    ]):  # fmt: skip
        sys.exit(f"{map_dir} was not trained.")
    row = {"split": split, "depth_adjust": adjust}
    rows = []
    if encoding != "graph":
        own = localized(map_dir, queries, None, options.threads)
        rows.append(row | {"encoding": encoding, "query": "its own"} | errors(own, queries))
    if encoding != "none":
        if encoding == "VLAD":
            graph = Pipeline.from_map(Map.open(map_dir)).estimator.scene.descriptors.numpy()
        nearest = similar(work / "VLAD-0", queries)
        attempts = [
            localized(
                map_dir,
                queries,
                saved(work / "queries.npz", queries, graph[column]),
                options.threads,
            )
            for column in nearest.T
        ]
        for count in (1, HYPOTHESES):
            text = f"of {count} similar"
            kept = best(attempts[:count])
            rows.append(row | {"encoding": encoding, "query": text} | errors(kept, queries))
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| split | encoding | of a query | depth_adjust | median | within 5 cm, 5° | within 10 cm, 5° | "
        "localized |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        lost = r["median_cm"] is None
        median = "lost" if lost else f"{r['median_cm']:.2f} cm / {r['median_deg']:.2f}°"
        recall = [f"{100 * r[f'within {d} cm, 5 deg'] / r['queries']:.0f} %" for d in (5, 10)]
        lines.append(
            f"| {r['split']} | {r['encoding']} | {r['query']} | {r['depth_adjust']:g} | {median} | "
            f"{recall[0]} | {recall[1]} | {r['localized']} of {r['queries']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with redkitchen_seq01")
    parser.add_argument("--work", type=Path, required=True, help="splits and maps; resumed")
    parser.add_argument("--splits", nargs="+", choices=("far", "blocks"), default=["far", "blocks"])
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--adjust", type=float, nargs="+", default=[0.0, 1.5])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    source = (options.data / "redkitchen_seq01" / "train").resolve()
    rows = json.loads(options.json.read_text()) if options.json.is_file() else []
    for split in options.splits:
        mapped, asked = chosen(split, len(list((source / "rgb").iterdir())))
        linked(source, options.work.resolve() / split / "train", mapped)
        linked(source, options.work.resolve() / split / "test", asked)
        for adjust in options.adjust:
            for encoding in options.encodings:
                made = measure(split, encoding, adjust, options)
                key = (split, encoding, adjust)
                rows = [
                    r for r in rows if (r["split"], r["encoding"], r["depth_adjust"]) != key
                ] + made
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
                print(table(made), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

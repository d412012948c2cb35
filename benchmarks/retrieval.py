"""Image retrieval with many references: query time, memory, recall and build time of the index kinds.

    python benchmarks/retrieval.py [--counts 10000 1000000] [--kinds flat ivf pq ivfpq hnsw] [--json FILE]

Descriptors are simulated: `--dimension` numbers (default 128, what whitened global descriptors are
usually cut to) around places, 20 images each; queries are further images of such places. Every index is
built and searched in a process of its own, queries one at a time on `--threads` threads. Recall is
the share of the ten most similar references that the index finds. `--picture` draws the curves.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("exact", "flat", "ivf", "pq", "ivfpq", "hnsw")
EFFORTS = {"ivf": (1, 4, 16, 64), "ivfpq": (1, 4, 16, 64), "hnsw": (16, 64, 256)}
IMAGES_PER_PLACE = 20
QUERIES = 100
WANTED = 10
SPREAD = 1.0  # of a place's images relative to the distance between places


def simulate(path: Path, count: int, dimension: int) -> None:
    """Write unit descriptors and queries as float32."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((-(-count // IMAGES_PER_PLACE), dimension), np.float32)

    def images(of: np.ndarray) -> np.ndarray:
        found = places[of] + SPREAD * rng.standard_normal((len(of), dimension), np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    np.save(path / "queries.npy", images(rng.integers(0, len(places), QUERIES)))
    base = np.lib.format.open_memmap(path / "base.npy", "w+", np.float32, (count, dimension))
    order = rng.permutation(count)
    for start in range(0, count, 50_000):
        base[start : start + 50_000] = images(order[start : start + 50_000] // IMAGES_PER_PLACE)
    base.flush()


def truth(path: Path) -> np.ndarray:
    """(Q, 10) most similar references by NumPy, block by block."""
    base, queries = np.load(path / "base.npy", mmap_mode="r"), np.load(path / "queries.npy")
    scores = np.concatenate(
        [queries @ base[i : i + 50_000].T for i in range(0, len(base), 50_000)], 1
    )
    return np.argsort(-scores, axis=1)[:, :WANTED]


def measure(path: Path, kind: str, threads: int) -> list[dict[str, Any]]:
    """Rows of one index kind; in a fresh process."""
    import torch

    from reloc_core.features.retrieval import RetrievalIndex

    torch.set_num_threads(threads)
    if kind != "exact":
        import faiss

        faiss.omp_set_num_threads(threads)
    base = torch.from_numpy(np.load(path / "base.npy", mmap_mode="r"))
    queries = torch.from_numpy(np.load(path / "queries.npy"))
    expected = np.load(path / "truth.npy")
    before, wall = time.process_time(), time.perf_counter()
    lists = min(1000, len(base) // 40)
    index = RetrievalIndex(base, kind, lists=lists, code_bytes=base.shape[1] // 4, links=16)
    build, build_wall = time.process_time() - before, time.perf_counter() - wall
    size = index.memory()
    rows = []
    for effort in EFFORTS.get(kind, (0,)):
        index.set_effort(effort)
        index.search(queries[:2], WANTED)
        walls, found = [], []
        before = time.process_time()
        for query in queries:
            start = time.perf_counter()
            found.append(index.search(query[None], WANTED)[0][0])
            walls.append(time.perf_counter() - start)
        cpu = (time.process_time() - before) / len(queries)
        hits = [len(set(a) & set(b)) / WANTED for a, b in zip(found, expected, strict=True)]
        rows.append(
            {
                "kind": kind,
                "references": len(base),
                "dimension": base.shape[1],
                "effort": effort,
                "recall at 10": float(np.mean(hits)),
                "query cpu ms": 1000 * cpu,
                "query wall ms": 1000 * float(np.median(walls)),
                "index MB": size / 1e6,
                "process peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
                "build cpu s": build,
                "build wall s": build_wall,
            }
        )
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Recall, memory and growth over the number of references."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    most = max(row["references"] for row in rows)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for number, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        style = {"color": f"C{number}", "marker": "o", "label": kind}
        mine = [row for row in rows if row["kind"] == kind]
        full = [row for row in mine if row["references"] == most]
        axes[0].plot([r["query cpu ms"] for r in full], [r["recall at 10"] for r in full], **style)
        best = [max((r for r in mine if r["references"] == n), key=lambda r: r["recall at 10"])
                for n in sorted({r["references"] for r in mine})]  # fmt: skip
        axes[1].plot([r["references"] for r in best], [r["query cpu ms"] for r in best], **style)
        axes[2].plot([r["references"] for r in best], [r["index MB"] for r in best], **style)
    dimension = rows[0]["dimension"]
    for axis, x, y, title in (
        (
            axes[0],
            "query, CPU ms",
            "recall at 10",
            f"{most:,} references, {dimension} numbers each",
        ),
        (axes[1], "references", "query, CPU ms", "time at the highest recall"),
        (axes[2], "references", "index, MB", "memory"),
    ):
        axis.set(xlabel=x, ylabel=y, title=title, xscale="log")
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[2].set_yscale("log")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[1:]))
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="save the rows here")
    parser.add_argument("--picture", type=Path, help="draw the curves here")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, path = arguments.measure
        print(json.dumps(measure(Path(path), kind, arguments.threads)))
        return
    rows: list[dict[str, Any]] = []
    print(
        "| kind | references | effort | recall | query CPU ms | index MB | peak MB | build CPU s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            simulate(Path(folder), count, arguments.dimension)
            np.save(Path(folder) / "truth.npy", truth(Path(folder)))
            for kind in arguments.kinds:
                command = [sys.executable, __file__, "--measure", kind, folder]
                command += ["--threads", str(arguments.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                for row in found:
                    print(
                        f"| {kind} | {count:,} | {row['effort']} | {row['recall at 10']:.3f} | "
                        f"{row['query cpu ms']:.3f} | {row['index MB']:.0f} | "
                        f"{row['process peak MB']:.0f} | {row['build cpu s']:.1f} |",
                        flush=True,
                    )
                rows += found
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if arguments.picture:
        picture(rows, arguments.picture)


if __name__ == "__main__":
    main()

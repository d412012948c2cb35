"""Time and memory of opening large datasets, and how long training would wait for images.

    python benchmarks/loading.py [--count 10000] [--data DIR] [--json OUT]        (--count 0: no opening)

Opening: a dataset of COUNT images (links to one JPEG of 640x480) in each layout, opened in a process of its
own; memory is the growth of the resident set while it opens, and the peak of the whole process.
Stalls: the images of redkitchen_seq01 through `Prefetch`, beside a consumer that keeps torch threads
busy with convolutions; the stall is the time it waits for images.
Evaluation: a localizer that keeps two torch threads busy, with depth maps read and one image ahead, and as
`reloc evaluate` does it: several images ahead, and no depth where no stage looks at it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

THREADS = 2
LAYOUTS = ("ace", "transforms", "colmap", "kapture")


def make(layout, count, root):
    """A dataset of hard-linked images with random poses."""
    from reloc_core.geometry import so3_exp
    from reloc_core.io.ace import write_ace
    from reloc_core.io.colmap import write_model
    from reloc_core.io.kapture import write_kapture
    from reloc_core.io.transforms import write_transforms
    from reloc_core.types import Camera, Frame

    rng = np.random.default_rng(0)
    camera = Camera.pinhole(525.0, 640, 480)
    frames = []
    for i in range(count):
        pose = np.eye(4)
        pose[:3, :3] = so3_exp(rng.normal(size=3))
        pose[:3, 3] = rng.normal(size=3)
        frames.append(Frame(f"img-{i:06d}.jpg", camera, pose))
    folder = (
        root
        / {
            "ace": "train/rgb",
            "transforms": "images",
            "colmap": "images",
            "kapture": "sensors/records_data",
        }[layout]
    )
    folder.mkdir(parents=True)
    first = folder / frames[0].name
    cv2.imwrite(str(first), rng.integers(0, 255, (480, 640, 3), np.uint8))
    for frame in frames[1:]:
        os.link(first, folder / frame.name)
    if layout == "ace":
        write_ace(root / "train", frames)
    elif layout == "transforms":
        write_transforms(root / "transforms.json", frames, [f"images/{f.name}" for f in frames])
    elif layout == "colmap":
        (root / "sparse" / "0").mkdir(parents=True)
        write_model(root / "sparse" / "0", frames)
        add_points(root / "sparse" / "0" / "images.bin")
    else:
        write_kapture(root, frames)


def add_points(path, points=2000):
    """Give every image of an images.bin 2000 observations, as real models have."""
    data, out, position = path.read_bytes(), bytearray(), 8
    out += data[:8]
    block = points.to_bytes(8, "little") + bytes(24 * points)
    while position < len(data):
        end = data.index(b"\0", position + 64) + 1
        out += data[position:end] + block
        position = end + 8
    path.write_bytes(out)


def open_dataset(layout, root):
    """Seconds, CPU seconds and memory of opening; run in a process of its own."""
    from reloc_core.config import build

    options = (
        {"split": "train"} if layout == "ace" else {"split": "all"} if layout != "kapture" else {}
    )
    build_only = {"_target_": layout, "root": str(root), **options}
    from importlib import import_module

    import_module({"ace": "reloc_core.datasets.ace"}.get(layout, f"reloc_core.datasets.{layout}"))
    before, cpu, begin = rss(), time.process_time(), time.perf_counter()
    dataset = build(build_only, "dataset")
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    assert all(f.world_from_cam is not None for f in dataset.frames)
    return {
        "layout": layout,
        "images": len(dataset),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "growth_mb": round((rss() - before) / 1e6, 1),
        "process_peak_mb": round(peak() / 1e6, 1),
    }


def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak():
    """Largest resident set of this program; unlike ru_maxrss it does not start with the parent's."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def stalls(data, workers, images=100):
    """Share of the time that a busy consumer waits."""
    import torch

    from reloc_core.datasets.ace import AceDataset
    from reloc_core.datasets.config import AceConfig
    from reloc_core.datasets.prefetch import Prefetch

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(0)
    dataset = AceDataset(AceConfig(str(data / "redkitchen_seq01"), depth="none"))
    order = np.random.default_rng(0).integers(0, len(dataset), images)
    layer = torch.nn.Conv2d(1, 32, 3, 2, 1)
    with torch.no_grad():
        alone = time.perf_counter()
        for index in order[:30]:
            step(torch, layer, dataset[int(index)])
        alone = (time.perf_counter() - alone) / 30
        loader = Prefetch(dataset, order.tolist(), workers)
        begin = time.perf_counter()
        for query in loader:
            step(torch, layer, query)
        total = time.perf_counter() - begin
    begin = time.perf_counter()
    for index in order[:30]:
        dataset[int(index)]
    read = (time.perf_counter() - begin) / 30
    return {
        "workers": workers,
        "images": images,
        "read_ms": round(1000 * read, 1),
        "step_with_reading_ms": round(1000 * alone, 1),
        "step_prefetched_ms": round(1000 * total / images, 1),
        "stall_ms_per_image": round(1000 * loader.stall_seconds / images, 2),
        "stall_percent": round(100 * loader.stall_seconds / total, 1),
    }


def evaluation(data, ahead, depth, images=100):
    """Share of an evaluation for which localization stands still."""
    from unittest import mock

    import torch

    from reloc_core.datasets.ace import AceDataset
    from reloc_core.datasets.config import AceConfig
    from reloc_core.engine import evaluate
    from reloc_core.types import Evidence, Localization

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(0)
    layer = torch.nn.Conv2d(1, 32, 3, 2, 1)

    class Busy:
        history = 0

        def start_sequence(self):
            pass

        @torch.no_grad()
        def localize_batch(self, queries):
            for query in queries:
                step(torch, layer, query)
            return [(Evidence(), Localization.failure("only busy")) for _ in queries]

    dataset = AceDataset(AceConfig(str(data / "redkitchen_seq01"), split="test", max_frames=images))
    queries = dataset if depth else dataset.without_depth()
    begin, cpu = time.perf_counter(), time.process_time()
    with mock.patch("reloc_core.engine.queries.AHEAD", ahead):
        results = evaluate(Busy(), queries).results
    total, cpu = time.perf_counter() - begin, time.process_time() - cpu
    waited = sum(r.wait_seconds for r in results)
    return {
        "ahead": ahead,
        "depth_read": depth,
        "images": len(results),
        "per_image_ms": round(1000 * total / len(results), 1),
        "cpu_per_image_ms": round(1000 * cpu / len(results), 1),
        "stall_ms_per_image": round(1000 * waited / len(results), 2),
        "stall_percent": round(100 * waited / total, 1),
    }


def step(torch, layer, query):
    """About what an encoder does per image, much smaller."""
    grey = torch.from_numpy(query.image).float().mean(2)[None, None] / 255
    layer(grey).relu_().sum()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--open", nargs=2)
    parser.add_argument("--threads", type=int, default=2, help="of the busy consumer")
    options = parser.parse_args()
    global THREADS
    THREADS = options.threads
    if options.open:
        print(json.dumps(open_dataset(options.open[0], Path(options.open[1]))))
        return
    rows = {"open": [], "stalls": [], "evaluation": []}
    for layout in LAYOUTS if options.count else ():
        with tempfile.TemporaryDirectory() as folder:
            make(layout, options.count, Path(folder))
            command = [sys.executable, __file__, "--open", layout, folder]
            child = subprocess.run(command, capture_output=True, text=True, check=True)
            rows["open"].append(json.loads(child.stdout.splitlines()[-1]))
            print(rows["open"][-1])
    if options.data:
        for workers in (1, 2):
            rows["stalls"].append(stalls(options.data, workers))
            print(rows["stalls"][-1])
        from reloc_core.engine.queries import AHEAD

        for ahead, depth in ((1, True), (1, False), (AHEAD, True), (AHEAD, False)):
            rows["evaluation"].append(evaluation(options.data, ahead, depth))
            print(rows["evaluation"][-1])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

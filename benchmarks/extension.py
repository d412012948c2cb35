"""Adding images to a map against mapping all of them: error on images of neither, and CPU time.

    python benchmarks/extension.py --root REDKITCHEN --out DIR

A map of `landmarks` is made from the first half of every other mapping image, extended by the second half,
by 25 images of that alone, and compared with a map of all. Queries are every fourteenth of the mapping
images that none of them has. One thread; seconds are of the CPU.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reloc_core.calibration import CalibrationConfig
from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.datasets.subset import Subset
from reloc_core.engine import extend, train
from reloc_core.evaluation.metrics import pose_errors
from reloc_core.interfaces import Dataset
from reloc_core.pipeline import Pipeline

OFF = CalibrationConfig(enabled=False)


def error(path: Path, queries: Dataset) -> str:
    """Median error and recall in words."""
    pipeline, errors = Pipeline.from_map(path), []
    for query in queries:
        found = pipeline.localize(query)
        assert query.world_from_cam is not None
        pose = found.world_from_cam if found.localized else None
        errors.append((np.inf, np.inf) if pose is None else pose_errors(pose, query.world_from_cam))
    metres, degrees = np.array(errors).T
    good = 100 * np.mean((metres < 0.05) & (degrees < 5))
    return f"{100 * np.median(metres):.2f} cm, {np.median(degrees):.2f} deg, {good:.0f} % in 5 cm 5 deg"


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out
    dataset = AceDataset(AceConfig(arguments.root, split="train"))
    chosen = np.arange(0, len(dataset), 2)
    queries = Subset(dataset, np.arange(1, len(dataset), 14).tolist())
    first, second = np.array_split(chosen, 2)

    def mapped(name: str, images: np.ndarray) -> float:
        part = Subset(dataset, images.tolist())
        return seconds(lambda: train(part, out / name, "landmarks", calibration=OFF, threads=1))

    def added(name: str, images: np.ndarray) -> float:
        shutil.copytree(out / "half", out / name)
        part = Subset(dataset, images.tolist())
        return seconds(lambda: extend(part, out / name, calibration=OFF, threads=1))

    for name, how, images in (
        ("half", mapped, first), ("extended", added, second), ("few", added, second[::7]),
        ("all", mapped, chosen),
    ):  # fmt: skip
        spent = how(name, images)
        print(
            f"{name}: {len(images)} images, {spent:.0f} s, {error(out / name, queries)}", flush=True
        )


if __name__ == "__main__":
    main()

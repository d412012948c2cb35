"""How far poses can be believed: real queries, pictures of other places, and pictures no camera could take.

    python benchmarks/calibration.py --data DIR --map MAP [--map MAP ...] [--place lund|FOLDER] [--hard]

For every map of a place (`redkitchen_seq01` by default): how many of its queries are localized and right
(2.5 % of the depth, 5 degrees), the mean squared normalised error (6 is right) and the share in the 95 %
region of the covariance, the expected calibration error of the score; how many foreign and impossible
pictures are localized, and with what score; and queries with a wrong focal length, and those that were
cropped, stretched, sheared, shifted or distorted unknown to their camera: refused, right all the same, or
inside the covariance. `--hard` asks frames 200 to 699 of the training split, for maps of its
first 200 frames.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from reloc_core import Camera, Dataset, Frame, Localization, Pipeline, Query, Runtime
from reloc_core.config import build
from reloc_core.datasets.subset import Subset
from reloc_core.engine import run_queries
from reloc_core.errors import RelocError
from reloc_core.evaluation import nees, pose_errors
from reloc_core.evaluation.metrics import NEES_95
from reloc_core.io.images import read_image

PLACES = {"redkitchen_seq01": "ace", "fox": "transforms", "lund": "colmap", "brighton": "colmap"}
OTHERS = (
    ("redkitchen_seq01", "redkitchen_seq01/test/rgb/*.jpg", 4, 525.5),
    ("fox", "fox/images/*.jpg", 1, 687.5),
    ("shelf_seq", "shelf_seq/rgb/*", 2, 615.2),
    ("euroc_micro", "euroc_micro/images/*", 4, 458.0),
    ("lund", "lund/images/*", 1, 800.0),
    ("brighton", "brighton/images/*", 1, 1100.0),
)
DEPTH = 1.9  # median of redkitchen in metres, for evidence without points


def other_places(data: Path, own: str) -> Iterator[Query]:
    """Photographs of other places."""
    for name, pattern, step, focal in OTHERS:
        if name == own:
            continue
        for path in sorted(data.glob(pattern))[::step]:
            image = read_image(path)
            yield _query(name, image, Camera.pinhole(focal, image.shape[1], image.shape[0]))


def no_places(camera: Camera) -> Iterator[Query]:
    """Noise, blurred noise and boards."""
    height, width = camera.height, camera.width
    for seed in range(40):
        rng = np.random.default_rng(seed)
        yield _query("noise", rng.integers(0, 255, (height, width, 3), np.uint8), camera)
        small = rng.integers(0, 255, (20 + 4 * seed, 27 + 5 * seed, 3), np.uint8)
        smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        yield _query("smooth noise", smooth, camera)
    for cell in range(8, 72, 8):
        board = (np.indices((height, width)) // cell).sum(0) % 2 * 255
        yield _query("board", np.repeat(board.astype(np.uint8)[..., None], 3, 2), camera)


def impossible(queries: Dataset, count: int) -> Iterator[Query]:
    """Queries mirrored, cut into shuffled blocks, or one part of them repeated."""
    rng = np.random.default_rng(1)
    for index in np.linspace(0, len(queries) - 1, count).astype(int):
        query = queries[int(index)]
        image, height, width = query.image, query.camera.height, query.camera.width
        yield _query("mirrored", image[:, ::-1], query.camera)
        for side in (60, 120, 200):
            y, x = rng.integers(0, height - side), rng.integers(0, width - side)
            tile = image[y : y + side, x : x + side]
            tiled = np.tile(tile, (height // side + 1, width // side + 1, 1))[:height, :width]
            yield _query("tiled", tiled, query.camera)
        rows, columns = height // 80, width // 80
        blocks = image[: rows * 80, : columns * 80].reshape(rows, 80, columns, 80, 3)
        blocks = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 80, 80, 3)
        mixed = blocks[rng.permutation(len(blocks))].reshape(rows, columns, 80, 80, 3)
        mixed = mixed.transpose(0, 2, 1, 3, 4).reshape(rows * 80, columns * 80, 3)
        yield _query("shuffled", cv2.resize(mixed, (width, height)), query.camera)


def wrong_focal(queries: Dataset, count: int) -> Iterator[Query]:
    """Queries whose focal length is off by 10, 20 and 50 percent."""
    for index in np.linspace(0, len(queries) - 1, count).astype(int):
        query = queries[int(index)]
        for factor in (0.5, 0.8, 0.9, 1.1, 1.2, 1.5):
            focal = query.camera.fx * factor
            camera = Camera.pinhole(focal, query.camera.width, query.camera.height)
            yield replace(query, camera=camera, name=f"focal x {factor}", sequence=None)


def another_camera(queries: Dataset, count: int) -> Iterator[Query]:
    """Queries cropped, squashed, sheared, shifted, or seen through another lens than the camera tells."""
    for index in np.linspace(0, len(queries) - 1, count).astype(int):
        query = queries[int(index)]
        image, width, height = query.image, query.camera.width, query.camera.height
        size = (width, height)
        kinds = {}
        for share in (0.9, 0.7):
            part = image[: int(share * height), : int(share * width)]
            kinds[f"crop {share}"] = cv2.resize(part, size)
        for factor in (0.75, 0.9):
            squashed, half = np.zeros_like(image), int(factor * height)
            squashed[(height - half) // 2 :][:half] = cv2.resize(image, (width, half))
            kinds[f"squashed {factor}"] = squashed
        for amount in (0.05, 0.15):
            shear = np.array([[1, amount, -amount * height / 2], [0, 1, 0.0]])
            kinds[f"sheared {amount}"] = cv2.warpAffine(image, shear, size)
            shift = np.array([[1, 0, amount * width], [0, 1, -amount * height / 2]])
            kinds[f"shifted {amount}"] = cv2.warpAffine(image, shift, size)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        for k in (-0.3, 0.3):
            u, v = (x - width / 2) / (0.8 * width), (y - height / 2) / (0.8 * width)
            lens = 1 + k * (u * u + v * v)
            source = [0.8 * width * c * lens + s / 2 for c, s in ((u, width), (v, height))]
            kinds[f"lens {k}"] = cv2.remap(image, source[0], source[1], cv2.INTER_LINEAR)
        for name, changed in kinds.items():
            yield replace(query, image=changed, name=name, sequence=None)


def _query(kind: str, image: np.ndarray, camera: Camera) -> Query:
    return Query(kind, camera, image=np.ascontiguousarray(image))


Found = tuple[Frame, Localization]


def judge(found: Sequence[Found]) -> dict[str, float]:
    """Numbers of real queries."""
    localized = [(f, loc) for f, loc in found if loc.localized]
    truths = [_truth(frame, loc) for frame, loc in localized]
    right, values = [r for r, _ in truths], [square for _, square in truths]
    inside = [square < NEES_95 for square in values]
    scores = np.array([loc.score for _, loc in localized])
    errors = [pose_errors(loc.world_from_cam, f.world_from_cam)[0] for f, loc in localized]
    return {
        "queries": len(found),
        "localized": len(localized),
        "right": int(np.sum(right)),
        "median_m": round(float(np.median(errors)), 5) if errors else float("nan"),
        "nees": round(float(np.mean(values)), 2) if values else float("nan"),
        "in_95": round(float(np.mean(inside)), 4) if inside else float("nan"),
        "ece": round(calibration_error(scores, np.array(right, bool)), 4),
    }


def calibration_error(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error in equal groups by score (Naeini et al. 2015)."""
    if not len(scores):
        return float("nan")
    order = np.argsort(scores)
    groups = np.array_split(order, min(bins, len(order)))
    gaps = [len(g) * abs(float(scores[g].mean() - right[g].mean())) for g in groups if len(g)]
    return sum(gaps) / len(scores)


def strange(found: Sequence[Found]) -> dict[str, object]:
    """Numbers of pictures whose honest answer is "not localized"."""
    wrong = [(f.name, round(loc.score, 2)) for f, loc in found if loc.localized]
    return {
        "pictures": len(found),
        "localized": len(wrong),
        "at_0.7_or_more": sum(score >= 0.7 for _, score in wrong),
        "which": wrong[:12],
    }


def believable(found: Sequence[Found]) -> dict[str, int]:
    """Of queries with a wrong camera: how many are refused, right all the same, or believable.

    One is wrong if its pose is neither right nor inside its covariance.
    """
    numbers = {"queries": len(found), "refused": 0, "right": 0, "inside": 0, "wrong": 0}
    for frame, loc in found:
        if not loc.localized:
            numbers["refused"] += 1
            continue
        right, square = _truth(frame, loc)
        numbers["right"] += right
        numbers["inside"] += square < NEES_95
        numbers["wrong"] += not right and square >= NEES_95
    return numbers


def _truth(frame: Frame, found: Localization) -> tuple[bool, float]:
    """Whether a pose is within 2.5 % of the depth and 5 degrees, and its normalised squared error."""
    assert frame.world_from_cam is not None
    assert found.world_from_cam is not None
    assert found.covariance is not None
    moved, turned = pose_errors(found.world_from_cam, frame.world_from_cam)
    right = moved <= 0.025 * found.support.get("depth", DEPTH) and turned <= 5
    return right, nees(found.world_from_cam, found.covariance, frame.world_from_cam)


def measure(
    pipeline: Pipeline, queries: Dataset, data: Path, place: str, few: int
) -> dict[str, dict[str, object]]:
    """All numbers of a pipeline."""

    def run(source: Dataset | Iterator[Query]) -> list[Found]:
        return [(o.frame, o.localization) for o in run_queries(pipeline, source, observed=False)]

    camera = queries.frames[0].camera
    foreign = [
        *run(other_places(data, place)),
        *run(no_places(camera)),
        *run(impossible(queries, few)),
    ]
    return {
        "real": judge(run(queries)),
        "foreign": strange(foreign),
        "wrong_focal": believable(run(wrong_focal(queries, max(few // 3, 1)))),
        "another_camera": believable(run(another_camera(queries, max(few // 3, 1)))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--map", type=Path, action="append", required=True)
    parser.add_argument(
        "--place",
        default="redkitchen_seq01",
        help=f"{', '.join(PLACES)}, or the folder of any COLMAP workspace",
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--step", type=int, default=1, help="take every n-th query")
    parser.add_argument("--few", type=int, default=30, help="queries that are made impossible")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    split = "train" if arguments.hard else arguments.split
    known = arguments.place in PLACES
    kind = PLACES[arguments.place] if known else "colmap"
    root = str(arguments.data / arguments.place) if known else arguments.place
    dataset = build({"_target_": kind, "root": root, "split": split}, "dataset")
    first = 200 if arguments.hard else 0
    queries = Subset(dataset, range(first, len(dataset), arguments.step))
    table = {}
    for folder in arguments.map:
        pipeline = Pipeline.from_map(folder, runtime=Runtime(threads=arguments.threads))
        pipeline.check(queries)
        found = measure(pipeline, queries, arguments.data, arguments.place, arguments.few)
        table[folder.name] = {"method": pipeline.method, **found}
        print(folder.name, json.dumps(table[folder.name]), flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    try:
        main()
    except RelocError as error:
        sys.exit(f"calibration.py: error: {error}")

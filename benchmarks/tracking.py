"""Tracking beside localizing every frame on its own: errors, milliseconds a frame, and what cuts do.

    python benchmarks/tracking.py --map MAP --root DIR [--setting clean blackout ...] [--json FILE]

Every run of consecutive frames of the split is shown at 30 Hz, as a camera would (`--rate 0`: as fast as it
is taken). `frame` localizes every frame on its own, as fast as it can. Settings, all reproducible:

  clean     the frames as they are
  black3    three black frames in every 50
  blackout  half a second of black frames (15) in every 50
  cut       the camera is carried between two runs every 25 frames, without a gap in time

A pose is wrong from 10 cm or 5 degrees on. Milliseconds are those of the calls after the first of a run, by
the clock and, as `cpu ms`, of the calling thread alone, which the clock shows on a machine that does
nothing else. OpenCV uses one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.evaluation.metrics import NEES_95, nees, pose_errors
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.pipeline import Pipeline
from reloc_core.tracker import Tracker, TrackerConfig, without_pose_filter
from reloc_core.types import Localization, Query

BLACK = {"black3": 3, "blackout": 15}
PERIOD, FIRST, PIECE = 50, 25, 25
WRONG_M, WRONG_DEG = 0.10, 5.0
SETTINGS = ("clean", "black3", "blackout", "cut")


@dataclass(frozen=True)
class Shown:
    """A frame as it is shown.

    Attributes:
        query: with its true pose.
        black: whether it shows nothing.
        cut: whether the camera was carried right before.
    """

    query: Query
    black: bool = False
    cut: bool = False


def runs_of(dataset: Dataset) -> list[list[int]]:
    """Indices of the frames, by runs of consecutive numbers."""
    numbers = [int(re.findall(r"\d+", frame.name)[-1]) for frame in dataset.frames]
    runs: list[list[int]] = []
    for index, number in enumerate(numbers):
        if not runs or number != numbers[index - 1] + 1:
            runs.append([])
        runs[-1].append(index)
    return runs


def videos(dataset: Dataset, setting: str) -> Iterator[list[Shown]]:
    """What is shown, video by video."""
    runs = [[dataset[i] for i in run] for run in runs_of(dataset)]
    if setting == "cut":
        count = min(map(len, runs)) // PIECE
        # Alternately, every run's pieces in their order.
        pieces = [run[k * PIECE : (k + 1) * PIECE] for k in range(count) for run in runs]
        yield [
            timed(Shown(query, cut=place == 0 and number > 0), number * PIECE + place)
            for number, piece in enumerate(pieces)
            for place, query in enumerate(piece)
        ]
        return
    for run in runs:
        shown = []
        for place, query in enumerate(run):
            black = FIRST <= place % PERIOD < FIRST + BLACK.get(setting, 0)
            if black:
                query = replace(query, image=np.zeros_like(query.image))
            shown.append(timed(Shown(query, black), place))
        yield shown


def timed(shown: Shown, place: int) -> Shown:
    query = replace(shown.query, timestamp=place / 30, sequence=None, depth=None)
    return replace(shown, query=query)


@dataclass(frozen=True)
class Row:
    """What became of one frame."""

    shown: Shown
    found: Localization
    seconds: float
    cpu: float
    first: bool

    @property
    def errors(self) -> tuple[float, float]:
        """Metres and degrees; infinite where it is not localized."""
        pose, truth = self.found.world_from_cam, self.shown.query.world_from_cam
        if not self.found.localized or pose is None or truth is None:
            return np.inf, np.inf
        return pose_errors(pose, truth)

    @property
    def wrong(self) -> bool:
        metres, degrees = self.errors
        return np.isfinite(metres) and (metres > WRONG_M or degrees > WRONG_DEG)


def track(tracker: Tracker, video: list[Shown], rate: float) -> Iterator[Row]:
    """The tracker's poses of a video that comes at a rate."""
    tracker.start_sequence()
    begin = time.perf_counter()
    for place, shown in enumerate(video):
        if rate > 0:
            time.sleep(max(0.0, begin + place / rate - time.perf_counter()))
        start, cpu = time.perf_counter(), time.thread_time()
        found = tracker.track_query(shown.query)
        seconds, cpu = time.perf_counter() - start, time.thread_time() - cpu
        if place == 0:
            begin = time.perf_counter()  # the camera starts when the first frame is known
        yield Row(shown, found, seconds, cpu, place == 0)


def single(pipeline: Pipeline, video: list[Shown]) -> Iterator[Row]:
    """Every frame on its own."""
    for place, shown in enumerate(video):
        start, cpu = time.perf_counter(), time.thread_time()
        found = pipeline.localize(shown.query)
        seconds, cpu = time.perf_counter() - start, time.thread_time() - cpu
        yield Row(shown, found, seconds, cpu, place == 0)


def summary(rows: list[Row]) -> dict[str, float]:
    """The numbers of one setting."""
    later = 1e3 * np.array([r.seconds for r in rows if not r.first])
    cpu = 1e3 * np.array([r.cpu for r in rows if not r.first])
    metres, degrees = np.array([r.errors for r in rows]).T
    seen = np.array([not r.shown.black for r in rows])
    result = {
        "ms median": float(np.median(later)),
        "ms 99 %": float(np.quantile(later, 0.99)),
        "ms max": float(later.max()),
        "cpu ms median": float(np.median(cpu)),
        "cpu ms 99 %": float(np.quantile(cpu, 0.99)),
        "localized %": 100 * float(np.isfinite(metres[seen]).mean()),
        "median cm": 100 * float(np.median(metres[seen])),
        "median deg": float(np.median(degrees[seen])),
        "p90 cm": 100 * float(np.quantile(metres[seen], 0.9, method="lower")),
        "wrong": float(sum(r.wrong for r in rows if not r.shown.black)),
    }
    for name, chosen in (("", seen), ("black ", ~seen)):
        squares = np.array([square(r) for r, c in zip(rows, chosen, strict=True) if c])
        squares = squares[np.isfinite(squares)]
        if len(squares):
            result[f"{name}NEES"] = float(squares.mean())
            result[f"{name}in 95 %"] = 100 * float((squares < NEES_95).mean())
    if not seen.all():
        black = [r for r in rows if r.shown.black and np.isfinite(r.errors[0])]
        result["black localized %"] = 100 * len(black) / int((~seen).sum())
        if black:
            last = [r for r, n in zip(rows, [*rows[1:], None], strict=True)
                    if r in black and n is not None and not n.shown.black]  # fmt: skip
            result["last black error cm"] = 100 * mean(r.errors[0] for r in last)
            result["last black std cm"] = 100 * mean(std(r) for r in last)
    gaps = [i for i, r in enumerate(rows) if r.shown.cut or came_back(rows, i)]
    if gaps:
        result["frames until back, most"] = float(max(until_good(rows, i) for i in gaps))
        result["wrong within 10 after"] = float(
            sum(r.wrong for i in gaps for r in rows[i : i + 10])
        )
    return result


def came_back(rows: list[Row], index: int) -> bool:
    return index > 0 and rows[index - 1].shown.black and not rows[index].shown.black


def until_good(rows: list[Row], index: int) -> int:
    """Frames from `index` on until one has a right pose, that one included."""
    good = (np.isfinite(r.errors[0]) and not r.wrong for r in rows[index:])
    return next((n for n, g in enumerate(good, 1) if g), len(rows) - index + 1)


def mean(values: Iterator[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


def std(row: Row) -> float:
    """Stated standard deviation of the place in metres."""
    covariance = row.found.covariance
    return float("nan") if covariance is None else float(np.sqrt(np.trace(covariance[3:, 3:])))


def square(row: Row) -> float:
    """Squared error over its covariance; NaN where one is missing."""
    found, truth = row.found, row.shown.query.world_from_cam
    if not found.localized or found.covariance is None or truth is None:
        return np.nan
    assert found.world_from_cam is not None
    return nees(found.world_from_cam, found.covariance, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second; 0: at once")
    parser.add_argument("--threads", type=int, default=2, help="of localizing single frames")
    parser.add_argument("--beside", type=int, default=1, help="threads of localizing beside")
    parser.add_argument("--no-single", action="store_true", help="leave out single frames")
    parser.add_argument("--option", nargs="*", default=[], help="of the tracker, KEY=VALUE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    config = TrackerConfig()
    for option in arguments.option:
        key, value = option.split("=", 1)
        target, _, name = key.rpartition(".")
        setattr(config.filter if target else config, name, yaml.safe_load(value))
    pipeline = without_pose_filter(
        Pipeline.from_map(arguments.map, runtime=Runtime(threads=arguments.threads))
    )
    dataset = AceDataset(AceConfig(str(arguments.root), split=arguments.split))
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for setting in arguments.setting:
        found: dict[str, list[Row]] = {"frame": [], "tracker": []}
        for video in videos(dataset, setting):
            if not arguments.no_single:
                torch.set_num_threads(arguments.threads)
                found["frame"] += single(pipeline, video)
            torch.set_num_threads(arguments.beside)
            with Tracker(pipeline, config) as tracker:
                found["tracker"] += track(tracker, video, arguments.rate)
        rows[setting] = {name: summary(part) for name, part in found.items() if part}
        for name, row in rows[setting].items():
            numbers = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
            print(f"{setting:10s}{name:10s}{numbers}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What filtering over time is worth: poses of single frames and filtered ones, clean and under stress.

    python benchmarks/temporal.py --map MAP --root DIR [--setting clean blur ...] [--json FILE]

MAP is a map of any estimator: its own poses ("frame") beside those of the refiner `pose_filter`. For a map
of kfnet_temporal the rows are: its measurement alone, with the filter over the cells, with the filter over
the poses, and both. All see the same pictures and the same solver.

Stress settings, all reproducible; frames 20 to 29 of every 50 are degraded:

  blur       by a Gaussian of 24 px
  occlusion  a third of the width is covered by a texture that does not move
  covered    nine tenths of the width are
  lens       the lens is covered: the picture is black
  both       a third is covered and the rest blurred by a Gaussian of 12 px
  worse      half is covered and the rest blurred by a Gaussian of 16 px
  frozen     the camera delivers frame 20 again and again while it moves on
  cut        no degradation; the picture jumps to another part of the video every 50 frames, without a
             time gap

`--blur` and `--cover` replace the strengths of all chosen settings that blur or cover, `--length` the
number of degraded frames.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from kfnet_temporal.common.labels import labels_at
from kfnet_temporal.estimator import TemporalEstimator

from reloc_core.config import typed_config
from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.evaluation.metrics import NEES_95, nees
from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.refiners.pose_filter import PoseFilter
from reloc_core.registry import default_registry
from reloc_core.types import Localization, Query

PERIOD, FIRST, LENGTH = 50, 20, 10


@dataclass(frozen=True)
class Stress:
    """What happens to the degraded frames.

    Attributes:
        blur: standard deviation in pixels.
        cover: share of the width, in the middle.
        frozen: the first one is shown again and again.
        cut: the order of the frames jumps instead.
        length: degraded frames of every `PERIOD`.
    """

    blur: float = 0.0
    cover: float = 0.0
    frozen: bool = False
    cut: bool = False
    length: int = LENGTH

    def degrades(self, place: int) -> bool:
        """Whether the frame at a place of the video is degraded."""
        anything = self.blur > 0 or self.cover > 0 or self.frozen
        return anything and FIRST <= place % PERIOD < FIRST + self.length

    def degraded(self, image: np.ndarray) -> np.ndarray:
        """A picture, blurred and covered."""
        if self.cover >= 1:
            return np.zeros_like(image)
        if self.blur > 0:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), self.blur))
        if self.cover > 0:
            texture = np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)
            width = round(image.shape[1] * self.cover)
            left = (image.shape[1] - width) // 2
            image = image.copy()
            image[:, left : left + width] = cv2.resize(
                texture, (width, image.shape[0]), interpolation=cv2.INTER_CUBIC
            )
        return image


SETTINGS = {
    "clean": Stress(),
    "blur": Stress(blur=24.0),
    "occlusion": Stress(cover=1 / 3),
    "covered": Stress(cover=0.9),
    "lens": Stress(cover=1.0),
    "both": Stress(blur=12.0, cover=1 / 3),
    "worse": Stress(blur=16.0, cover=0.5),
    "frozen": Stress(frozen=True),
    "cut": Stress(cut=True),
}


def frames(dataset: Dataset, stress: Stress) -> Iterator[tuple[Query, bool, bool]]:
    """Queries as shown, whether they are degraded, and whether a cut lies right before."""
    order = list(range(len(dataset)))
    if stress.cut:
        pieces = [order[i : i + PERIOD] for i in range(0, len(order), PERIOD)]
        half = len(pieces) // 2
        order = [i for a, b in zip(pieces[:half], pieces[half:], strict=False) for i in (*a, *b)]
    held: Query | None = None
    for place, index in enumerate(order):
        query = dataset[index]
        degraded = stress.degrades(place)
        if degraded and stress.frozen:
            held = query if place % PERIOD == FIRST or held is None else held
            query = replace(query, image=held.image)
        elif degraded:
            query = replace(query, image=stress.degraded(query.image))
        if stress.cut or stress.degrades(FIRST):
            query = replace(query, timestamp=place / 30, sequence="stress")
        yield query, degraded, stress.cut and place % PERIOD == 0 and place > 0


def pose_error(found: Localization, query: Query) -> tuple[float, float]:
    """Metres and degrees; infinite when not localized."""
    if found.world_from_cam is None or not found.localized or query.world_from_cam is None:
        return np.inf, np.inf
    truth = query.world_from_cam
    angle = rotation_angle_deg(found.world_from_cam[:3, :3], truth[:3, :3])
    return float(np.linalg.norm(found.world_from_cam[:3, 3] - truth[:3, 3])), float(angle)


def normalised_error(found: Localization, query: Query) -> float:
    """Squared error of the pose over its covariance; NaN where one is missing."""
    if found.world_from_cam is None or found.covariance is None or query.world_from_cam is None:
        return np.nan
    return nees(found.world_from_cam, found.covariance, query.world_from_cam)


class Sides:
    """Localizes every query in all ways that are compared.

    Args:
        pipeline: of a map, without the pose filter.
        options: of the pose filter.
    """

    def __init__(self, pipeline: Pipeline, options: dict[str, str]) -> None:
        self.pipeline = pipeline
        estimator = pipeline.estimator
        self.temporal = estimator if isinstance(estimator, TemporalEstimator) else None
        self.names = ("measurement", "cells") if self.temporal else ("frame",)
        config = typed_config(default_registry().get("refiner", "pose_filter"), {}, options)
        self.filters = {name: PoseFilter(config) for name in self.names}

    def start(self) -> None:
        self.pipeline.start_sequence()
        for tracker in self.filters.values():
            tracker.start_sequence()

    def localize(self, query: Query) -> dict[str, Localization]:
        """Poses by the name of the side."""
        seen, found = query.without_ground_truth(), {}
        if self.temporal is None:
            found["frame"] = self.pipeline.localize_with_evidence(seen)
        else:
            measured = self.temporal.measurement.estimate(seen)
            for name, evidence in (
                ("measurement", measured),
                ("cells", self.temporal.filtered(seen, measured)),
            ):
                solver, runtime = self.pipeline.solver, self.pipeline.runtime
                found[name] = evidence, solver.solve(evidence, query.camera, runtime)
        result = {name: pose for name, (_, pose) in found.items()}
        for name, (evidence, pose) in found.items():
            result[f"{name} + pose filter"] = self.filters[name].refine(seen, pose, evidence)
        return result


def cell_errors(estimator: TemporalEstimator, query: Query) -> dict[str, np.ndarray]:
    """Metres; of the measured and of the filtered scene coordinates of the last frame."""
    assert estimator.shown is not None
    step, pixels = estimator.shown[1], estimator.grid(query).pixels
    labels, errors = labels_at(query, pixels), {}
    for name, state in (("measurement", step.measured), ("cells", step.posterior)):
        known = state.known.flatten().numpy()
        points = state.mean.flatten(1).T.numpy()[known] + estimator.origin
        error = np.linalg.norm(points - labels[known], axis=1)
        errors[name] = error[np.isfinite(error)]
    return errors


def measure(sides: Sides, dataset: Dataset, stress: Stress) -> dict[str, dict[str, float]]:
    """A row per side."""
    poses: dict[str, list[tuple[float, float]]] = {}
    normalised: dict[str, list[float]] = {}
    cells: dict[str, list[np.ndarray]] = {"measurement": [], "cells": []}
    nis, bad, cuts = [], [], []
    previous = None
    for query, degraded, cut in frames(dataset, stress):
        if previous is None or query.sequence != previous:
            sides.start()
        previous = query.sequence
        for name, found in sides.localize(query).items():
            poses.setdefault(name, []).append(pose_error(found, query))
            normalised.setdefault(name, []).append(normalised_error(found, query))
        bad.append(degraded)
        cuts.append(cut)
        if sides.temporal is not None and sides.temporal.shown is not None:
            nis.append(sides.temporal.shown[1].accepted_nis().numpy())
            for name, errors in cell_errors(sides.temporal, query).items():
                cells[name].append(errors)
    rows = {n: summary(poses[n], normalised[n], np.array(bad), np.array(cuts)) for n in poses}
    for name, every in cells.items():
        if every:
            together = np.concatenate(every)
            rows[name]["coordinates mean cm"] = 100 * float(together.mean())
            rows[name]["coordinates median cm"] = 100 * float(np.median(together))
    if nis and sum(map(len, nis)):
        rows["cells"]["nis of accepted, mean"] = float(np.concatenate(nis).mean())
    return rows


def summary(
    poses: list[tuple[float, float]], normalised: list[float], bad: np.ndarray, cuts: np.ndarray
) -> dict[str, float]:
    metres, degrees = np.array(poses).T
    good = (metres < 0.10) & (degrees < 5)
    squares = np.array(normalised)
    squares = squares[np.isfinite(squares)]
    row = {
        "localized %": 100 * float(np.isfinite(metres).mean()),
        "median cm": 100 * float(np.median(metres)),
        "median deg": float(np.median(degrees)),
        "p90 cm": 100 * float(np.quantile(metres, 0.9, method="lower")),
        "10cm/5deg %": 100 * float(good.mean()),
        "wrong %": 100 * float((np.isfinite(metres) & ~good).mean()),
        "in 95 % region, %": 100 * float(np.mean(squares < NEES_95)),
        "mean NEES": float(squares.mean()),
    }
    if bad.any():
        row["10cm/5deg % of degraded"] = 100 * float(good[bad].mean())
    if cuts.any():
        lengths = []
        for start in np.flatnonzero(cuts):
            after = good[start : start + PERIOD]
            lengths.append(int(np.argmax(after)) if after.any() else PERIOD)
        row["frames lost after a cut, most"] = float(max(lengths))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--blur", type=float, help="px, in place of the settings' own")
    parser.add_argument("--cover", type=float, help="share, in place of the settings' own")
    parser.add_argument("--length", type=int, default=LENGTH, help="degraded frames of every 50")
    parser.add_argument("--frames", default="", help="slice of the split's frames, as 0:100")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", nargs="*", default=[], help="of the pose filter, KEY=VALUE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runtime = Runtime(threads=arguments.threads)
    component = default_registry().get("estimator", Map.open(arguments.map).info.component)
    refiners = [name for name in component.refiners if name != "pose_filter"]
    pipeline = Pipeline.from_map(
        arguments.map, refiners=refiners, runtime=runtime, calibrated=False
    )
    options = {k: yaml.safe_load(v) for k, v in (o.split("=", 1) for o in arguments.option)}
    sides = Sides(pipeline, options)
    dataset = AceDataset(
        AceConfig(str(arguments.root), split=arguments.split, frames=arguments.frames)
    )
    rows = {}
    for setting in arguments.setting:
        stress = replace(SETTINGS[setting], length=arguments.length)
        if stress.blur > 0:
            stress = replace(stress, blur=arguments.blur or stress.blur)
        if stress.cover > 0:
            stress = replace(stress, cover=arguments.cover or stress.cover)
        rows[setting] = measure(sides, dataset, stress)
        for name, row in rows[setting].items():
            numbers = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
            print(f"{setting:10s}{name:26s}{numbers}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

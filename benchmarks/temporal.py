"""The filter against its own per-frame measurement, clean and under stress, in the same run.

    python benchmarks/temporal.py --map MAP --root DIR [--setting clean blur ...] [--json FILE]

MAP is a map of kfnet_temporal. Both sides see the same pictures; the measurement's pose comes from its
own evidence through the same solver. Stress settings, all reproducible; frames 20 to 29 of every 50 are
degraded:

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
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from kfnet_temporal.common.labels import labels_at
from kfnet_temporal.estimator import TemporalEstimator

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.evaluation.metrics import NEES_95, nees
from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.pipeline import Pipeline
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


def coordinate_errors(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    error = np.linalg.norm(points - labels, axis=1)
    return error[np.isfinite(error)]


def measure(pipeline: Pipeline, dataset: Dataset, stress: Stress) -> dict[str, float]:
    """One row of the table."""
    estimator = pipeline.estimator
    assert isinstance(estimator, TemporalEstimator)
    poses: dict[str, list[tuple[float, float]]] = {"measured": [], "filtered": []}
    errors: dict[str, list[np.ndarray]] = {"measured": [], "filtered": []}
    normalised: dict[str, list[float]] = {"measured": [], "filtered": []}
    nis, seconds, bad, cuts, memory = [], [], [], [], []
    previous = None
    for query, degraded, cut in frames(dataset, stress):
        if previous is None or query.sequence != previous:
            estimator.start_sequence()
        previous = query.sequence
        begin = time.perf_counter()
        evidence = estimator.measurement.estimate(query)
        measured_at = time.perf_counter()
        found = pipeline.solver.solve(evidence, query.camera, pipeline.runtime)
        resumed = time.perf_counter()
        filtered = estimator.filtered(query, evidence)
        pose = pipeline.solver.solve(filtered, query.camera, pipeline.runtime)
        seconds.append(measured_at - begin + time.perf_counter() - resumed)
        assert estimator.shown is not None
        step = estimator.shown[1]
        nis.append(step.accepted_nis().numpy())
        poses["measured"].append(pose_error(found, query))
        poses["filtered"].append(pose_error(pose, query))
        normalised["measured"].append(normalised_error(found, query))
        normalised["filtered"].append(normalised_error(pose, query))
        bad.append(degraded)
        cuts.append(cut)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        for name, state in (("measured", step.measured), ("filtered", step.posterior)):
            known = state.known.flatten().numpy()
            points = state.mean.flatten(1).T.numpy()[known] + estimator.origin
            pixels = estimator._grid(query).pixels[known]
            errors[name].append(coordinate_errors(points, labels_at(query, pixels)))
    row: dict[str, float] = {"frames": len(bad)}
    for name in ("measured", "filtered"):
        metres, degrees = np.array(poses[name]).T
        good = (metres < 0.10) & (degrees < 5)
        every = np.concatenate(errors[name])
        row |= {
            f"{name} coordinates mean cm": 100 * float(every.mean()),
            f"{name} coordinates median cm": 100 * float(np.median(every)),
            f"{name} pose median cm": 100 * float(np.median(metres)),
            f"{name} pose p90 cm": 100 * float(np.quantile(metres, 0.9, method="lower")),
            f"{name} 10cm/5deg %": 100 * float(good.mean()),
            f"{name} in 95 % region, %": 100 * float(np.mean(np.array(normalised[name]) < NEES_95)),
        }
        if any(bad):
            row[f"{name} 10cm/5deg % of degraded"] = 100 * float(good[np.array(bad)].mean())
        if any(cuts):
            lengths = []
            for start in np.flatnonzero(cuts):
                after = good[start : start + PERIOD]
                lengths.append(int(np.argmax(after)) if after.any() else PERIOD)
            row[f"{name} frames lost after a cut, most"] = float(max(lengths))
    accepted = np.concatenate(nis)
    row["nis of accepted, mean"] = float(accepted.mean()) if len(accepted) else float("nan")
    row["query ms, median"] = 1000 * float(np.median(seconds))
    row["memory growth MB, second half"] = memory[-1] - memory[len(memory) // 2]
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
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = Pipeline.from_map(arguments.map, runtime=Runtime(threads=arguments.threads))
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
        rows[setting] = measure(pipeline, dataset, stress)
        print(setting, flush=True)
        for name, value in rows[setting].items():
            print(f"  {name:45s}{value:10.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

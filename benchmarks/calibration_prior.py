"""What calibrations of maps have in common: a pool of maps of many places, and the prior that fits it.

    python benchmarks/calibration_prior.py collect --data DIR --pool POOL [--own SCENE ...]
    python benchmarks/calibration_prior.py judge --pool POOL

`collect` maps parts of every place by two methods and asks each map for images that it has not seen, near
and far, for photographs of other places and for pictures that no camera took. What they were localized as,
without any calibration, is kept in POOL, one file a map, so that it can be stopped and run again. Of data
packs only training images are used; `--own` takes further COLMAP models.

`judge` calibrates every map by the prior of `reloc_core.calibration.prior` and by ones in which a constant
is larger or smaller, and says for each place how well its maps' scores and covariances held, and which
prior the other places alone would choose.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from calibration import impossible, no_places

from reloc_core import Camera, Dataset, Frame, Localization, Pipeline, Query, Runtime, Status, train
from reloc_core.calibration import CalibrationConfig, Witnesses, fit_calibration, hold_out
from reloc_core.calibration.config import RIGHT_DEG, RIGHT_DEPTHS
from reloc_core.calibration.prior import PRIOR, Prior
from reloc_core.config import build
from reloc_core.datasets.subset import Subset
from reloc_core.engine import run_queries
from reloc_core.engine.training import ask
from reloc_core.evaluation import nees, pose_errors
from reloc_core.evaluation.metrics import NEES_95
from reloc_core.testing import start_run

ASKED, SEED, CONFIG = 40, 42, CalibrationConfig()
ROOMS = {"width": 320, "height": 240, "depth": False, "cache": True, "train_frames": 200}


@dataclass(frozen=True)
class Entry:
    """What a map said: to those that its calibration is learned from, and to those that it is asked."""

    place: str
    name: str
    method: str
    witnesses: Witnesses
    asked: list[tuple[Frame, Localization]]
    others: list[tuple[str, Localization]]

    def text(self) -> str:
        """As JSON: of results only what a calibration reads."""
        w = self.witnesses
        stored = {
            "place": self.place, "name": self.name, "method": self.method,
            "held": [(_of_frame(f), _of_result(r)) for f, r in w.held],
            "foreign": [_of_result(r) for r in w.foreign],
            "mapped": w.mapped.tolist(), "depth": w.depth, "own": w.own, "memorized": w.memorized,
            "asked": [(_of_frame(f), _of_result(r)) for f, r in self.asked],
            "others": [(n, _of_result(r)) for n, r in self.others],
        }  # fmt: skip
        return json.dumps(stored)

    @classmethod
    def of(cls, text: str) -> Entry:
        """Undo `text`."""
        s = json.loads(text)
        held, asked = ([(_frame(f), _result(r)) for f, r in s[k]] for k in ("held", "asked"))
        foreign = [_result(r) for r in s["foreign"]]
        mapped = np.array(s["mapped"], np.float64)
        witnesses = Witnesses(held, foreign, mapped, s["depth"], s["own"], s["memorized"])
        others = [(n, _result(r)) for n, r in s["others"]]
        return cls(s["place"], s["name"], s["method"], witnesses, asked, others)


def _of_frame(frame: Frame) -> dict[str, Any]:
    return {
        "name": frame.name,
        "camera": asdict(frame.camera),
        "pose": np.asarray(frame.world_from_cam).tolist(),
    }


def _frame(stored: dict[str, Any]) -> Frame:
    camera = stored["camera"]
    camera = Camera(**(camera | {"params": tuple(camera["params"])}))
    return Frame(stored["name"], camera, np.array(stored["pose"], np.float64))


def _of_result(found: Localization) -> dict[str, Any]:
    stored = {n: getattr(found, n) for n in ("reason", "num_inliers", "score")}
    stored |= {"status": found.status.value, "support": dict(found.support)}
    for name in ("world_from_cam", "covariance"):
        array = getattr(found, name)
        stored[name] = None if array is None else array.tolist()
    return stored


def _result(stored: dict[str, Any]) -> Localization:
    arrays = {
        name: None if stored[name] is None else np.array(stored[name], np.float64)
        for name in ("world_from_cam", "covariance")
    }
    return Localization(**(stored | arrays | {"status": Status(stored["status"])}))


def read(kind: str, **options: object) -> Dataset:
    """A dataset by its name."""
    return build({"_target_": kind, **options}, "dataset")


def places(data: Path, own: list[Path]) -> dict[str, Dataset]:
    """Training images of every place; rendered rooms share their furniture and are one place."""
    found = {f"synthetic:{s}": read("synthetic", seed=s, **ROOMS) for s in (11, 12, 13, 14)}
    found["redkitchen"] = read("ace", root=str(data / "redkitchen_seq01"), depth="none")
    found["shelf"] = read("ace", root=str(data / "shelf_seq"), depth="none")
    found["fox"] = read("transforms", root=str(data / "fox"))
    found |= {name: read("colmap", root=str(data / name)) for name in ("lund", "brighton")}
    return found | {p.name: read("colmap", root=str(p), split="all", holdout=0) for p in own}


def parts(name: str, images: Dataset) -> Iterator[tuple[str, Dataset, Dataset]]:
    """Parts of a place to map, by name, and the images to ask them for."""
    count, every = len(images), np.arange(len(images))
    mapped = {f"fold {k}": every[every % 4 != k] for k in range(3 if count < 60 else 0)}
    mapped |= {"half": every[::2]} if count >= 20 else {}
    if count >= 100:
        mapped["first third"] = every[: count // 3]
        for size in (20, 50, min(200, count // 3)):
            mapped[str(size)] = np.unique(np.linspace(0, count - 1, size).astype(int))
            mapped[f"{size} of first"] = np.unique(
                np.linspace(0, min(count // 3, 200) - 1, size).astype(int)
            )
    if count > 300:
        mapped["200 last"], mapped["with gaps"] = every[-200:], every[(every % 230) < 180]
    for label, chosen in mapped.items():
        rest = np.setdiff1d(every, chosen)
        if "first" in label:
            rest = rest[rest > chosen[-1]]
        asked: Dataset = Subset(
            images, rest[np.linspace(0, len(rest) - 1, min(ASKED, len(rest))).astype(int)]
        )
        if name.startswith("synthetic") and "first" not in label:  # a walk of its own
            seed = int(name.partition(":")[2])
            asked = read("synthetic", seed=seed, split="test", test_frames=ASKED, **ROOMS)
        yield label, Subset(images, chosen), asked


def ask_map(method: str, images: Dataset, asked: Dataset, strangers: list[Query]) -> tuple:
    """Make a map and ask it: what an `Entry` keeps."""
    held = hold_out(images, CONFIG, SEED)
    with tempfile.TemporaryDirectory() as folder:
        where, off = Path(folder, "map"), CalibrationConfig(enabled=False)
        train(Subset.without(images, held), where, method, threads=1, seed=SEED, calibration=off)
        pipeline = Pipeline.from_map(where, runtime=Runtime(threads=1, seed=SEED))
        run = start_run(Path(folder, "run"), method, seed=SEED)
        witnesses = ask(pipeline, images, held, run, CONFIG)
        boards = list(no_places(images.frames[0].camera))[::12]
        answers, others = (
            [(o.frame, o.localization) for o in run_queries(pipeline, source, observed=False)]
            for source in (asked, [*strangers, *impossible(asked, 3), *boards])
        )
    return witnesses, answers, [(frame.name, found) for frame, found in others]


def small(query: Query) -> Query:
    """An image of 640 pixels at most, without a pose, to ask other places for."""
    share = min(1.0, 640 / max(query.camera.width, query.camera.height))
    size = round(share * query.camera.width), round(share * query.camera.height)
    image = cv2.resize(query.image, size, interpolation=cv2.INTER_AREA)
    return Query(query.name, Camera.pinhole(query.camera.fx * share, *size), image=image)


def collect(data: Path, own: list[Path], pool: Path) -> None:
    """Ask every map that is not in the pool yet."""
    pool.mkdir(parents=True, exist_ok=True)
    known = places(data, own)
    some = {n: [small(d[int(i)]) for i in np.linspace(0, len(d) - 1, 3)] for n, d in known.items()}
    for name, images in known.items():
        home = name.partition(":")[0]
        strangers = [q for n, found in some.items() if n.partition(":")[0] != home for q in found]
        for label, mapped, asked in parts(name, images):
            both = label in ("fold 0", "50", "200 of first", "first third", "half")
            for method in ("landmarks", "sfm_matching") if both else ("landmarks",):
                path = pool / f"{name}-{label}-{method}.json".replace(" ", "-").replace(":", "-")
                if not path.exists():
                    told = ask_map(method, mapped, asked, strangers)
                    entry = Entry(home, f"{name} {label}", method, *told)
                    (pool / "part").write_text(entry.text(), "utf-8")
                    (pool / "part").rename(path)
                    print(f"{path.name}: {len(mapped)} mapped, {len(asked)} asked", flush=True)


def judge(entries: list[Entry], prior: Prior) -> dict[str, np.ndarray]:
    """By place: log loss of scores (3 at most), of foreign ones, surprise of errors; NEES, share in 95 %.

    And counts: foreign pictures localized, at 0.7 or more, all; right poses refused, all that are asked.
    """
    table: dict[str, list[list[float]]] = {}
    for entry in entries:
        calibration = fit_calibration(entry.witnesses, CONFIG, prior)
        loss, surprise, squares, refused = [], [], [], 0
        for frame, found in entry.asked:
            if not found.localized:
                continue
            moved, turned = pose_errors(found.world_from_cam, frame.world_from_cam)
            right = moved <= RIGHT_DEPTHS * found.support["depth"] and turned <= RIGHT_DEG
            judged = calibration.judge(found)
            loss.append(min(-math.log(max(judged.score if right else 1 - judged.score, 1e-9)), 3.0))
            refused += right and not judged.localized
            if judged.localized and right:
                squares.append(nees(judged.world_from_cam, judged.covariance, frame.world_from_cam))
                half = np.linalg.slogdet(judged.covariance)[1] / 2
                surprise.append(7 * math.log1p(squares[-1] / 8) + half)
        wrong = [calibration.judge(found) for _, found in entry.others if found.localized]
        strange = sum(-math.log(max(1 - w.score, 1e-9)) for w in wrong) / max(len(wrong), 5)
        sure = sum(w.localized and w.score >= 0.7 for w in wrong)
        means = [float(np.mean(v)) if v else math.nan for v in (loss, surprise, squares)]
        inside = float(np.mean(np.array(squares) < NEES_95)) if squares else math.nan
        counts = [sum(w.localized for w in wrong), sure, len(entry.others), refused, len(loss)]
        table.setdefault(entry.place, []).append([means[0], strange, *means[1:], inside, *counts])
    return {
        place: np.concatenate(
            [np.nanmean(np.array(rows)[:, :5], 0), np.sum(np.array(rows)[:, 5:], 0)]
        )
        for place, rows in table.items()
    }


def variations() -> Iterator[tuple[str, Prior]]:
    """The prior, and ones in which a constant is larger or smaller."""
    yield "as it is", PRIOR
    for factor in (0.7, 1.4):
        for name in ("bias", "foreign", "free", "strength", "other", "own_wider", "worth"):
            yield f"{name} x {factor}", replace(PRIOR, **{name: factor * getattr(PRIOR, name)})
        for name in ("scale", "floor", "growth", "doubt"):
            spread = replace(PRIOR.spread, **{name: factor * getattr(PRIOR.spread, name)})
            yield f"{name} x {factor}", replace(PRIOR, spread=spread)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["collect", "judge"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--own", type=Path, nargs="*", default=[])
    parser.add_argument("--pool", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.step == "collect":
        collect(arguments.data, arguments.own, arguments.pool)
        return
    entries = [Entry.of(p.read_text("utf-8")) for p in sorted(arguments.pool.glob("*.json"))]
    tables = {}
    for name, prior in variations():
        tables[name] = judge(entries, prior)
        scores, foreign, errors, squared, inside = np.mean(list(tables[name].values()), 0)[:5]
        print(f"{name:16s} loss of scores {scores:.3f}, of foreign {foreign:.3f}, surprise {errors:.2f}, "
              f"NEES {squared:.1f}, in 95 % {inside:.3f}", flush=True)  # fmt: skip
    for place, row in tables["as it is"].items():
        cost = {n: sum(t[p][:3].sum() for p in t if p != place) for n, t in tables.items()}
        best = min(cost, key=lambda n: cost[n])
        told = "NEES {:.1f}, in 95 % {:.3f}, foreign {:.0f} ({:.0f}) of {:.0f}, refused {:.0f} of {:.0f}"
        print(f"{place:14s}", told.format(*row[3:]), "| the others choose:", best)


if __name__ == "__main__":
    main()

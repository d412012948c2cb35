"""What a component does on the embedded room, as a few lines of text.

    python -m reloc_core.testing.room_result INTERFACE COMPONENT [CONFORMANCE_TESTS]

`reloc plugin check` shows it below the conformance tests. The suites in the file of conformance tests
say how the component is trained and, for a dataset, how the room is written in its format; without the
file they are taken as they come. Estimators have `reloc demo`.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.errors import RelocError
from reloc_core.geometry import inverse, lift, transform
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.testing.common import ComponentConformance
from reloc_core.testing.dataset import DatasetConformance
from reloc_core.testing.refiner import RefinerConformance, RefinerContract
from reloc_core.testing.solver import SolverConformance
from reloc_core.testing.tools import perturbed, pose_error, room
from reloc_core.types import (
    Correspondences,
    Evidence,
    PosePrior,
    Query,
    RelativePoses,
)

_QUERIES = 20
_BASES = {
    "dataset": DatasetConformance,
    "refiner": RefinerContract,
    "solver": SolverConformance,
}
_DEFAULTS = {**_BASES, "refiner": RefinerConformance}


def suite_of(interface: str, name: str, tests: Path | None) -> type[Any]:
    """The conformance suite of a component: the one in its tests, else the suite as it comes."""
    for found in _suites(tests) if tests is not None else ():
        if issubclass(found, _BASES[interface]) and getattr(found, "component", None) == name:
            return found
    return type(f"Test_{name}", (_DEFAULTS[interface],), {"component": name})


def _suites(tests: Path) -> Iterator[type[ComponentConformance]]:
    spec = importlib.util.spec_from_file_location("reloc_conformance_tests", tests)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, ComponentConformance):
            yield value


# ------------------------------------------------------------------------------------------ solvers


def room_evidence(
    kind: type[Evidence], query: Query, mapped: Dataset, seed: int, outliers: float
) -> Evidence:
    """What a good estimator would say about an image of the room.

    Args:
        kind: of the evidence.
        query: with depth and pose.
        mapped: images that relative poses refer to.
        seed: random.
        outliers: share of matches or references that are wrong.

    Returns:
        300 matches with one pixel of noise; or poses relative to the 8 nearest mapped images, 2 cm and
        0.5 degrees off; or a pose as far off.
    """
    rng = np.random.default_rng([seed, 2])
    pose, depth = query.world_from_cam, query.depth
    assert pose is not None
    assert depth is not None
    if kind is PosePrior:
        return PosePrior(perturbed(pose, 2, 0.5, seed), np.diag([1e-4] * 3 + [4e-4] * 3))
    if kind is RelativePoses:
        poses = np.stack([f.world_from_cam for f in mapped.frames if f.world_from_cam is not None])
        nearest = np.argsort(np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1))[:8]
        relative = [inverse(poses[i]) @ perturbed(pose, 2, 0.5, int(i)) for i in nearest]
        for i in range(round(outliers * len(relative))):
            relative[i] = perturbed(relative[i], 200, 60, i)
        names = tuple(mapped.frames[i].name for i in nearest)
        return RelativePoses(poses[nearest], np.stack(relative), np.full(8, 0.9), True, names)
    row, column = (rng.integers(0, size, 300) for size in depth.shape)
    pixels = np.stack([column, row], 1).astype(float)
    points = transform(pose, lift(query.camera, pixels, depth[row, column]))
    wrong = round(outliers * 300)
    points[:wrong] = rng.permutation(points)[:wrong]
    return Correspondences(pixels + rng.standard_normal((300, 2)), points, kind="sparse")


def solver_lines(suite: SolverConformance) -> list[str]:
    """Error of the solver with evidence of the room's own depth and poses."""
    solver, queries, mapped = suite.solver(), room("test", _QUERIES), room("train", 60)
    lines = []
    for kind in suite.kinds():
        errors = []
        for seed, query in enumerate(queries):
            evidence = room_evidence(kind, query, mapped, seed, suite.outliers)
            found = solver.solve(evidence, query.camera, Runtime(threads=1))
            if found.world_from_cam is not None and query.world_from_cam is not None:
                errors.append(pose_error(found.world_from_cam, query.world_from_cam))
        wrong = f", {100 * suite.outliers:.0f} % of it wrong" if kind is not PosePrior else ""
        lines.append(f"{kind.kind_name} with noise{wrong}: {_summary(errors, len(queries))}")
    return lines


# ----------------------------------------------------------------------------- refiners and datasets


def refiner_lines(suite: RefinerContract) -> list[str]:
    """Error before and after the refiner, from poses that are moved as in its suite."""
    cls = type(suite)
    cls.query_frames = _QUERIES
    with tempfile.TemporaryDirectory() as folder:
        trained = cls.train(Path(folder))
        before: list[tuple[float, float]] = []
        after: list[tuple[float, float]] = []
        for seed, query in enumerate(trained.queries):
            start = suite.start(query, seed)
            found = trained.refiner.refine(suite.query(query), start)
            for errors, pose in ((before, start.world_from_cam), (after, found.world_from_cam)):
                if pose is not None and query.world_from_cam is not None:
                    errors.append(pose_error(pose, query.world_from_cam))
    return [f"before: {_summary(before, _QUERIES)}", f"after:  {_summary(after, _QUERIES)}"]


def dataset_lines(suite: DatasetConformance) -> list[str]:
    """The room written in the dataset's format and read again: what became of it."""
    from reloc_core.config import TARGET, build

    scene = room("train", 40)
    with tempfile.TemporaryDirectory() as folder:
        options = {**suite.options, **suite.write(Path(folder) / "scene", scene)}
        read: Dataset = build({TARGET: suite.component, **options}, "dataset")
        poses, pixels, depths = [], [], []
        for found, truth in zip(read, scene, strict=True):
            if found.world_from_cam is not None and truth.world_from_cam is not None:
                poses.append(pose_error(found.world_from_cam, truth.world_from_cam))
            pixels.append(np.abs(found.image.astype(int) - truth.image).mean())
            if found.depth is not None and truth.depth is not None:
                depths.append(1000 * float(np.abs(found.depth - truth.depth).max()))
    lines = [f"poses:  {_summary(poses, len(scene))}", f"pixels: {np.mean(pixels):.2g} of 255 off"]
    return [*lines, f"depth:  {max(depths):.2g} mm off at most" if depths else "depth:  none"]


def _summary(errors: Sequence[tuple[float, float]], count: int) -> str:
    if not errors:
        return f"none of {count}"
    centimetres, degrees = np.median(np.array(errors, np.float64), axis=0)
    return f"{len(errors)} of {count}, median error {centimetres:.3g} cm, {degrees:.3g}°"


_LINES: dict[str, Callable[[Any], list[str]]] = {
    "dataset": dataset_lines,
    "refiner": refiner_lines,
    "solver": solver_lines,
}


def main(arguments: Sequence[str]) -> int:
    """Print the lines; exit code 2 and the reason where there are none."""
    interface, name, *tests = arguments
    try:
        suite = suite_of(interface, name, Path(tests[0]) if tests else None)()
        lines = _LINES[interface](suite)
    except RelocError as error:
        print(f"{name}: {error}")
        return 2
    print("\n".join(f"  {line}" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Conformance of solvers, against problems whose answer is known by construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from reloc_core.config import TARGET, build
from reloc_core.errors import RelocError
from reloc_core.geometry import inverse, lift, so3_exp, transform
from reloc_core.interfaces import Runtime, Solver
from reloc_core.testing.common import (
    ComponentConformance,
    check_honest_covariances,
    check_localization,
)
from reloc_core.testing.tools import difference, drawn, pose_error
from reloc_core.types import (
    Camera,
    Correspondences,
    Evidence,
    Float64Array,
    PosePrior,
    RelativePoses,
)

_CAMERA = Camera("OPENCV", 640, 480, (520.0, 525.0, 322.0, 237.0, 0.05, -0.08, 1e-3, -5e-4))


def known_pose(seed: int) -> Float64Array:
    """A random pose (4, 4), a few metres from the origin."""
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    axis = rng.standard_normal(3)
    pose[:3, :3] = so3_exp(axis / np.linalg.norm(axis) * rng.uniform(0, np.pi))
    pose[:3, 3] = rng.uniform(-3, 3, 3)
    return pose


def exact_evidence(
    kind: type[Evidence], camera: Camera, seed: int, outliers: float = 0.0
) -> tuple[Evidence, Float64Array]:
    """Evidence without noise and the pose (4, 4) that it tells.

    Args:
        kind: of the evidence.
        camera: of the query.
        seed: random.
        outliers: share of matches or reference poses that are wrong altogether.
    """
    rng = np.random.default_rng([seed, 1])
    pose = known_pose(seed)
    if kind is PosePrior:
        return PosePrior(pose, np.diag([1e-6] * 3 + [1e-4] * 3)), pose
    if kind is RelativePoses:
        count = 12
        references = np.stack([known_pose(100 * seed + i) for i in range(count)])
        references[:, :3, 3] = pose[:3, 3] + rng.uniform(-1, 1, (count, 3))
        relative = np.stack([inverse(r) @ pose for r in references])
        for i in range(round(outliers * count)):
            relative[i] = known_pose(10_000 + 100 * seed + i)
        names = tuple(f"reference {i}" for i in range(count))
        return RelativePoses(references, relative, np.full(count, 0.9), True, names), pose
    count = 300
    pixels = rng.uniform([0, 0], [camera.width - 1, camera.height - 1], (count, 2))
    points = transform(pose, lift(camera, pixels, rng.uniform(1, 5, count)))
    wrong = round(outliers * count)
    points[:wrong] = pose[:3, 3] + rng.uniform(-4, 4, (wrong, 3))
    return Correspondences(pixels, points, kind="sparse"), pose


def with_noise(evidence: Evidence, seed: int) -> Evidence:
    """Exact evidence with Gaussian errors: a pixel, or those of the covariances that it then carries."""
    rng = np.random.default_rng([seed, 2])
    if isinstance(evidence, Correspondences):
        return replace(
            evidence, points2d=evidence.points2d + rng.normal(size=(len(evidence.points2d), 2))
        )
    covariance = np.diag([0.01**2] * 3 + [0.05**2] * 3)
    if isinstance(evidence, PosePrior):
        return PosePrior(drawn(evidence.world_from_cam, covariance, rng), covariance)
    assert isinstance(evidence, RelativePoses)
    moved = np.stack([drawn(pose, covariance, rng) for pose in evidence.ref_from_cam])
    given = np.stack([covariance] * len(moved))
    return replace(evidence, ref_from_cam=moved, covariances=given, correlation=0.0)


def broken_evidence(kind: type[Evidence]) -> dict[str, Evidence]:
    """Evidence that tells no pose."""
    nan = np.full((4, 4), np.nan)
    if kind is PosePrior:
        return {"nan": PosePrior(nan), "not rigid": PosePrior(np.ones((4, 4)))}
    if kind is RelativePoses:
        same = np.stack([np.eye(4)] * 3)
        return {
            "empty": RelativePoses(np.zeros((0, 4, 4)), np.zeros((0, 4, 4))),
            "nan": RelativePoses(same, np.stack([nan] * 3)),
        }
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 400, (50, 2))
    return {
        "empty": Correspondences(np.zeros((0, 2)), np.zeros((0, 3)), kind="sparse"),
        "three points": Correspondences(pixels[:3], rng.uniform(1, 2, (3, 3)), kind="sparse"),
        "nan": Correspondences(pixels, np.full((50, 3), np.nan), kind="sparse"),
        "one point": Correspondences(pixels, np.ones((50, 3)), kind="sparse"),
        "a line": Correspondences(
            pixels, np.linspace(0, 1, 50)[:, None] * np.ones(3), kind="sparse"
        ),
        "infinite": Correspondences(pixels, np.full((50, 3), np.inf), kind="sparse"),
    }


class SolverConformance(ComponentConformance):
    """Holds a solver to its promises.

    Attributes:
        tolerance: metres and radians by which the answer to an exact problem may be off.
        outliers: share of wrong evidence that must not matter; 0 for solvers that trust it all.
        outlier_cm: largest error with outliers, in centimetres.
        covariance_slack: by which factor typical squared errors may be off from the covariances.
        block_slack: by which factor rotation and translation may be off from each other in that.
        camera: of the problems; set a pinhole camera for solvers that know no distortion.
    """

    interface: ClassVar[str] = "solver"
    tolerance: ClassVar[float] = 1e-4
    outliers: ClassVar[float] = 0.3
    outlier_cm: ClassVar[float] = 1.0
    covariance_slack: ClassVar[float] = 20.0
    block_slack: ClassVar[float] = 5.0
    camera: ClassVar[Camera] = _CAMERA

    def solver(self) -> Solver:
        """A new solver."""
        built: Solver = build({TARGET: self.component, **self.options}, "solver")
        return built

    def kinds(self) -> tuple[type[Evidence], ...]:
        """The kinds of evidence to try."""
        return self.solver().accepts

    def evidence(
        self, kind: type[Evidence], seed: int, outliers: float = 0.0
    ) -> tuple[Evidence, Float64Array]:
        """A problem and its pose; override it for solvers that need more, such as depth."""
        return exact_evidence(kind, self.camera, seed, outliers)

    def test_exact_evidence_gives_the_exact_pose(self) -> None:
        solver = self.solver()
        for kind in self.kinds():
            for seed in range(5):
                evidence, truth = self.evidence(kind, seed)
                found = solver.solve(evidence, self.camera, Runtime(threads=1))
                check_localization(found)
                assert found.localized, found.reason
                assert found.world_from_cam is not None
                np.testing.assert_allclose(
                    inverse(truth) @ found.world_from_cam, np.eye(4), atol=self.tolerance
                )

    def test_covariances_say_how_large_the_errors_are(self) -> None:
        """With noise of known size: neither far too sure nor far too modest, in both halves."""
        solver, silent = self.solver(), []
        for kind in self.kinds():
            found, truths = [], []
            for seed in range(24):
                evidence, truth = self.evidence(kind, seed)
                noisy = with_noise(evidence, seed)
                found.append(solver.solve(noisy, self.camera, Runtime(threads=1)))
                truths.append(truth)
            silent.append(all(localization.covariance is None for localization in found))
            if not silent[-1]:
                check_honest_covariances(found, truths, self.covariance_slack, self.block_slack)
        if all(silent):
            pytest.skip("says no covariances")

    def test_outliers_do_not_matter(self) -> None:
        if not self.outliers:
            pytest.skip("outliers = 0: this solver trusts all evidence")
        solver = self.solver()
        for kind in self.kinds():
            if kind is PosePrior:
                continue
            evidence, truth = self.evidence(kind, 7, self.outliers)
            found = solver.solve(evidence, self.camera, Runtime(threads=1))
            assert found.world_from_cam is not None, found.reason
            assert pose_error(found.world_from_cam, truth)[0] <= self.outlier_cm

    def test_same_seed_same_pose_for_any_number_of_threads(self) -> None:
        for kind in self.kinds():
            evidence, _ = self.evidence(kind, 3, self.outliers)
            found = [
                self.solver().solve(evidence, self.camera, Runtime(threads=threads, seed=5))
                for threads in (1, 1, 2, 4)
            ]
            for other in found[1:]:
                assert other.status == found[0].status
                np.testing.assert_array_equal(other.world_from_cam, found[0].world_from_cam)
                assert other.score == found[0].score

    def test_batch_equals_one_by_one(self) -> None:
        solver = self.solver()
        for kind in self.kinds():
            problems = [self.evidence(kind, seed, self.outliers)[0] for seed in range(4)]
            problems.insert(1, next(iter(broken_evidence(kind).values())))
            cameras = [self.camera] * len(problems)
            runtime = Runtime(threads=2)
            together = solver.solve_batch(problems, cameras, runtime)
            assert len(together) == len(problems)
            for problem, batched in zip(problems, together, strict=True):
                alone = solver.solve(problem, self.camera, runtime)
                assert difference(alone, batched) < 1e-9

    def test_broken_evidence_is_not_localized(self) -> None:
        solver = self.solver()
        for kind in self.kinds():
            for name, evidence in broken_evidence(kind).items():
                found = solver.solve(evidence, self.camera, Runtime(threads=1))
                check_localization(found)
                assert not found.localized, name

    def test_other_evidence_is_refused(self) -> None:
        solver = self.solver()
        for kind in (Correspondences, RelativePoses, PosePrior):
            if kind not in solver.accepts:
                evidence, _ = exact_evidence(kind, self.camera, 0)
                with pytest.raises(RelocError):
                    solver.solve(evidence, self.camera, Runtime(threads=1))

    def test_evidence_is_left_as_it_was(self) -> None:
        for kind in self.kinds():
            evidence, _ = self.evidence(kind, 2)
            arrays = _arrays(evidence)
            before = {name: array.copy() for name, array in arrays.items()}
            self.solver().solve(evidence, self.camera, Runtime(threads=1))
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, before[name])

    def test_single_precision_is_good_enough(self) -> None:
        for kind in self.kinds():
            if kind is not Correspondences:
                continue
            evidence, truth = self.evidence(kind, 4)
            narrow: dict[str, Any] = {n: a.astype(np.float32) for n, a in _arrays(evidence).items()}
            changed: Any = replace(evidence, **narrow)
            found = self.solver().solve(changed, self.camera, Runtime(threads=1))
            assert found.world_from_cam is not None, found.reason
            assert pose_error(found.world_from_cam, truth)[0] < 0.1


def _arrays(evidence: Evidence) -> Mapping[str, np.ndarray]:
    values = {field.name: getattr(evidence, field.name) for field in fields(evidence)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

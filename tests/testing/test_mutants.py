"""The conformance suites catch components that are wrong on purpose, and pass the same ones unspoilt."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from reloc_core.config import build
from reloc_core.errors import InputError
from reloc_core.geometry import inverse
from reloc_core.interfaces import Refiner, Solver
from reloc_core.testing import (
    DatasetConformance,
    EstimatorConformance,
    RefinerContract,
    SolverConformance,
    room,
    write_ace,
)
from reloc_core.testing.tools import drawn
from reloc_core.types import Localization, Status

COVARIANCE = np.diag([0.002**2] * 3 + [0.01**2] * 3)
SWAP = np.roll(np.arange(6), 3)
SPOILT = {
    "5000 times": lambda c: 5000 * c,
    "a hundred-millionth": lambda c: 1e-8 * c,
    "rotation and translation swapped": lambda c: c[np.ix_(SWAP, SWAP)],
}
spoilt = pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
CAUGHT = pytest.raises(AssertionError, match="squared errors|rotation against")


def honest(truth, seed, spoil=lambda c: c):
    """A localization that is off by a draw of its covariance, before that is spoilt."""
    pose = truth @ inverse(drawn(np.eye(4), COVARIANCE, np.random.default_rng(seed)))
    return Localization(
        Status.LOCALIZED,
        world_from_cam=pose,
        covariance=spoil(COVARIANCE),
        score=0.9,
        num_inliers=9,
    )


# ------------------------------------------------------------------------------------ covariances


class Spoilt(Solver):
    """A solver with another's poses and a spoilt covariance."""

    def __init__(self, solver, spoil):
        self.solver, self.spoil, self.accepts = solver, spoil, solver.accepts

    def solve(self, evidence, camera, runtime):
        found = self.solver.solve(evidence, camera, runtime)
        return replace(found, covariance=self.spoil(found.covariance))


@pytest.mark.parametrize("component", ["pnp", "prior", "averaging"])
@spoilt
def test_covariances_of_solvers(component, spoil):
    suite = SolverConformance()
    suite.component = component
    suite.test_covariances_say_how_large_the_errors_are()
    built = build({"_target_": component}, "solver")
    suite.solver = lambda: Spoilt(built, spoil)
    with CAUGHT:
        suite.test_covariances_say_how_large_the_errors_are()


@spoilt
def test_covariances_of_estimators(spoil):
    suite, queries = EstimatorConformance(), room("test", 6)
    suite.component = "toy"
    suite.query = lambda query: query

    def trained(spoil):
        seeds = iter(range(100))
        pipeline = SimpleNamespace(
            start_sequence=lambda: None,
            localize=lambda query: honest(query.world_from_cam, next(seeds), spoil),
        )
        return SimpleNamespace(pipeline=pipeline, queries=queries)

    suite.test_covariances_say_how_large_the_errors_are(trained(lambda c: c))
    with CAUGHT:
        suite.test_covariances_say_how_large_the_errors_are(trained(spoil))


class Perfect(Refiner):
    """Knows the true poses, but for what its covariance says."""

    def __init__(self, queries, spoil=lambda c: c):
        self.truths = {query.name: query.world_from_cam for query in queries}
        self.spoil = spoil

    def refine(self, query, localization, evidence=None):
        return honest(self.truths[query.name], sum(query.name.encode()), self.spoil)


@spoilt
def test_covariances_of_refiners(spoil, component_that_requires):
    suite, queries = RefinerContract(), room("test", 5)
    suite.described = component_that_requires()

    def trained(spoil):
        return SimpleNamespace(refiner=Perfect(queries, spoil), queries=queries)

    suite.test_covariances_say_how_large_the_errors_are(trained(lambda c: c))
    with CAUGHT:
        suite.test_covariances_say_how_large_the_errors_are(trained(spoil))


# ---------------------------------------------------------------------------------- missing input


@pytest.fixture
def component_that_requires():
    return lambda *what: lambda: SimpleNamespace(requires=what)


class Careful(Perfect):
    """Refuses a query without the depth that it requires."""

    def refine(self, query, localization, evidence=None):
        if query.depth is None:
            raise InputError("needs depth")
        return super().refine(query, localization)


class Idle(Perfect):
    """Leaves a query without the depth that it requires as it was, and says nothing."""

    def refine(self, query, localization, evidence=None):
        return localization if query.depth is None else super().refine(query, localization)


def test_refiner_that_ignores_missing_depth(component_that_requires):
    suite, queries = RefinerContract(), room("test", 2)
    suite.described = component_that_requires("depth")
    trained = SimpleNamespace(refiner=Careful(queries), queries=queries)
    suite.test_missing_depth_is_refused(trained)
    trained.refiner = Idle(queries)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        suite.test_missing_depth_is_refused(trained)


# ----------------------------------------------------------------------- images of other poses


def paired(scene, poses=0, depths=0, images=0):
    """The scene with its poses, depths or images shifted by so many images."""
    queries = list(scene)

    def at(index, shift):
        return queries[(index + shift) % len(queries)]

    class Shifted(type(scene)):
        def __getitem__(self, index):
            query = super().__getitem__(index)
            index %= len(queries)
            return replace(
                query,
                world_from_cam=at(index, poses).world_from_cam,
                depth=at(index, depths).depth,
                image=at(index, images).image,
            )

    changed = Shifted.__new__(Shifted)
    changed.__dict__.update(scene.__dict__)
    return changed


class Ace(DatasetConformance):
    component = "ace"
    frames = 8
    wrong: dict = {}  # noqa: RUF012

    def write(self, folder, scene):
        write_ace(paired(scene, **self.wrong), folder / "train")
        return {"root": str(folder)}


WRONG = {
    "poses of others": {"poses": 1},
    "depths of others": {"depths": 1},
    "images of others": {"images": 1},
    "poses and depths of others": {"poses": 2, "depths": 2},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_datasets_that_pair_images_with_what_is_others(wrong, tmp_path):
    suite = Ace()
    suite.test_reads_what_was_written(tmp_path / "right")
    suite.wrong = wrong
    with pytest.raises(AssertionError, match="paired"):
        suite.test_reads_what_was_written(tmp_path / "wrong")


@pytest.mark.parametrize("wrong", [{"images": 1}, {"poses": 1, "depths": 1}], ids=str)
def test_datasets_that_nobody_wrote(wrong):
    """What is wrong in the files themselves shows in the pixels."""
    suite, scene = DatasetConformance(), Ace().scene()
    suite.test_every_image_has_its_own_pose_and_depth(scene)
    with pytest.raises(AssertionError, match="paired"):
        suite.test_every_image_has_its_own_pose_and_depth(paired(scene, **wrong))

"""Conformance of refiners, on the embedded room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from reloc_core.errors import RelocError
from reloc_core.interfaces import Dataset, Refiner
from reloc_core.maps import Map
from reloc_core.pipeline import load_refiner
from reloc_core.registry import default_registry
from reloc_core.testing.common import (
    MappedConformance,
    check_honest_covariances,
    check_localization,
)
from reloc_core.testing.tools import (
    as_query,
    bad_images,
    difference,
    perturbed,
    pose_error,
    train_map,
    watch_writes,
)
from reloc_core.types import Localization, Query, Status


@dataclass
class TrainedRefiner:
    """A refiner made ready once for all tests of a class.

    Attributes:
        refiner: loaded from its map, or without one.
        queries: images with ground truth.
        map_dir: its map, None where it has none.
        strays: paths that `fit` or `load` wrote to, outside the map.
    """

    refiner: Refiner
    queries: Dataset
    map_dir: Path | None
    strays: list[str]


class RefinerContract(MappedConformance):
    """Holds a refiner to what does not depend on how good it is.

    For refiners that only improve poses after a training of minutes: the suite then trains for seconds,
    and the accuracy is tested elsewhere. It starts from the true poses, moved by a known amount.

    Attributes:
        map_from: "refiner" where the refiner trains a map of its own, the name of an estimator
            whose map it reads, or None where it needs no map.
        estimator_options: of that estimator.
        start_cm: how far the start is from the truth.
        start_deg: the same for the rotation.
    """

    interface: ClassVar[str] = "refiner"
    map_from: ClassVar[str | None] = "refiner"
    estimator_options: ClassVar[Mapping[str, Any]] = {}
    query_frames: ClassVar[int] = 5
    start_cm: ClassVar[float] = 4.0
    start_deg: ClassVar[float] = 1.5

    @classmethod
    def open_refiner(cls, map_dir: Path | None) -> Refiner:
        """The refiner as a pipeline has it."""
        choice = {"name": cls.component, **cls.options}
        scene_map = Map.open(map_dir) if map_dir is not None else None
        if map_dir is not None and cls.map_from == "refiner":
            choice["map_dir"] = str(map_dir)
        return load_refiner(choice, cls.runtime(), default_registry(), scene_map)[1]

    @classmethod
    def train(cls, folder: Path) -> TrainedRefiner:
        """Fit and load; called once per class."""
        registry, map_dir = default_registry(), None
        with watch_writes() as written:
            if cls.map_from is not None:
                map_dir = folder / "map"
                own = cls.map_from == "refiner"
                component = cls.described() if own else registry.get("estimator", cls.map_from)
                options = cls.options if own else cls.estimator_options
                train_map(component, options, cls.train_dataset(), map_dir, cls.runtime())
            refiner = cls.open_refiner(map_dir)
        strays = [p for p in sorted(written) if not Path(p).is_relative_to(folder)]
        return TrainedRefiner(refiner, cls.query_dataset(), map_dir, strays)

    def start(self, query: Query, seed: int, moved: bool = True) -> Localization:
        """A localization near the truth."""
        truth = query.world_from_cam
        assert truth is not None
        pose = perturbed(truth, self.start_cm, self.start_deg, seed) if moved else truth
        std = np.radians(self.start_deg), self.start_cm / 100
        covariance = np.diag([std[0] ** 2] * 3 + [std[1] ** 2] * 3)
        return Localization(
            Status.LOCALIZED, world_from_cam=pose, covariance=covariance, score=0.9, num_inliers=50
        )

    def refine_all(self, trained: TrainedRefiner, moved: bool = True) -> list[Localization]:
        """All queries from their starts."""
        return [
            trained.refiner.refine(self.query(query), self.start(query, seed, moved))
            for seed, query in enumerate(trained.queries)
        ]

    def cost(self, refiner: Refiner, query: Query, localization: Localization) -> float | None:
        """What the refiner minimizes, at a pose; None where it does not say.

        Override it to hold the refiner to ending no higher than it began.
        """
        return None

    def test_answers_are_possible_ones(self, reloc_trained_refiner: TrainedRefiner) -> None:
        for moved in (True, False):
            for found in self.refine_all(reloc_trained_refiner, moved):
                check_localization(found)
                assert found.localized, "a localized query stays localized"

    def test_covariances_say_how_large_the_errors_are(
        self, reloc_trained_refiner: TrainedRefiner
    ) -> None:
        """Neither far too sure nor far too modest, in both halves."""
        truths = [frame.world_from_cam for frame in reloc_trained_refiner.queries.frames]
        check_honest_covariances(
            self.refine_all(reloc_trained_refiner),
            truths,
            self.covariance_slack,
            self.block_slack,
        )

    def test_missing_depth_is_refused(self, reloc_trained_refiner: TrainedRefiner) -> None:
        """What it cannot work without must not turn it into a stage that does nothing."""
        if "depth" not in self.described().requires:
            pytest.skip("requires no depth")
        query = reloc_trained_refiner.queries[0]
        with pytest.raises(RelocError):
            reloc_trained_refiner.refiner.refine(as_query(query, depth=False), self.start(query, 0))

    def test_never_ends_above_its_own_cost(self, reloc_trained_refiner: TrainedRefiner) -> None:
        refiner = reloc_trained_refiner.refiner
        for seed, query in enumerate(reloc_trained_refiner.queries):
            seen, start = self.query(query), self.start(query, seed)
            before = self.cost(refiner, seen, start)
            if before is None:
                pytest.skip("this suite defines no `cost`")
            after = self.cost(refiner, seen, refiner.refine(seen, start))
            assert after is not None
            assert after <= before + 1e-6 * abs(before)

    def test_repeats_itself(self, reloc_trained_refiner: TrainedRefiner) -> None:
        first = self.refine_all(reloc_trained_refiner)
        for a, b in zip(first, self.refine_all(reloc_trained_refiner), strict=True):
            assert difference(a, b) <= self.tolerance

    def test_loading_again_gives_the_same(self, reloc_trained_refiner: TrainedRefiner) -> None:
        query = reloc_trained_refiner.queries[0]
        start = self.start(query, 0)
        again = self.open_refiner(reloc_trained_refiner.map_dir)
        a = reloc_trained_refiner.refiner.refine(self.query(query), start)
        assert difference(a, again.refine(self.query(query), start)) <= self.tolerance

    def test_input_is_left_as_it_was(self, reloc_trained_refiner: TrainedRefiner) -> None:
        query = reloc_trained_refiner.queries[0]
        start, image = self.start(query, 0), query.image.copy()
        assert start.world_from_cam is not None
        pose = start.world_from_cam.copy()
        reloc_trained_refiner.refiner.refine(self.query(query), start)
        np.testing.assert_array_equal(start.world_from_cam, pose)
        np.testing.assert_array_equal(query.image, image)

    def test_bad_images_are_no_exception(self, reloc_trained_refiner: TrainedRefiner) -> None:
        good = reloc_trained_refiner.queries[0]
        for name, query in bad_images(good.camera).items():
            depth = None
            if "depth" in self.described().requires:
                depth = np.zeros(query.image.shape[:2], np.float32)
            bad = Query(name, query.camera, image=query.image, depth=depth)
            check_localization(reloc_trained_refiner.refiner.refine(bad, self.start(good, 0)))

    def test_writes_only_into_its_map(self, reloc_trained_refiner: TrainedRefiner) -> None:
        assert reloc_trained_refiner.strays == [], "fit may only write through run.map"

    def test_needs_a_map_or_says_so(self, reloc_trained_refiner: TrainedRefiner) -> None:
        component = self.described()
        if self.map_from is None:
            assert not component.needs_map
        elif self.map_from == "refiner":
            assert component.needs_map
        else:
            assert self.map_from in component.reads_maps_of
        if component.needs_map:
            from reloc_core.errors import ConfigError

            with pytest.raises(ConfigError, match="needs a map"):
                load_refiner(self.component, self.runtime(), default_registry())


class RefinerConformance(RefinerContract):
    """Holds a refiner to its promises: the contract, and that it makes moved poses better.

    Attributes:
        max_share: the median error afterwards, as a share of the start's.
        max_drift_cm: how far a start at the true pose may end from it.
    """

    max_share: ClassVar[float] = 0.6
    max_drift_cm: ClassVar[float] = 3.0

    def test_improves_poses(self, reloc_trained_refiner: TrainedRefiner) -> None:
        after = []
        for query, found in zip(
            reloc_trained_refiner.queries, self.refine_all(reloc_trained_refiner), strict=True
        ):
            check_localization(found)
            assert found.world_from_cam is not None, "a localized query stays localized"
            assert query.world_from_cam is not None
            after.append(pose_error(found.world_from_cam, query.world_from_cam))
        centimetres, degrees = np.median(after, axis=0)
        assert centimetres <= self.max_share * self.start_cm
        assert degrees <= self.max_share * self.start_deg

    def test_leaves_good_poses_alone(self, reloc_trained_refiner: TrainedRefiner) -> None:
        found = self.refine_all(reloc_trained_refiner, moved=False)
        errors = [
            pose_error(localization.world_from_cam, frame.world_from_cam)[0]
            for localization, frame in zip(found, reloc_trained_refiner.queries.frames, strict=True)
            if localization.world_from_cam is not None and frame.world_from_cam is not None
        ]
        assert len(errors) == len(found)
        assert np.median(errors) <= self.max_drift_cm

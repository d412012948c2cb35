"""Conformance of estimators, on the embedded room."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from reloc_core.composition import compose
from reloc_core.datasets.subset import Subset
from reloc_core.errors import RelocError
from reloc_core.interfaces import Dataset, Estimator
from reloc_core.maps import partial_directory
from reloc_core.pipeline import Pipeline, check_fit, default_solver
from reloc_core.registry import default_registry
from reloc_core.testing.common import (
    MappedConformance,
    check_covariance,
    check_honest_covariances,
    check_localization,
    check_rigid,
)
from reloc_core.testing.tools import (
    bad_images,
    difference,
    pose_error,
    room,
    train_map,
    watch_writes,
)
from reloc_core.types import (
    Correspondences,
    Evidence,
    Localization,
    PosePrior,
    Query,
    RelativePoses,
)


@dataclass
class TrainedEstimator:
    """An estimator fitted once for all tests of a class.

    Attributes:
        fitted: as `fit` left it.
        pipeline: loaded from the map, with the solver of the suite.
        map_dir: the map.
        train: what was mapped.
        queries: images of another walk.
        steps: of progress that `fit` reported.
        strays: paths that `fit` or `load` wrote to, outside the map.
    """

    fitted: Estimator
    pipeline: Pipeline
    map_dir: Path
    train: Dataset
    queries: Dataset
    steps: int
    strays: list[str]


class EstimatorConformance(MappedConformance):
    """Holds an estimator to its promises; trains it twice on the embedded room.

    Attributes:
        solver: name, or config with `_target_`; None for the recommended one.
        consecutive: the queries are neighbouring frames of a video and not spread over the walk.
        max_median_cm: largest median error of the position.
        max_median_deg: largest median error of the rotation.
        min_localized: least share of queries that are localized.
        repeats: whether the same seed gives the same map here, tried where `resumes` is not.
        resumes: whether to interrupt `fit` halfway, run it again and ask for the map of an undisturbed run.
    """

    interface: ClassVar[str] = "estimator"
    solver: ClassVar[str | Mapping[str, Any] | None] = None
    consecutive: ClassVar[bool] = False
    max_median_cm: ClassVar[float] = 5.0
    max_median_deg: ClassVar[float] = 2.0
    min_localized: ClassVar[float] = 0.8
    repeats: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    # --------------------------------------------------------------------------- what to override

    @classmethod
    def query_dataset(cls) -> Dataset:
        """What is localized; with ground truth."""
        if cls.consecutive:
            walk = room("test", 300, cls.width, cls.height)
            return Subset(walk, range(cls.query_frames))
        return super().query_dataset()

    # ------------------------------------------------------------------------------------ helpers

    @classmethod
    def open_map(cls, map_dir: Path) -> Pipeline:
        """A pipeline of this estimator alone."""
        return Pipeline.from_map(map_dir, cls.solver, refiners=[], runtime=cls.runtime())

    @classmethod
    def train(cls, folder: Path) -> TrainedEstimator:
        """Fit, save and load; called once per class."""
        dataset, queries = cls.train_dataset(), cls.query_dataset()
        _limit_torch(cls.threads)
        map_dir = folder / "map"
        with watch_writes() as written:
            fitted, steps = train_map(cls.described(), cls.options, dataset, map_dir, cls.runtime())
            pipeline = cls.open_map(map_dir)
        strays = [p for p in sorted(written) if not Path(p).is_relative_to(folder)]
        assert isinstance(fitted, Estimator)
        return TrainedEstimator(fitted, pipeline, map_dir, dataset, queries, steps, strays)

    def localize_all(self, pipeline: Pipeline, queries: Dataset) -> list[Localization]:
        """All queries as one sequence."""
        pipeline.start_sequence()
        return [pipeline.localize(self.query(q)) for q in queries]

    def assert_same(self, a: list[Localization], b: list[Localization]) -> None:
        """The same poses and the same failures."""
        worst = max((difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
        assert worst <= self.tolerance

    # -------------------------------------------------------------------------------------- tests

    def test_composes(self) -> None:
        registry = default_registry()
        component = self.described()
        cfg = compose("train", [f"estimator={component.name}", "dataset=synthetic", "map_dir=MAP"])
        assert cfg.estimator._target_ == component.name
        check_fit(component, default_solver(component, registry), registry)
        assert component.needs_map, "an estimator is trained by `reloc train`"

    def test_recovers_known_poses(self, reloc_trained_estimator: TrainedEstimator) -> None:
        trained = reloc_trained_estimator
        found = self.localize_all(trained.pipeline, trained.queries)
        for localization in found:
            check_localization(localization)
        share = np.mean([localization.localized for localization in found])
        assert share >= self.min_localized
        errors = [
            pose_error(localization.world_from_cam, frame.world_from_cam)
            for localization, frame in zip(found, trained.queries.frames, strict=True)
            if localization.world_from_cam is not None and frame.world_from_cam is not None
        ]
        centimetres, degrees = np.median(errors, axis=0)
        assert centimetres <= self.max_median_cm
        assert degrees <= self.max_median_deg

    def test_covariances_say_how_large_the_errors_are(
        self, reloc_trained_estimator: TrainedEstimator
    ) -> None:
        """Of the poses that its evidence leads to: neither far too sure nor far too modest."""
        trained = reloc_trained_estimator
        found = self.localize_all(trained.pipeline, trained.queries)
        truths = [frame.world_from_cam for frame in trained.queries.frames]
        check_honest_covariances(found, truths, self.covariance_slack, self.block_slack)

    def test_evidence_is_of_the_declared_kind(
        self, reloc_trained_estimator: TrainedEstimator
    ) -> None:
        estimator = reloc_trained_estimator.pipeline.estimator
        estimator.start_sequence()
        query = self.query(reloc_trained_estimator.queries[0])
        evidence = estimator.estimate(query)
        assert isinstance(evidence, type(estimator).produces)
        check_evidence(evidence, query)

    def test_needs_no_ground_truth(self, reloc_trained_estimator: TrainedEstimator) -> None:
        """Evidence must come from the image alone; whoever looks at the pose is caught here."""
        estimator = reloc_trained_estimator.pipeline.estimator
        with_truth = reloc_trained_estimator.queries[0]
        estimator.start_sequence()
        first = estimator.estimate(with_truth)
        estimator.start_sequence()
        assert_same_evidence(first, estimator.estimate(with_truth.without_ground_truth()), 1e-9)

    def test_a_prior_narrows_the_search_where_it_is_declared(
        self, reloc_trained_estimator: TrainedEstimator
    ) -> None:
        """A right one costs nothing; without `uses_prior` nobody looks at it."""
        trained, sure = reloc_trained_estimator, np.diag([0.01] * 3 + [0.02] * 3) ** 2
        estimator, truth = trained.pipeline.estimator, trained.queries[0].world_from_cam
        assert truth is not None
        query = self.query(trained.queries[0])
        estimator.start_sequence()
        alone = trained.pipeline.localize(query)
        estimator.start_sequence()
        guided = replace(query, prior=PosePrior(truth, sure))
        if not estimator.uses_prior:
            estimator.start_sequence()
            expected = estimator.estimate(query)
            estimator.start_sequence()
            assert_same_evidence(expected, estimator.estimate(guided), self.tolerance)
            return
        found = trained.pipeline.localize(guided)
        assert found.localized >= alone.localized
        if found.world_from_cam is not None and alone.world_from_cam is not None:
            centimetres, degrees = pose_error(found.world_from_cam, truth)
            assert centimetres <= max(
                self.max_median_cm, pose_error(alone.world_from_cam, truth)[0]
            )
            assert degrees <= max(self.max_median_deg, pose_error(alone.world_from_cam, truth)[1])

    def test_batch_equals_one_by_one(self, reloc_trained_estimator: TrainedEstimator) -> None:
        trained = reloc_trained_estimator
        queries = [self.query(q) for q in Subset(trained.queries, range(min(3, self.query_frames)))]
        estimator = trained.pipeline.estimator
        estimator.start_sequence()
        together = estimator.estimate_batch(queries)
        estimator.start_sequence()
        for batched, query in zip(together, queries, strict=True):
            assert_same_evidence(batched, estimator.estimate(query), self.tolerance)

    def test_start_sequence_forgets(self, reloc_trained_estimator: TrainedEstimator) -> None:
        trained = reloc_trained_estimator
        first = self.localize_all(trained.pipeline, trained.queries)
        self.assert_same(first, self.localize_all(trained.pipeline, trained.queries))

    def test_bad_images_are_no_exception(self, reloc_trained_estimator: TrainedEstimator) -> None:
        trained = reloc_trained_estimator
        pipeline = trained.pipeline
        good = self.query(trained.queries[0])
        pipeline.start_sequence()
        begin = time.process_time()
        before = pipeline.localize(good)
        usual = time.process_time() - begin
        for name, query in bad_images(good.camera).items():
            depth = None
            if "depth" in self.described().requires:
                depth = np.zeros(query.image.shape[:2], np.float32)
            bad = Query(name, query.camera, image=query.image, depth=depth, sequence=good.sequence)
            pipeline.start_sequence()
            begin = time.process_time()
            check_localization(pipeline.localize(bad))
            seconds = time.process_time() - begin
            assert seconds < 20 * usual + 2, f"'{name}' takes {seconds:.1f} s, others {usual:.1f} s"
        pipeline.start_sequence()
        assert difference(before, pipeline.localize(good)) <= self.tolerance

    def test_fitted_and_loaded_agree(self, reloc_trained_estimator: TrainedEstimator) -> None:
        trained = reloc_trained_estimator
        fitted = Pipeline(trained.fitted, trained.pipeline.solver, (), self.runtime())
        self.assert_same(
            self.localize_all(fitted, trained.queries),
            self.localize_all(trained.pipeline, trained.queries),
        )

    def test_writes_only_into_its_map(self, reloc_trained_estimator: TrainedEstimator) -> None:
        assert reloc_trained_estimator.strays == [], "fit may only write through run.map"

    def test_same_seed_same_map(
        self, reloc_trained_estimator: TrainedEstimator, tmp_path: Path
    ) -> None:
        if not self.repeats:
            pytest.skip("repeats = False")
        if self.resumes:
            pytest.skip("an interrupted training that gives this map says more")
        trained = reloc_trained_estimator
        train_map(self.described(), self.options, trained.train, tmp_path / "again", self.runtime())
        self.assert_same(
            self.localize_all(trained.pipeline, trained.queries),
            self.localize_all(self.open_map(tmp_path / "again"), trained.queries),
        )

    def test_resumes_after_an_interruption(
        self, reloc_trained_estimator: TrainedEstimator, tmp_path: Path
    ) -> None:
        if not self.resumes:
            pytest.skip("resumes = False")
        trained, map_dir = reloc_trained_estimator, tmp_path / "map"
        assert trained.steps > 0, "fit must report progress"
        component = self.described()
        with pytest.raises(KeyboardInterrupt):
            train_map(component, self.options, trained.train, map_dir, self.runtime(),
                      max(1, trained.steps // 2))  # fmt: skip
        assert not map_dir.exists(), "a map that exists is whole"
        train_map(component, self.options, trained.train, map_dir, self.runtime())
        assert not partial_directory(map_dir).exists()
        self.assert_same(
            self.localize_all(trained.pipeline, trained.queries),
            self.localize_all(self.open_map(map_dir), trained.queries),
        )

    def test_one_image_is_refused_or_mapped(
        self, reloc_trained_estimator: TrainedEstimator, tmp_path: Path
    ) -> None:
        """Too little to map is the user's error and says so; it is never a crash."""
        single = Subset(reloc_trained_estimator.train, [0])
        try:
            train_map(self.described(), self.options, single, tmp_path / "map", self.runtime())
        except RelocError as error:
            assert len(str(error)) > 20
            return
        check_localization(self.open_map(tmp_path / "map").localize(self.query(single[0])))


def _limit_torch(threads: int) -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def check_evidence(evidence: Evidence, query: Query) -> None:
    """Assert that evidence about a good image is finite, consistent and within its image."""
    if isinstance(evidence, Correspondences):
        assert len(evidence.points2d) > 0
        assert np.isfinite(evidence.points2d).all()
        assert np.isfinite(evidence.points3d).all()
        size = np.array([query.camera.width, query.camera.height])
        assert (evidence.points2d >= -0.5 - 1e-6).all()
        assert (evidence.points2d <= size - 0.5 + 1e-6).all()
        for name in ("weights", "variances"):
            values = getattr(evidence, name)
            if values is not None:
                assert np.isfinite(values).all(), name
                assert (values >= 0).all(), name
    elif isinstance(evidence, RelativePoses):
        assert len(evidence.world_from_ref) > 0
        for pose in (*evidence.world_from_ref, *evidence.ref_from_cam):
            check_rigid(np.asarray(pose, np.float64))
        if evidence.confidences is not None:
            assert ((evidence.confidences >= 0) & (evidence.confidences <= 1)).all()
    elif isinstance(evidence, PosePrior):
        check_rigid(np.asarray(evidence.world_from_cam, np.float64))
        if evidence.covariance is not None:
            check_covariance(evidence.covariance)


def assert_same_evidence(a: Evidence, b: Evidence, tolerance: float) -> None:
    """Assert that two pieces of evidence have the same values."""
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, np.ndarray):
            assert value.shape == other.shape, name
            np.testing.assert_allclose(value, other, atol=tolerance, rtol=tolerance, err_msg=name)
        else:
            assert value == other, name

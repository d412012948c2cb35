"""Training from Python: refiners in one map, resuming, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

import reloc_core
from reloc_core import ConfigError, DataError, InputError, Localizer, MapError, Pipeline, Tracker
from reloc_core.config import build
from reloc_core.datasets.subset import Subset
from reloc_core.engine import run_queries
from reloc_core.pipeline import Stage
from reloc_core.runs import Reporter

PUSH = {"name": "toy_push", "push": 0.25, "train": {"size": 8}}


@pytest.fixture
def data(toy_plugin, ace_scene):
    return build({"_target_": "ace", "root": str(ace_scene), "split": "train"}, "dataset")


def train(data, folder, estimator="toy", **options):
    quiet = Reporter(quiet=True)
    return reloc_core.train(data, folder, estimator, reporter=quiet, threads=1, **options)


def test_a_refiner_that_needs_another_map_is_trained_into_this_one(data, tmp_path):
    made = train(data, tmp_path / "map", "toy_other", refiners=[PUSH])
    stored = yaml.safe_load((tmp_path / "map/map.yaml").read_text())
    assert stored["pipeline"]["refiners"] == [{"name": "toy_push", "push": 0.25}]
    assert stored["pipeline"]["trained"]["toy_push"]["component"] == "toy"
    assert stored["pipeline"]["trained"]["toy_push"]["config"]["size"] == 8
    assert made.has("refiner_toy_push.images")
    found = Pipeline.from_map(made, calibrated=False).localize(data[3])
    (_, before), (_, after) = found.stages
    np.testing.assert_allclose(after[:3, 3], before[:3, 3] + 0.25 * before[:3, 0])


def test_a_killed_training_goes_on_where_it_was(data, tmp_path, monkeypatch):
    """The estimator is complete; only the refiner's part is trained again."""
    import toy

    fit, calls = toy.ToyEstimator.fit, []

    def stopping(self, dataset, run):
        calls.append(self.config.size)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fit(self, dataset, run)

    monkeypatch.setattr(toy.ToyEstimator, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "map", "toy_other", refiners=[PUSH])
    assert calls == [16, 8]
    train(data, tmp_path / "map", "toy_other", refiners=[PUSH])
    assert calls == [16, 8, 8]


def test_evaluate_takes_the_directory_of_a_map(data, tmp_path):
    train(data, tmp_path / "map")
    evaluation = reloc_core.evaluate(tmp_path / "map", Subset(data, range(3)), batch=2)
    assert [r.localized for r in evaluation.results] == [True] * 3
    evaluation.write(tmp_path / "out")
    assert len((tmp_path / "out/localizations.jsonl").read_text().splitlines()) == 3


def test_exactly_one_method_is_trained(data, tmp_path):
    with pytest.raises(ConfigError, match="exactly one"):
        reloc_core.train(data, tmp_path / "map")
    with pytest.raises(ConfigError, match="exactly one"):
        reloc_core.train(data, tmp_path / "map", "toy", refiner="toy_push")
    assert not any(tmp_path.iterdir())


def test_a_map_is_opened_for_its_own_estimator_only(data, tmp_path):
    train(data, tmp_path / "map")
    with pytest.raises(MapError, match="trained for estimator 'toy', not 'toy_other'"):
        Pipeline.from_map(tmp_path / "map", estimator="toy_other")


@pytest.mark.parametrize(
    ("requires", "message"),
    [("depth", "needs depth images"), ("sequence", "needs the consecutive frames")],
)
def test_queries_that_lack_what_a_stage_requires_are_refused_at_once(
    data, tmp_path, requires, message
):
    made = train(data, tmp_path / "map")
    pipeline = Pipeline.from_map(made)
    needy = Pipeline(
        pipeline.estimator,
        pipeline.solver,
        stages=[Stage("a"), Stage("b"), Stage("needy", (requires,))],
    )

    class Photographs(Subset):
        @property
        def frames(self):
            return [reloc_core.Frame(f.name, f.camera) for f in super().frames]

    with pytest.raises(DataError, match=f"'needy' {message}"):
        reloc_core.evaluate(needy, Photographs(data, range(2)))
    pipeline.check(data)
    photo = replace(data[0], sequence=None, depth=None)
    for localize in (needy.localize, Localizer(needy).localize_query):
        with pytest.raises(InputError, match=f"'needy' {message}"):
            localize(photo)
    depth = np.ones(photo.image.shape[:2], np.float32)
    assert needy.localize(replace(photo, sequence="walk", depth=depth)).localized


def test_a_video_and_its_frames_are_refused_where_depth_is_required(data, tmp_path):
    pipeline = Pipeline.from_map(train(data, tmp_path / "map"))
    needy = Pipeline(pipeline.estimator, pipeline.solver, stages=[Stage("needy", ("depth",))])

    class Video:
        name = "walk.mp4"

    with pytest.raises(DataError, match=r"'needy' needs depth images; walk\.mp4 has none"):
        needy.check(Video())
    frame = replace(data[0], depth=None)
    reasons = [o.localization.reason for o in run_queries(needy, [frame])]
    with Tracker(needy) as tracker:
        reasons.append(tracker.track_query(frame).reason)
    assert all("refused: 'needy' needs depth images" in reason for reason in reasons)


def test_a_tracker_measures_frames_of_a_map_whose_method_has_a_pose_filter(data, tmp_path):
    """What the filter requires is no matter of the tracker, which has one itself."""
    train(data, tmp_path / "map", refiners=["pose_filter"])
    video = [replace(data[i], sequence=None) for i in range(3)]
    with Tracker.from_map(tmp_path / "map") as tracker:
        assert tracker.localizer.pipeline.method == "toy + prior"
        assert all(tracker.track_query(query).localized for query in video)
    localizer = Localizer.from_map(tmp_path / "map")
    with Tracker(localizer) as tracker:
        assert all(tracker.track_query(query).localized for query in video)
    with pytest.raises(InputError, match="'pose_filter' needs the consecutive frames"):
        localizer.localize_query(video[0])


def test_an_image_that_a_stage_refuses_is_not_localized_on_its_own(data, tmp_path):
    pipeline = Pipeline.from_map(train(data, tmp_path / "map"))
    assert pipeline.localize_alone(data, 0).localized

    class Broken(Subset):
        def __getitem__(self, index):
            raise DataError("frame 0 is truncated")

    found = pipeline.localize_alone(Broken(data, [0]), 0)
    assert (found.localized, found.reason) == (False, "frame 0 is truncated")


def test_the_stages_have_their_registered_names(data, tmp_path):
    pipeline = Pipeline.from_map(train(data, tmp_path / "map"))
    assert pipeline.method == "toy + prior + toy_push"

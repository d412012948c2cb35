"""Tracking a film whose every pose is known, with an estimator that says how often it was asked."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from reloc_core import ConfigError, InputError, Tracker, TrackerConfig
from reloc_core.engine import run_queries
from reloc_core.evaluation.metrics import nees
from reloc_core.interfaces import Estimator
from reloc_core.pipeline import Pipeline
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Correspondences, PosePrior

NOISE_PX, EVERY = 0.3, 5


class FilmEstimator(Estimator):
    """What the film's wall says, with pixel noise; nothing of a picture that shows nothing."""

    produces = Correspondences

    def __init__(self, *films, seconds=0.0):
        self.films = {f"film-{film.phase:g}": film for film in films}
        self.seconds, self.asked, self.threads = seconds, [], set()
        self.error = None

    def fit(self, dataset, run): ...

    def load(self, scene_map, runtime): ...

    def estimate(self, query):
        time.sleep(self.seconds)
        self.asked.append(query)
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        if not query.image.any():
            return Correspondences(np.zeros((0, 2)), np.zeros((0, 3)), kind="sparse")
        film, _, index = query.name.rpartition("#")
        found = self.films[film].evidence(int(index))
        noise = np.random.default_rng(int(index)).normal(0, NOISE_PX, found.points2d.shape)
        return replace(found, points2d=found.points2d + noise, kind="sparse")


def frame(film, index, place=None, **changes):
    name = f"film-{film.phase:g}#{index}"
    when = (index if place is None else place) / 30
    return film.query(index, name=name, timestamp=when, sequence=None, **changes)


def black(film, index):
    return frame(film, index, image=np.zeros_like(film.query(0).image))


def tracking(*films, seconds=0.0, **options):
    estimator = FilmEstimator(*films, seconds=seconds)
    config = TrackerConfig(**{"interval": EVERY, "delay": 3, **options})
    config.filter.resolution = 144
    return Tracker(Pipeline(estimator, PnpSolver(PnpConfig(verify_focal=False))), config), estimator


def metres(found, query):
    return float(np.linalg.norm((found.world_from_cam - query.world_from_cam)[:3, 3]))


def std(found):
    return float(np.sqrt(np.trace(found.covariance[3:, 3:])))


def test_observers_hear_of_every_frame_once(film, observer):
    """However it is asked, and not of the localizations beside."""
    data = film()
    tracker, _ = tracking(data)
    with tracker:
        alone = [tracker.track_query(frame(data, i)) for i in range(6)]
        tracker.start_sequence()
        video = [replace(frame(data, i), sequence="film") for i in range(6)]
        outcomes = list(run_queries(tracker, video))
    names = [frame(data, i).name for i in range(6)]
    assert [event[:2] for event in observer.events] == [("query", name) for name in names * 2]
    for one, other in zip(alone, outcomes, strict=True):
        np.testing.assert_array_equal(one.world_from_cam, other.localization.world_from_cam)


def test_few_localizations_make_poses_of_all_frames(film):
    data = film()
    tracker, estimator = tracking(data)
    queries = [frame(data, i) for i in range(60)]
    with tracker:
        found = [tracker.track_query(query) for query in queries]
    assert all(f.localized for f in found)
    assert [f.name for f in found] == [q.name for q in queries]
    assert [f.timestamp for f in found] == [q.timestamp for q in queries]
    assert len(estimator.asked) <= 60 / EVERY + 2
    assert estimator.threads.isdisjoint({threading.get_ident()})  # beside, not in between
    assert max(metres(f, q) for f, q in zip(found, queries, strict=True)) < 0.03
    assert np.median([metres(f, q) for f, q in zip(found, queries, strict=True)]) < 0.008


def test_poses_do_not_depend_on_how_long_a_localization_takes(film):
    data, results = film(), []
    for seconds in (0.0, 0.05):
        tracker, _ = tracking(data, seconds=seconds)
        with tracker:
            results.append([tracker.track_query(frame(data, i)).world_from_cam for i in range(20)])
    np.testing.assert_array_equal(*results)


def test_without_patience_frames_do_not_wait(film):
    """Localizing takes as long as eight frames: only the first waits, and poses stay right."""
    data, slow = film(), 0.25
    tracker, estimator = tracking(data, seconds=slow, patience=0.0)
    queries, found, taken = [frame(data, i) for i in range(60)], [], []
    with tracker:
        begin = time.perf_counter()
        for i, query in enumerate(queries):
            time.sleep(max(0.0, begin + i / 30 - time.perf_counter()))
            start = time.perf_counter()
            found.append(tracker.track_query(query))
            taken.append(time.perf_counter() - start)
            begin = time.perf_counter() if i == 0 else begin
    assert taken[0] >= slow
    assert np.quantile(taken[1:], 0.9) < slow / 2
    assert all(f.localized for f in found)
    assert max(metres(f, q) for f, q in zip(found, queries, strict=True)) < 0.03
    assert 3 <= len(estimator.asked) <= 10


def test_it_claims_nothing_after_a_cut_until_the_map_has_told(film):
    data, other = film(), film(phase=33.0)
    tracker, _ = tracking(data, other)
    queries = [frame(data, i) for i in range(20)] + [frame(other, i) for i in range(20, 40)]
    # A copy of the first picture after the cut, as recorders make them.
    queries[21] = replace(queries[21], image=queries[20].image)
    with tracker:
        found = [tracker.track_query(query) for query in queries]
    assert not any(f.localized for f in found[20:22])
    assert "view has changed" in found[20].reason
    assert all(f.localized for f in found[24:])
    assert all(metres(f, q) < 0.03 for f, q in zip(found, queries, strict=True) if f.localized)


def test_what_no_map_knows_is_not_localized(film):
    data = film()
    tracker, estimator = tracking(data)
    noise = np.random.default_rng(0).integers(0, 256, (40, *data.query(0).image.shape), np.uint8)
    with tracker:
        for i in range(10):
            tracker.track_query(frame(data, i))
        estimator.estimate = lambda query: Correspondences(
            np.random.default_rng(0).uniform(0, 140, (300, 2)),
            np.random.default_rng(1).uniform(-2, 2, (300, 3)), kind="sparse",
        )  # fmt: skip
        found = [tracker.track_query(frame(data, i, image=noise[i])) for i in range(10, 40)]
    assert not any(f.localized for f in found)


def test_black_frames_are_bridged_as_surely_as_the_errors_allow(film):
    """Over many starts: the squared error over its covariance is about 6 where that is right."""
    squares, back = [], []
    for phase in np.arange(0, 24, 3.0):
        data = film(phase=phase)
        tracker, _ = tracking(data)
        with tracker:
            for i in range(20):
                tracker.track_query(frame(data, i))
            blind = [tracker.track_query(black(data, i)) for i in range(20, 35)]
            again = [tracker.track_query(frame(data, i)) for i in range(35, 40)]
        # A localization of before may still come in the first ones.
        assert np.all(np.diff([std(f) for f in blind[3:]]) > 0)
        squares += [
            nees(f.world_from_cam, f.covariance, data.pose(i)) for i, f in enumerate(blind, 20)
        ]
        back.append(again[-1].localized and metres(again[-1], frame(data, 39)) < 0.03)
        assert std(again[-1]) < 0.3 * std(blind[-1])
    assert np.mean(squares) < 12
    assert all(back)


def test_predictions_guide_and_lost_frames_are_searched_everywhere(film):
    data, other = film(), film(phase=33.0)
    tracker, estimator = tracking(data, other)
    with tracker:
        for i in range(15):
            tracker.track_query(frame(data, i))
        for i in range(15, 20):
            tracker.track_query(frame(other, i))
    first, *later = estimator.asked
    guided = [q for q in later if q.name.startswith("film-0#")]
    assert first.prior is None
    assert guided
    for query in guided:
        index = int(query.name.rpartition("#")[2])
        difference = query.prior.world_from_cam[:3, 3] - data.pose(index)[:3, 3]
        assert np.linalg.norm(difference) < 0.03
    assert all(q.prior is None for q in later if q.name.startswith("film-33#"))
    assert all(q.world_from_cam is None for q in estimator.asked)


def test_a_prior_pose_guides_from_the_first_frame_on(film):
    data = film()
    tracker, estimator = tracking(data)
    prior = PosePrior(data.pose(0), np.eye(6) * 1e-4)
    with tracker:
        found = tracker.track(data.query(0).image, data.camera, 0.0, prior, name="film-0#0")
    assert found.localized
    assert estimator.asked[0].prior is prior


def test_a_refusal_is_an_outcome(film):
    data = film()
    tracker, estimator = tracking(data)
    estimator.error = InputError("too thin")
    with tracker:
        found = [tracker.track_query(frame(data, i)) for i in range(5)]
    assert not any(f.localized for f in found)
    assert "too thin" in found[0].reason


def test_defects_of_an_estimator_come_through(film):
    data = film()
    tracker, estimator = tracking(data)
    estimator.error = ZeroDivisionError()
    with tracker, pytest.raises(ZeroDivisionError):
        tracker.track_query(frame(data, 0))


@pytest.mark.parametrize(
    "options",
    [{"interval": 0}, {"delay": -1}, {"delay": EVERY}, {"lost_delay": -1}, {"patience": -1.0}],
)
def test_options_that_make_no_sense_are_named(film, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        tracking(film(), **options)

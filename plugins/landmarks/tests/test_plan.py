"""What mapping takes its images for."""

from dataclasses import replace

import numpy as np
import pytest
from landmarks.config import LandmarkConfig
from landmarks.estimator import LandmarkEstimator
from landmarks.film import are_photographs, is_film
from landmarks.matched.estimator import MatchedLandmarks
from landmarks.matched.plan import make_plan

from reloc_core import Camera, Frame
from reloc_core.calibration import CalibrationConfig
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.subset import Subset
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.engine import train
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map
from reloc_core.runs import Reporter
from reloc_core.testing import start_run


def frames(count, width, height, sequence=None):
    camera = Camera.pinhole(width, width, height)
    return [Frame(f"{i}.jpg", camera, world_from_cam=np.eye(4)[:3], sequence=sequence) for i in range(count)]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (frames(20, 640, 480), True),
        (frames(99, 640, 480, "walk"), True),
        (frames(100, 640, 480, "walk"), False),
        (frames(128, 3072, 2304), True),
        (frames(128, 1920, 1080, "walk"), False),
        (frames(250, 640, 480), True),
        (frames(500, 3072, 2304), True),
    ],
)
def test_photographs_and_films(images, expected):
    assert are_photographs(images) is expected
    plan = make_plan(LandmarkConfig(), images, expected)
    assert plan.kind == ("sift" if expected else "xfeat")
    assert plan.resolution <= (1080 if expected else 480)


def test_images_in_no_sequence_are_a_film_only_if_they_look_like_one():
    assert are_photographs(frames(500, 640, 480), lambda: True) is False
    assert are_photographs(frames(99, 640, 480), lambda: True) is True


class Loose(Subset):
    """Images that belong to no sequence."""

    @property
    def frames(self):
        return [replace(frame, sequence=None) for frame in super().frames]


def test_how_many_images_are_described_together_changes_no_method():
    film = LandmarkConfig()
    film.keypoints.batch = 8
    assert LandmarkEstimator(film)._why_matched(False) == ""
    film.matching.retrieved = 30
    assert LandmarkEstimator(film)._why_matched(False) == "matching.retrieved given"
    assert LandmarkEstimator(film)._why_matched(True) == "photographs"


def test_images_that_are_not_used_are_told_and_not_mapped(tmp_path):
    room = SyntheticDataset(SyntheticConfig(width=160, height=120, train_frames=30, test_frames=1))
    options = {
        "name": "landmarks",
        "keypoints": {"kind": "xfeat", "resolution": 120},
        "triangulation": {"max_images": 14},
    }
    said = []

    class Told(Reporter):
        def note(self, text):
            said.append(text)

    quiet = CalibrationConfig(enabled=False)
    made = train(room, tmp_path / "map", options, calibration=quiet, reporter=Told(), threads=1)
    assert len(mapped_frames(made).world_from_cam) == 14
    assert any("14 of 30 mapping images are used" in text for text in said)
    # As for 14 images, each with each.
    assert made.info.details["plan"]["near"] == 40


def test_consecutive_images_tell_a_film(tmp_path):
    # The room's camera goes round in as many steps as there are images.
    room = SyntheticDataset(SyntheticConfig(width=320, height=240, train_frames=240, test_frames=1))
    run = start_run(tmp_path / "map", "landmarks")
    assert is_film(Loose(room, range(240)), run)
    assert not is_film(Loose(room, range(0, 240, 8)), run)
    mixed = np.random.default_rng(0).permutation(240)
    assert not is_film(Loose(room, mixed.tolist()), run)


def test_a_film_that_shares_too_little_for_the_softmax_is_matched(tmp_path, monkeypatch):
    room = SyntheticDataset(SyntheticConfig(width=320, height=240, train_frames=24, test_frames=1))
    monkeypatch.setattr("landmarks.estimator.are_photographs", lambda *_: False)
    monkeypatch.setattr("landmarks.softmax.estimator._MIN_LANDMARKS", 10**6)
    run = start_run(tmp_path / "map", "landmarks")
    estimator = LandmarkEstimator(LandmarkConfig())
    estimator.fit(room, run)
    run.map.finish()
    assert isinstance(estimator.readout, MatchedLandmarks)
    assert Map.open(tmp_path / "map").info.details["plan"]["kind"] == "sift"

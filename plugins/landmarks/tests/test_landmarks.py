"""The estimator `landmarks`: key points, triangulation, decoder, and mapping end to end."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from landmarks.config import LandmarkConfig
from landmarks.estimator import LandmarkEstimator
from landmarks.matched.estimator import best_known

from reloc_core.cli.main import main
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Runtime
from reloc_core.mapping import Observations, Tracks
from reloc_core.maps import Map
from reloc_core.testing import start_run

# ------------------------------------------------------------------------------------- detector


@pytest.fixture(scope="module")
def room():
    return SyntheticDataset(SyntheticConfig(width=320, height=240, train_frames=60, test_frames=6))


def test_keypoints_follow_the_image(room):
    image = room[0].image
    detector = KeypointDetector(240)
    found = detector.detect([image], 300)[0]
    assert found.pixels.min() >= 0
    assert (found.pixels < [320, 240]).all()
    # Twice the size: the same points at twice the (corner-based) coordinates.
    double = np.repeat(np.repeat(image, 2, 0), 2, 1)
    again = detector.detect([double], 300)[0]
    expected = (found.pixels + 0.5) * 2 - 0.5
    nearest = np.linalg.norm(again.pixels[:, None] - expected, axis=2).min(0)
    assert np.median(nearest) < 1.0


def test_batches_change_nothing(room):
    detector = KeypointDetector(240)
    images = [room[i].image for i in range(3)]
    together = detector.detect(images, 200)
    for image, batched in zip(images, together, strict=True):
        alone = detector.detect([image], 200)[0]
        np.testing.assert_allclose(batched.pixels, alone.pixels, atol=1e-2)
        torch.testing.assert_close(batched.descriptors, alone.descriptors, atol=1e-3, rtol=0)


def test_blank_image_has_no_keypoints():
    assert len(KeypointDetector(240).detect([np.full((240, 320, 3), 128, np.uint8)], 100)[0]) == 0


def test_every_image_keeps_its_landmarks():
    # Image 0 sees twenty landmarks; image 9 sees only the two whose place is known worst.
    labels = np.concatenate([np.repeat(np.arange(20), 5), np.repeat([20, 21], 3)])
    images = np.concatenate([np.tile(np.arange(5), 20), np.tile([7, 8, 9], 2)])
    order = np.argsort(images, kind="stable")
    rows = np.argsort(order, kind="stable")
    doubt = np.arange(1.0, 23)
    tracks = Tracks(np.tile([0.0, 0, 5], (22, 1)), doubt[:, None, None] * np.eye(3), rows, labels,
                    np.ones(106))  # fmt: skip
    observations = Observations(
        images[order], np.tile([0.0, 0, 1], (106, 1)), np.zeros((10, 3)), np.ones(10)
    )
    kept = set(best_known(tracks, observations, 10).tolist())
    assert len(kept) == 10
    assert {20, 21} <= kept
    assert {0, 1, 2, 3} <= kept


# ------------------------------------------------------------------------------------ estimator


def small_config(kind="xfeat"):
    config = LandmarkConfig()
    config.keypoints.kind, config.keypoints.resolution = kind, 240
    config.keypoints.mapping = config.keypoints.query = 400
    return config


@pytest.fixture(scope="module")
def fitted(room, tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "map"
    run = start_run(path, "landmarks")
    estimator = LandmarkEstimator(small_config())
    estimator.fit(room, run)
    run.map.finish()
    return estimator, path


def test_scene_points_are_where_the_surfaces_are(fitted, point_errors):
    assert np.median(point_errors(fitted[0])) < 0.10


def test_scene_points_have_the_colours_of_the_images(fitted, room, monkeypatch):
    estimator, path = fitted
    loaded = LandmarkEstimator(small_config())
    loaded.load(Map.open(path), Runtime())
    points = loaded.scene_points()
    np.testing.assert_array_equal(points.colors, estimator.scene_points().colors)
    frame = room[0]
    pixels, front = project(frame.camera, transform(inverse(frame.world_from_cam), points.points))
    height, width = frame.image.shape[:2]
    inside = front & (pixels >= 0).all(1) & (np.rint(pixels) < (width, height)).all(1)
    x, y = np.rint(pixels[inside]).astype(int).T
    difference = np.abs(frame.image[y, x].astype(int) - points.colors[inside]).mean(1)
    shuffled = np.abs(frame.image[y, x].astype(int) - points.colors[inside][::-1]).mean(1)
    assert np.median(difference) < 20 < np.median(shuffled)
    # Maps of earlier versions have none.
    read = Map.tensors

    def without(*args, **kwargs):
        tensors, metadata = read(*args, **kwargs)
        return {k: t for k, t in tensors.items() if k != "colors"}, metadata

    monkeypatch.setattr(Map, "tensors", without)
    loaded.load(Map.open(path), Runtime())
    assert loaded.scene_points().colors is None
    assert "colors" not in loaded.readout.scene.tensors()


def test_map_round_trip(fitted, room):
    estimator, path = fitted
    loaded = LandmarkEstimator(small_config())
    loaded.load(Map.open(path), Runtime())
    for index in (0, 7):
        ours, theirs = estimator.estimate(room[index]), loaded.estimate(room[index])
        np.testing.assert_allclose(ours.points3d, theirs.points3d, atol=1e-5)
        np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-5)
    batch = loaded.estimate_batch([room[0], room[7]])
    np.testing.assert_array_equal(batch[1].points3d, loaded.estimate(room[7]).points3d)


def test_map_of_another_resolution_is_refused(fitted):
    config = small_config()
    config.keypoints.resolution = 480
    with pytest.raises(MapError, match="resolution 240, not 480"):
        LandmarkEstimator(config).load(Map.open(fitted[1]), Runtime())


def test_bad_queries_raise_nothing(fitted, room):
    estimator, _ = fitted
    query = room[0]
    for image in (np.zeros_like(query.image), np.full_like(query.image, 255)):
        evidence = estimator.estimate(type(query)("bad", query.camera, image=image))
        assert np.isfinite(evidence.points3d).all()


def test_useless_data_is_explained(tmp_path):
    few = SyntheticDataset(SyntheticConfig(width=160, height=120, train_frames=1, test_frames=1))
    with pytest.raises(DataError, match="at least 2"):
        LandmarkEstimator(small_config()).fit(few, start_run(tmp_path / "few", "landmarks"))


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("keypoints", "query", 0),
        ("matching", "windows_px", [-1.0]),
        ("triangulation", "min_views", 1),
    ],
)
def test_nonsense_options_are_refused(section, option, value):
    config = LandmarkConfig()
    setattr(getattr(config, section), option, value)
    with pytest.raises(ConfigError, match=option):
        LandmarkEstimator(config)


def test_kill_and_resume_gives_the_same_map(tmp_path):
    """A training process killed at an arbitrary moment, then the same command again."""
    command = [
        "train", "estimator=landmarks", "dataset=synthetic", "dataset.width=320",
        "dataset.height=240", "dataset.train_frames=24", "estimator.keypoints.kind=xfeat", "estimator.keypoints.resolution=240",
        "estimator.keypoints.mapping=300",
    ]  # fmt: skip
    script = textwrap.dedent("""
        import sys
        import reloc_core.mapping.features as m
        m.CHECKPOINT_SECONDS = 0.0
        from reloc_core.cli.main import main
        sys.exit(main(sys.argv[1:]))
    """)

    def arguments(name):
        return [*command, f"map_dir={tmp_path / name}", f"output_dir={tmp_path / ('run_' + name)}"]

    assert main(arguments("whole")) == 0
    child = subprocess.Popen([sys.executable, "-c", script, *arguments("killed")])
    checkpoint = tmp_path / ".killed.partial" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert main(arguments("killed")) == 0
    whole, _ = Map.open(tmp_path / "whole").tensors("landmarks")
    killed, _ = Map.open(tmp_path / "killed").tensors("landmarks")
    for name, tensor in whole.items():
        torch.testing.assert_close(killed[name], tensor, atol=1e-3, rtol=1e-3)

from dataclasses import replace

import numpy as np
import pytest
import torch
from kfnet_temporal.common.sequences import choose_stretches
from kfnet_temporal.config import MeasurementConfig, TemporalConfig, check_temporal
from kfnet_temporal.estimator import TemporalEstimator
from kfnet_temporal.filtering.calibration import Calibration
from kfnet_temporal.filtering.evidence import measured_state
from kfnet_temporal.measurement_config import MemoryConfig
from kfnet_temporal.memory.estimator import MemoryEstimator

from reloc_core.errors import ConfigError, DataError, InputError
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Camera, Correspondences


def small_config():
    config = TemporalConfig()
    config.process.resolution = 144
    config.process.iterations = 15
    config.joint.iterations = 5
    config.joint.frames, config.joint.stretches, config.joint.window = 24, 2, 6
    config.measurement.options = {
        "resolution": 144, "keyframes": 20, "retrieve": 4, "train_frames": 12, "iterations": 60, "exclusion": 2,
    }  # fmt: skip
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, film, start_run):
    data = film(40)
    run = start_run(tmp_path_factory.mktemp("maps") / "map", data)
    estimator = TemporalEstimator(small_config())
    estimator.fit(data, run)
    return estimator, run.map.finish()


@pytest.fixture
def loaded(trained):
    estimator = TemporalEstimator(small_config())
    estimator.load(trained[1], Runtime(threads=1))
    return estimator


def follow(estimator, queries):
    estimator.start_sequence()
    return [estimator.estimate(q) for q in queries]


def test_poses_of_an_unseen_path(loaded, film):
    data = film(20, phase=0.33)
    solver, errors = PnpSolver(PnpConfig()), []
    for query, evidence in zip(
        data, follow(loaded, [q.without_ground_truth() for q in data]), strict=True
    ):
        found = solver.solve(evidence, query.camera, Runtime(threads=1))
        assert found.localized, found.reason
        assert found.covariance is not None
        errors.append(np.linalg.norm(found.world_from_cam[:3, 3] - query.world_from_cam[:3, 3]))
    assert np.median(errors) < 0.04


def test_saved_and_loaded_agree(trained, loaded, film):
    queries = [film(40)[i] for i in (3, 4, 5)]
    for a, b in zip(follow(trained[0], queries), follow(loaded, queries), strict=True):
        np.testing.assert_allclose(a.points3d, b.points3d, atol=1e-5)
        np.testing.assert_allclose(a.variances, b.variances, rtol=1e-4)


def test_evidence_says_what_it_is_worth(loaded, film):
    data = film(20, phase=0.33)
    good = follow(loaded, [data[i] for i in range(4)])
    assert set(good[0].signals) == {"sharpness"}  # nothing to be consistent with yet
    assert 0.5 < good[3].signals["consistency"] <= 1
    noise = np.random.default_rng(0).integers(0, 256, data[4].image.shape, np.uint8)
    foreign = follow(loaded, [replace(data[4], image=noise)])[0]
    assert foreign.signals["sharpness"] < good[0].signals["sharpness"]


def test_start_sequence_forgets(loaded, film):
    data = film(20, phase=0.33)
    first = follow(loaded, [data[4]])[0]
    follow(loaded, [data[i] for i in range(10)])
    again = follow(loaded, [data[4]])[0]
    np.testing.assert_array_equal(first.points3d, again.points3d)
    np.testing.assert_array_equal(first.variances, again.variances)


def events(estimator, queries):
    estimator.start_sequence()
    found = []
    for query in queries:
        estimator.estimate(query)
        found.append(estimator.shown[1].event)
    return found


def test_what_breaks_a_sequence(loaded, film):
    data = film(20, phase=0.33)
    frames = [data[i] for i in range(12)]
    assert events(loaded, frames[:4]) == ["start", "", "", ""]
    # A missing frame is bridged.
    assert events(loaded, [frames[0], frames[1], frames[3]])[2] == ""
    assert events(loaded, [frames[0], replace(frames[1], timestamp=9.0)])[1] == "gap"
    # Frames out of order.
    assert events(loaded, [frames[1], frames[0]])[1] == "gap"
    small = replace(
        frames[1],
        image=frames[1].image[:120].copy(),
        depth=None,
        camera=Camera.pinhole(170.0, 192, 120),
    )
    assert events(loaded, [frames[0], small, frames[2]]) == ["start", "size", "size"]


def test_a_cut_starts_anew(loaded, film):
    data = film(20, phase=0.33)
    mirrored = replace(data[1], image=np.ascontiguousarray(data[9].image[::-1, ::-1]))
    loaded.tracker.min_similarity = 0.97
    assert events(loaded, [data[0], mirrored])[1] == "cut"


def test_a_black_frame_is_no_certainty(loaded, film):
    data = film(20, phase=0.33)
    black = replace(data[2], image=np.zeros_like(data[2].image))
    loaded.start_sequence()
    assert len(loaded.estimate(black).points2d) == 0
    assert len(loaded.estimate(data[3]).points2d) > 0


def test_state_does_not_grow(loaded, film):
    data = film(10, phase=0.33)
    loaded.start_sequence()
    for i in (*range(10), *range(8, -1, -1)) * 2:
        loaded.estimate(replace(data[i], timestamp=None))
    assert loaded.tracker.state.mean.shape == (3, 18, 24)
    assert not hasattr(loaded.last[0], "image")


def test_without_the_filter_the_measurement_comes_through(trained, film):
    config = small_config()
    config.filter.enabled = False
    estimator = TemporalEstimator(config)
    estimator.load(trained[1], Runtime(threads=1))
    query = film(20, phase=0.33)[5]
    expected = estimator.measurement.estimate(query)
    np.testing.assert_array_equal(estimator.estimate(query).points3d, expected.points3d)


def test_pictures_show_the_last_step(loaded, film):
    data = film(20, phase=0.33)
    follow(loaded, [data[0], data[1]])
    query = data[2]
    loaded.estimate(query)
    pictures = loaded.pictures(query, None)
    assert len(pictures) == 7
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())
    assert loaded.pictures(data[3], None) == {}


def test_data_that_cannot_be_learned_from(tmp_path, film, start_run):
    still = film(12)
    still._frames = [replace(f, sequence=None) for f in still._frames]
    with pytest.raises(DataError, match=r"no consecutive frames.*dataset\.sequence=order"):
        TemporalEstimator(small_config()).fit(still, start_run(tmp_path / "a", still))


def test_a_folder_whose_order_is_a_video_has_stretches(film):
    """As `dataset.sequence=order` reads it: one sequence, no time stamps."""
    ordered = film(12)
    ordered._frames = [replace(f, sequence="all", timestamp=None) for f in ordered._frames]
    stretches = choose_stretches(ordered, 8, 2, 0.5)
    assert [len(s) for s in stretches] == [4, 4]


def test_stretches_never_cross_a_gap(film):
    data = film(40)
    data._frames[20:] = [replace(f, timestamp=f.timestamp + 5) for f in data._frames[20:]]
    stretches = choose_stretches(data, 32, 2, 0.5)
    assert all(s.stop <= 20 or s.start >= 20 for s in stretches)


def test_unfit_measurements_are_refused(trained):
    for name in ("kfnet_temporal", "no_such"):
        with pytest.raises(ConfigError):
            TemporalEstimator(TemporalConfig(measurement=MeasurementConfig(name=name)))
    sparse = Correspondences(np.zeros((3, 2)), np.zeros((3, 3)), kind="sparse")
    with pytest.raises(InputError, match="dense"):
        measured_state(sparse, np.zeros((4, 2)), (2, 2), np.zeros(3), 0.1)


def test_evidence_on_another_grid_goes_to_the_cells_it_lies_in():
    y, x = np.mgrid[0:3, 0:4] * 8 + 3.5
    centres = np.stack([x, y], -1).reshape(-1, 2)
    pixels = np.array([[4.0, 4.0], [3.5, 2.0], [27.0, 19.0], [500.0, 4.0]])
    points = np.arange(12.0).reshape(4, 3)
    found = measured_state(Correspondences(pixels, points), centres, (3, 4), np.zeros(3), 0.2)
    assert found.mean[:, 0, 0].tolist() == [0, 1, 2]  # the nearer of two
    assert found.mean[:, 2, 3].tolist() == [6, 7, 8]
    assert int(found.known.sum()) == 2
    assert float(found.variance[0, 0]) == pytest.approx(0.04)


@pytest.mark.parametrize(("part", "name", "value"), [
    ("filter", "policy", "hope"), ("filter", "fading", 0.9), ("filter", "threshold", 0.0),
    ("joint", "window", 1), ("joint", "weights", [1.0]), ("process", "noise", [0.2, 0.1]),
    ("filter", "common_gain", 1.5), ("filter", "max_support", 0.0),
    ("labels", "source", "files"), ("measurement", "default_std", 0.0),
])  # fmt: skip
def test_nonsense_options_are_named(part, name, value):
    config = TemporalConfig()
    setattr(getattr(config, part), name, value)
    with pytest.raises(ConfigError, match=name):
        check_temporal(config)


def test_a_repeated_picture_says_nothing_new(loaded, film):
    data = film(20, phase=0.33)
    frames = [data[i] for i in range(8)]
    frozen = [replace(data[i], image=frames[7].image) for i in range(8, 11)]
    assert events(loaded, [*frames, *frozen])[-3:] == ["frozen"] * 3


def test_unsure_coordinates_widen_the_covariance():
    found = Calibration(redundancy=8.0, typical_std=0.02)
    assert found.redundancy_at(0.02, 1.0) == pytest.approx(8)
    assert found.redundancy_at(0.04, 1.0) == pytest.approx(32)
    assert found.redundancy_at(0.04, 9.0) == pytest.approx(96)
    assert found.redundancy_at(1e-4, 1.0) == 1.0
    assert found.redundancy_at(np.nan, 1.0) == 8.0


def test_a_sequence_of_one_frame_is_the_measurement(loaded, film):
    query = film(20, phase=0.33)[5]
    found = follow(loaded, [query])[0]
    measured = loaded.measurement.estimate(query)
    solver = PnpSolver(PnpConfig())
    a, b = (solver.solve(e, query.camera, Runtime(threads=1)) for e in (found, measured))
    assert np.linalg.norm(a.world_from_cam[:3, 3] - b.world_from_cam[:3, 3]) < 0.03


def test_images_and_poses_suffice(tmp_path, film, start_run):
    data = film(40, depth=False)
    config = small_config()
    config.labels.resolution = 144
    run = start_run(tmp_path / "map", data)
    estimator = TemporalEstimator(config)
    estimator.fit(data, run)
    solver, errors = PnpSolver(PnpConfig()), []
    for query, evidence in zip(data, follow(estimator, list(data)), strict=True):
        found = solver.solve(evidence, query.camera, Runtime(threads=1))
        errors.append(np.linalg.norm(found.world_from_cam[:3, 3] - query.world_from_cam[:3, 3]))
    assert np.median(errors) < 0.1


def test_exported_maps_are_what_the_estimate_says(trained, film, tmp_path):
    config = small_config()
    config.export = str(tmp_path / "out")
    estimator = TemporalEstimator(config)
    estimator.load(trained[1], Runtime(threads=1))
    queries = list(film(5, phase=0.33))
    found = follow(estimator, queries[:3]) + follow(estimator, queries[3:])
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"image_list.txt", *(f"coord_{i}.npy" for i in range(5)),
                     "0_1_flow.npy", "1_2_flow.npy", "3_4_flow.npy"}  # fmt: skip
    listed = (tmp_path / "out" / "image_list.txt").read_text("utf-8").split()
    assert listed == [q.name for q in queries]
    for i, evidence in enumerate(found):
        points = np.load(tmp_path / "out" / f"coord_{i}.npy")
        assert points.dtype == np.float32
        known = points[..., 3] > 0
        np.testing.assert_allclose(points[known][:, :3], evidence.points3d, atol=1e-5)
        np.testing.assert_allclose(points[known][:, 3], 1 / np.sqrt(evidence.variances), rtol=1e-4)


def test_exported_flow_leads_from_a_frame_to_the_next(trained, film, tmp_path):
    config = small_config()
    config.export = str(tmp_path / "out")
    estimator = TemporalEstimator(config)
    estimator.load(trained[1], Runtime(threads=1))
    first = film(1)[0]
    shifted = np.roll(first.image, 4, 1)
    pair = [replace(first, timestamp=0.0), replace(first, image=shifted, timestamp=0.03)]
    follow(estimator, pair)
    flow = np.load(tmp_path / "out" / "0_1_flow.npy")
    # The picture moved to the right, by half a cell.
    cells = 4 / estimator.extractor(first).scale[0] / 8
    assert np.median(flow[2:-2, 2:-2, 0]) == pytest.approx(cells, abs=0.1)
    assert np.median(flow[2:-2, 2:-2, 1]) == pytest.approx(0, abs=0.1)


def test_an_export_folder_that_cannot_be_made(trained, film, tmp_path):
    (tmp_path / "file").write_text("")
    config = small_config()
    config.export = str(tmp_path / "file")
    estimator = TemporalEstimator(config)
    estimator.load(trained[1], Runtime(threads=1))
    with pytest.raises(ConfigError, match="export"):
        follow(estimator, [film(1)[0]])


class Damaged(Dataset):
    """A film some of whose frames lost their pose or their depth."""

    name, has_depth = "damaged", True

    def __init__(self, film, without):
        self.film, self.without = film, without

    @property
    def frames(self):
        return [
            replace(f, world_from_cam=None) if i in self.without and i % 2 else f
            for i, f in enumerate(self.film.frames)
        ]

    def __getitem__(self, index):
        query = self.film[index]
        if index not in self.without:
            return query
        if index % 2:
            return replace(query, world_from_cam=None)
        return replace(query, depth=np.zeros_like(query.depth))


def memory_config(**values):
    return MemoryConfig(resolution=96, keyframes=6, keyframe_every=2, retrieve=2, train_frames=6,
                        iterations=5, exclusion=1, **values)  # fmt: skip


def test_images_without_pose_or_depth_become_no_key_frames(film, start_run, tmp_path):
    bad = {0, 1, 2, 3, 9, 14}
    data = Damaged(film(20), bad)
    estimator = MemoryEstimator(memory_config())
    estimator.fit(data, start_run(tmp_path / "map", data, "kfnet_memory"))
    used = set(estimator.memory.frames.tolist())
    # One in two frames, although `keyframes` asks for six.
    assert 6 < len(used) <= 10
    assert not used & bad
    assert torch.isfinite(estimator.memory.positions).all()


def test_a_room_without_any_depth_image_that_says_something(film, start_run, tmp_path):
    data = Damaged(film(12), set(range(12)))
    with pytest.raises(DataError, match="pose and a depth"):
        MemoryEstimator(memory_config()).fit(
            data, start_run(tmp_path / "map", data, "kfnet_memory")
        )


def test_images_of_two_sizes_cannot_be_mapped(film, start_run, tmp_path):
    data = film(12)
    small = Camera.pinhole(80.0, 96, 72)
    data._frames[5] = replace(data._frames[5], camera=small)
    with pytest.raises(DataError, match="2 sizes"):
        MemoryEstimator(memory_config()).fit(
            data, start_run(tmp_path / "map", data, "kfnet_memory")
        )

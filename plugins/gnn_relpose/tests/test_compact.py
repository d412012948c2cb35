"""The graph network alone: from images to relative poses on a small analytic scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gnn_relpose.compact.config import CompactConfig
from gnn_relpose.compact.estimator import CompactEstimator
from gnn_relpose.compact.training import Trainer
from gnn_relpose.compact.views import turned

from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.geometry import project, rotation_angle_deg, so3_exp
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import AveragingConfig
from reloc_core.solvers.relative_poses import AveragingSolver
from reloc_core.types import Camera, Query


def tiny():
    config = CompactConfig(resolution=128)
    config.retrieval.clusters = 4
    config.graph.neighbours = 4
    config.network.channels = 32
    config.augment.views = 2
    config.train.iterations, config.train.batch_size = 400, 4
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_walls, start_run):
    config, walls = tiny(), make_walls(120)
    run = start_run(
        tmp_path_factory.mktemp("maps") / "map", config, walls, component="gnn_regressor"
    )
    estimator = CompactEstimator(config)
    estimator.fit(walls, run)
    return estimator, run.map.finish()


def test_beats_the_best_answer_that_looks_at_no_image(trained, make_walls):
    estimator, scene_map = trained
    loaded = CompactEstimator(estimator.config)
    loaded.load(scene_map, Runtime(threads=1, seed=1))
    solver, ours, blind, turns, normal = AveragingSolver(AveragingConfig()), [], [], [], []
    middle = estimator.scene.poses[:, :3, 3].mean(0)
    queries = make_walls(16, seed=9)
    for i in range(16):
        query = queries[i]
        given = estimator.estimate(query.without_ground_truth())
        again = loaded.estimate(query.without_ground_truth())
        assert given.names == again.names
        assert np.allclose(
            given.ref_from_cam, again.ref_from_cam, atol=2e-2
        )  # nodes are stored as halves
        found = solver.solve(given, query.camera, Runtime())
        truth = query.world_from_cam
        ours.append(np.linalg.norm(found.world_from_cam[:3, 3] - truth[:3, 3]))
        turns.append(rotation_angle_deg(found.world_from_cam[:3, :3], truth[:3, :3]))
        blind.append(np.linalg.norm(middle - truth[:3, 3]))
        off = found.world_from_cam[:3, 3] - truth[:3, 3]
        off = found.world_from_cam[:3, :3].T @ off
        normal.append(off @ np.linalg.solve(found.covariance[3:, 3:], off))
        assert {"retrieval", "agreement", "sureness"} <= set(given.signals)
    assert np.median(ours) < 0.75 * np.median(blind)
    assert np.median(turns) < 6
    assert 0.2 < np.median(normal) < 30  # three is right


def test_intrinsics_do_not_matter(trained, make_walls):
    estimator, _ = trained
    query = make_walls(1, seed=9)[0].without_ground_truth()
    other = replace(query, camera=Camera.pinhole(70.0, query.camera.width, query.camera.height))
    one, two = estimator.estimate(query), estimator.estimate(other)
    assert np.array_equal(one.ref_from_cam, two.ref_from_cam)


def test_strange_images_resemble_nothing(trained, make_walls):
    estimator, _ = trained
    query = make_walls(1, seed=9)[0].without_ground_truth()
    noise = np.random.default_rng(0).integers(0, 255, query.image.shape, dtype=np.uint8)
    strange = estimator.estimate(replace(query, image=noise))
    assert np.isfinite(strange.ref_from_cam).all()
    assert strange.signals["retrieval"] < estimator.estimate(query).signals["retrieval"]


@pytest.mark.parametrize("distortion", [(0.0, 0.0), (-0.2, 0.05)])
def test_turned_copies_show_what_a_turned_camera_sees(distortion):
    """Oracle: spots on the sky, drawn as one and as the other camera sees them."""
    camera = Camera("RADIAL", 320, 240, (260.0, 159.5, 119.5, *distortion))
    turn = so3_exp(np.radians([4.0, -7.0, 9.0]))
    directions = np.array([[0.1, 0.05, 1.0], [-0.25, 0.2, 1.0], [0.3, -0.2, 1.0]])

    def picture(rays):
        pixels, _ = project(camera, rays)
        y, x = np.mgrid[:240, :320]
        image = sum(255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 5.0**2)) for u, v in pixels)
        return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, -1)

    query = Query("spots", camera, image=picture(directions))
    found = turned(query, turn, 240)
    expected = picture(directions @ turn)  # cam_from_turned, so turned axes are its transpose
    assert np.abs(found.astype(int) - expected).mean() < 0.6
    assert np.abs(query.image.astype(int) - expected).mean() > 2


def test_message_passing_can_be_left_out(trained):
    estimator, _ = trained
    alone = replace(estimator.config.network, message_passing=False, dropout=0.0)
    network = type(estimator.network)(alone).eval()
    network.load_state_dict(estimator.network.state_dict())
    from gnn_relpose.shared.topology import fully_connected

    nodes = torch.randn(4, alone.channels)
    with torch.no_grad():
        four = network.relative(nodes, fully_connected(4))[0][0]
        two = network.relative(nodes[:2], torch.tensor([[0, 1], [1, 0]]))[0][0]
        told = estimator.network.relative(nodes, fully_connected(4))[0][0]
        less = estimator.network.relative(nodes[:2], torch.tensor([[0, 1], [1, 0]]))[0][0]
    assert torch.allclose(four, two, atol=1e-6)
    assert not torch.allclose(told, less, atol=1e-3)


def test_interrupted_training_resumes_to_the_same_network(
    make_walls, tmp_path, start_run, monkeypatch
):
    config, walls = tiny(), make_walls(8)
    config.train.iterations, config.train.checkpoint_seconds = 12, 0
    whole = CompactEstimator(config)
    whole.fit(walls, start_run(tmp_path / "whole", config, walls, component="gnn_regressor"))
    step_loss, steps = Trainer.step_loss, []

    def stop(self, step):
        if step == 6:
            raise KeyboardInterrupt
        return step_loss(self, step)

    monkeypatch.setattr(Trainer, "step_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        CompactEstimator(config).fit(
            walls, start_run(tmp_path / "map", config, walls, component="gnn_regressor")
        )
    monkeypatch.setattr(
        Trainer, "step_loss", lambda self, step: (steps.append(step), step_loss(self, step))[1]
    )
    resumed = CompactEstimator(config)
    resumed.fit(walls, start_run(tmp_path / "map", config, walls, component="gnn_regressor"))
    assert steps[0] == 6
    for key, value in whole.network.state_dict().items():
        assert torch.allclose(value, resumed.network.state_dict()[key], atol=1e-6), key


def test_maps_from_before_the_other_method_had_its_name_are_that_methods():
    from reloc_core.registry import default_registry

    registry = default_registry()
    assert registry.get("estimator", "gnn_relpose").name == "gnn_matched"
    assert registry.get("estimator", "gnn_regressor").produces == "RelativePoses"


def test_bad_options_and_data(make_walls, tmp_path, start_run):
    config = tiny()
    config.network.channels = 30
    with pytest.raises(ConfigError, match="multiple of 8"):
        CompactEstimator(config)
    config = tiny()
    config.train.iterations = 0
    with pytest.raises(ConfigError, match="warm_start"):
        CompactEstimator(config)
    config = tiny()
    config.train.regime = "leave_one_out"
    run = start_run(tmp_path / "map", config, make_walls(4), component="gnn_regressor")
    with pytest.raises(DataError, match="extra_datasets"):
        CompactEstimator(config).fit(make_walls(4), run)
    with pytest.raises(MapError, match="no map yet"):
        CompactEstimator(tiny()).estimate(make_walls(2)[0])


def test_a_new_scene_is_indexed_without_training(trained, make_walls, tmp_path, start_run):
    estimator, scene_map = trained
    config = tiny()
    config.train.warm_start, config.train.iterations = str(scene_map.path), 0
    other = make_walls(10, seed=5)
    run = start_run(tmp_path / "map", config, other, component="gnn_regressor")
    indexed = CompactEstimator(config)
    indexed.fit(other, run)
    assert len(indexed.estimate(other[0].without_ground_truth()).world_from_ref) == 4
    assert indexed.scene.scales == estimator.scene.scales

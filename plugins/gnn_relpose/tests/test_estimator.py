"""The compact estimator end to end on a small analytic scene."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gnn_relpose.matched.config import check
from gnn_relpose.matched.estimator import MatchedEstimator
from gnn_relpose.matched.graphs import augment, make_batch, training_graph

from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import AveragingConfig
from reloc_core.solvers.relative_poses import AveragingSolver
from reloc_core.types import Camera


def test_localizes_unseen_images_and_reloads(trained, make_walls):
    estimator, scene_map = trained
    loaded = MatchedEstimator(estimator.config)
    loaded.load(scene_map, Runtime(threads=1, seed=1))
    solver, away, turned = AveragingSolver(AveragingConfig()), [], []
    queries = make_walls(6, seed=9)
    for i in range(6):
        query = queries[i]
        evidence = estimator.estimate(query.without_ground_truth())
        again = loaded.estimate(query.without_ground_truth())
        assert np.allclose(evidence.ref_from_cam, again.ref_from_cam, atol=1e-5)
        pose = (evidence.world_from_ref @ evidence.ref_from_cam)[0]
        away.append(np.linalg.norm(pose[:3, 3] - query.world_from_cam[:3, 3]))
        turned.append(rotation_angle_deg(pose[:3, :3], query.world_from_cam[:3, :3]))
        solver.solve(evidence, query.camera, Runtime())
    # Cameras are spread over +-0.3 m; the nearest reference is some 0.15 m away.
    assert np.median(away) < 0.08
    assert np.median(turned) < 2.0


@pytest.mark.parametrize("sigma", [0.0, 0.4], ids=["stated", "known to be uncertain"])
def test_a_wrong_focal_length_is_told_by_the_matches(trained, make_walls, sigma):
    estimator, _ = trained
    away = {0.7: [], 1.0: [], 1.4: []}
    queries = make_walls(6, seed=9)
    for i in range(6):
        query = queries[i]
        for factor, errors in away.items():
            right = query.camera
            camera = Camera.pinhole(factor * right.fx, right.width, right.height)
            camera = replace(camera, focal_sigma=sigma)
            found = estimator.estimate(replace(query.without_ground_truth(), camera=camera))
            if factor != 1.0:  # what it believed instead goes into the answer
                assert abs(found.camera.fx / right.fx - 1) < 0.5 * abs(factor - 1)
            pose = (found.world_from_ref @ found.ref_from_cam)[0]
            errors.append(np.linalg.norm(pose[:3, 3] - query.world_from_cam[:3, 3]))
    # Taken for granted, a focal length off by 30 % puts the camera some 0.7 m off.
    assert np.median(away[0.7]) < 2 * np.median(away[1.0])
    assert np.median(away[1.4]) < 2 * np.median(away[1.0])


def test_the_scale_of_the_scene_does_not_matter(make_walls, trained, tmp_path, start_run):
    estimator, scene_map = trained
    config = replace(estimator.config, train=replace(estimator.config.train))
    config.train.warm_start, config.train.iterations = str(scene_map.path), 0
    large = make_walls(16, scale=40.0)
    run = start_run(tmp_path / "map", config, large)
    scaled = MatchedEstimator(config)
    scaled.fit(large, run)
    query = make_walls(2, seed=9)[0].without_ground_truth()
    one, other = estimator.estimate(query), scaled.estimate(query)
    assert one.names == other.names
    assert np.allclose(40 * one.ref_from_cam[:, :3, 3], other.ref_from_cam[:, :3, 3], atol=0.05)


def test_cameras_in_one_place_are_refused(config, make_walls, tmp_path, start_run):
    still = make_walls(6, spread=0.0)
    run = start_run(tmp_path / "map", config, still)
    with pytest.raises(DataError, match="parallax"):
        MatchedEstimator(config).fit(still, run)


def test_leave_one_out_needs_other_scenes(config, walls, tmp_path, start_run):
    config.train.regime = "leave_one_out"
    with pytest.raises(DataError, match="extra_datasets"):
        MatchedEstimator(config).fit(walls, start_run(tmp_path / "map", config, walls))


def test_a_query_of_nothing_has_no_good_neighbour(trained, walls):
    estimator, _ = trained
    black = replace(walls[0], image=np.zeros_like(walls[0].image))
    strict = MatchedEstimator(replace(estimator.config, min_similarity=2.0))
    strict.load(trained[1], Runtime(threads=1))
    evidence = strict.estimate(walls[0])
    assert len(evidence.world_from_ref) == 0
    assert "resembles" in evidence.reason
    result = AveragingSolver(AveragingConfig()).solve(evidence, walls[0].camera, Runtime())
    assert not result.localized
    assert np.isfinite(estimator.estimate(black).ref_from_cam).all()


def test_signals_tell_the_scene_from_noise(trained, walls):
    estimator, _ = trained
    noise = np.random.default_rng(0).integers(0, 255, walls[0].image.shape, dtype=np.uint8)
    lenient = MatchedEstimator(replace(estimator.config, min_similarity=0.0))
    lenient.load(trained[1], Runtime(threads=1))
    known = lenient.estimate(walls[0]).signals
    strange = lenient.estimate(replace(walls[0], image=noise)).signals
    assert set(known) == set(strange) == {"retrieval", "agreement", "support"}
    assert all(known[name] > strange[name] for name in known)


def graph_of(estimator, walls, references):
    from gnn_relpose.matched.scene import Pairs

    scene = estimator.scene
    count = len(references)
    rng = np.random.default_rng(0)
    pairs = Pairs(
        np.array([0]),
        np.array([True]),
        scene.pooled[:1],
        scene.inverse_depth,
        np.array([references]),
        rng.normal(0, 0.2, (1, count, scene.rays.shape[1], 2)).astype(np.float16),
        rng.random((1, count, scene.rays.shape[1], 3)).astype(np.float16),
    )
    return scene, pairs


def test_graphs_of_a_batch_do_not_mix_and_order_does_not_matter(trained, walls):
    estimator, _ = trained
    scene, pairs = graph_of(estimator, walls, [3, 5, 7, 9])
    one = training_graph(scene, pairs, 0, np.array([0, 1, 2]))
    two = training_graph(scene, pairs, 0, np.array([3, 1]))
    with torch.inference_mode():
        alone = estimator.network(make_batch([one])[0])[-1].aligned[1]
        both = estimator.network(make_batch([two, one])[0])[-1].aligned[1]
        turned = training_graph(scene, pairs, 0, np.array([0, 2, 1]))
        swapped = estimator.network(make_batch([turned])[0])[-1].aligned[1]
    assert torch.allclose(alone, both[2:], atol=1e-3)
    assert torch.allclose(alone, swapped[[0, 2, 1]], atol=1e-3)


def test_augmentation_keeps_matches_and_poses_consistent(trained, config):
    """Points of exact matches still project to their matches after turning and mirroring."""
    from gnn_relpose.matched.align import Matches, residuals

    estimator, _ = trained
    scene, pairs = graph_of(estimator, None, [3, 5, 7, 9])
    batch, target = make_batch([training_graph(scene, pairs, 0, np.arange(4))])
    local = (batch.matches.points - target[1][:, None]) @ target[0]
    seen = local[..., :2] / local[..., 2:].clamp(min=0.1)
    valid = batch.matches.valid * (local[..., 2] > 0.3)
    cells = batch.cells.clone()
    cells[..., 2:4] = seen
    exact = replace(batch, cells=cells, matches=Matches(batch.matches.points, seen, valid))
    config.augment.negatives = 0
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        moved, pose, _ = augment(exact, target, config.augment, rng)
        error, front, _ = residuals(pose, moved.matches)
        assert (error * front[..., None]).abs().max() < 1e-4
        assert front.sum() > 0


def test_map_of_another_shape_is_refused(trained):
    estimator, scene_map = trained
    network = replace(estimator.config.network, channels=64)
    with pytest.raises(MapError, match="another shape"):
        MatchedEstimator(replace(estimator.config, network=network)).load(scene_map, Runtime())


def test_options_are_checked(config):
    config.network.channels = 30
    with pytest.raises(ConfigError, match="multiple of 8"):
        check(config)
    config.network.channels, config.train.regime = 32, "all"
    with pytest.raises(ConfigError, match="regime"):
        MatchedEstimator(config)


def test_interrupted_training_resumes_to_the_same_network(
    config, make_walls, tmp_path, start_run, monkeypatch
):
    from gnn_relpose.matched.training import Trainer

    config.train.iterations, config.train.checkpoint_seconds = 12, 0
    walls = make_walls(8)
    whole = MatchedEstimator(config)
    whole.fit(walls, start_run(tmp_path / "whole", config, walls))
    step_loss, steps = Trainer.step_loss, []

    def stop(self, step):
        if step == 6:
            raise KeyboardInterrupt
        return step_loss(self, step)

    monkeypatch.setattr(Trainer, "step_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        MatchedEstimator(config).fit(walls, start_run(tmp_path / "map", config, walls))
    monkeypatch.setattr(
        Trainer, "step_loss", lambda self, step: (steps.append(step), step_loss(self, step))[1]
    )
    resumed = MatchedEstimator(config)
    resumed.fit(walls, start_run(tmp_path / "map", config, walls))
    assert steps[0] == 6
    for key, value in whole.network.state_dict().items():
        assert torch.allclose(value, resumed.network.state_dict()[key], atol=1e-6), key
    assert resumed.calibration == whole.calibration

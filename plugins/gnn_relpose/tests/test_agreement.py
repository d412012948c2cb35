"""Common poses of graphs, and how far evidence is to be believed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gnn_relpose.matched.agreement import Agreement, agreement
from gnn_relpose.matched.align import Matches, align, align_together, fits
from gnn_relpose.matched.calibration import Calibration
from gnn_relpose.matched.estimator import MatchedEstimator
from gnn_relpose.matched.network import EdgePoses, GraphBatch
from gnn_relpose.shared.poses import compose, difference, exp_rotation, invert
from gnn_relpose.shared.topology import batch_edges

from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import AveragingConfig
from reloc_core.solvers.relative_poses import AveragingSolver


def random_pose(rng, count, angle, away):
    def draw(size):
        return torch.from_numpy(rng.uniform(-1, 1, (count, 3)) * size).float()

    return exp_rotation(draw(angle)), draw(away)


def graph(seed=0, references=4, cells=60, noise=0.004, outliers=0.3):
    """A query among references, points in front of all; matches with noise and wrong ones."""
    rng = np.random.default_rng(seed)
    world_from_ref = random_pose(rng, references, 0.2, 0.3)
    world_from_ref = world_from_ref[0], world_from_ref[1] - world_from_ref[1][:1]
    world_from_ref[0][0] = torch.eye(3)
    query = random_pose(rng, 1, 0.2, 0.3)
    truth = compose(
        invert(world_from_ref),
        (query[0].expand(references, 3, 3), query[1].expand(references, 3)),
    )
    directions = rng.uniform(-0.5, 0.5, (references, cells, 2))
    depth = rng.uniform(0.7, 1.6, (references, cells, 1))
    points = np.concatenate([directions, np.ones((references, cells, 1))], -1) * depth
    points = torch.from_numpy(points).float()
    local = (points - truth[1][:, None]) @ truth[0]
    seen = local[..., :2] / local[..., 2:]
    seen = seen + noise * torch.from_numpy(rng.standard_normal(seen.shape)).float()
    wrong = torch.from_numpy(rng.random((references, cells)) < outliers)
    false = torch.from_numpy(rng.uniform(-0.6, 0.6, seen.shape)).float()
    seen = torch.where(wrong[..., None], false, seen)
    matches = Matches(points, seen, torch.ones(references, cells))
    index, members = batch_edges([references + 1])
    into = (index[1] == 0).nonzero()[:, 0]
    poses = (
        torch.cat([torch.eye(3)[None], world_from_ref[0]]),
        torch.cat([torch.zeros(1, 3), world_from_ref[1]]),
    )
    batch = GraphBatch(
        nodes=torch.zeros(references + 1, 128),
        graph=members,
        index=index,
        kept=torch.ones(index.shape[1]),
        query_edges=into[index[0, into].argsort()],
        poses=poses,
        cells=torch.zeros(references, cells, 11),
        matches=matches,
    )
    return batch, truth


def belief(pose):
    count = len(pose[0])
    eye = torch.eye(6).expand(count, 6, 6)
    return EdgePoses(pose, pose, eye, eye, torch.zeros(count), torch.ones(count, 1))


def test_together_is_one_alignment_of_all_points_in_one_frame():
    batch, truth = graph(outliers=0.0)
    source = batch.index[0, batch.query_edges]
    edges = torch.zeros(len(source), dtype=torch.long)
    scale, ones = torch.tensor(4.0), batch.matches.valid
    found = align_together(truth, batch.matches, ones, edges, 8, scale)
    in_first = (batch.poses[0][source], batch.poses[1][source])
    points = torch.cat([(r @ p.T).T + t for r, t, p in zip(*in_first, batch.matches.points)])  # noqa: B905
    stacked = Matches(points[None], batch.matches.seen.flatten(0, 1)[None], ones.flatten()[None])
    first = truth[0][:1], truth[1][:1]
    expected, _, _ = align(first, stacked, stacked.valid, 8, scale)
    assert torch.allclose(found[1][0], expected[1][0], atol=1e-4)
    assert torch.allclose(found[0][0], expected[0][0], atol=1e-4)


def test_one_good_belief_among_wrong_ones_is_enough():
    rng = np.random.default_rng(1)
    batch, truth = graph()
    wrong = compose(truth, random_pose(rng, 4, 1.0, 0.8))
    beliefs = wrong[0].clone(), wrong[1].clone()
    beliefs[0][2], beliefs[1][2] = truth[0][2], truth[1][2]
    found = agreement(batch, belief(beliefs))
    off = difference(found.poses, truth)
    assert off[:, :3].norm(dim=-1).max() < 0.02
    assert off[:, 3:].norm(dim=-1).max() < 0.02
    assert (found.support > 0.5).all()
    hopeless = agreement(batch, belief(wrong))
    assert found.common.min() > 0.55
    assert hopeless.common.max() < 0.75


def test_own_poses_have_own_errors_of_the_stated_size():
    """Errors of references are uncorrelated and as large as the information says."""
    squares, products = [], []
    for seed in range(25):
        batch, truth = graph(seed, noise=0.008, outliers=0.0)
        found = agreement(batch, belief(truth))
        off = difference(found.poses, truth).double()
        information = found.information.double()
        squares.append(torch.einsum("qi,qij,qj->q", off, information, off))
        whole = torch.linalg.cholesky(information).transpose(-1, -2) @ off[..., None]
        products.append((whole[0] * whole[1]).sum() / 6)
    # Variance of an M-estimator (Huber 1964) by the information that its weights pretend, per residual.
    r = np.random.default_rng(0).standard_normal((200_000, 2))
    square = (r * r).sum(-1)
    weight = 1 / (1 + square) ** 2
    slope = weight - 4 * r[:, 0] ** 2 / (1 + square) ** 3
    expected = 6 * weight.mean() * (weight**2 * r[:, 0] ** 2).mean() / slope.mean() ** 2
    mean = float(torch.cat(squares).mean())
    assert mean == pytest.approx(expected, rel=0.4)
    assert abs(float(torch.stack(products).mean())) < 0.25 * mean / 6


def test_fits_counts_what_is_near():
    batch, truth = graph(noise=0.0, outliers=0.25)
    fitting, visible = fits(truth, batch.matches, 3.0)
    share = fitting.sum() / visible.sum()
    assert 0.65 < share < 0.85


def test_confidence_tips_at_the_calibrated_share():
    share = torch.tensor([0.05, 0.2, 0.8])
    found = Agreement((torch.zeros(0), torch.zeros(0)), torch.zeros(0), share, share, share)
    low, middle, high = Calibration(support=0.2).confidences(found).tolist()
    assert low < 0.01
    assert middle == pytest.approx(0.25)
    assert high > 0.99


def test_map_keeps_the_calibration(trained):
    estimator, scene_map = trained
    assert estimator.calibration != Calibration()
    loaded = MatchedEstimator(estimator.config)
    loaded.load(scene_map, Runtime(threads=1))
    assert loaded.calibration == estimator.calibration


def localized(estimator, dataset, count=4):
    solver, found = AveragingSolver(AveragingConfig()), []
    for i in range(count):
        query = dataset[i]
        result = solver.solve(
            estimator.estimate(query.without_ground_truth()), query.camera, Runtime()
        )
        if result.localized:
            pose, truth = result.world_from_cam, query.world_from_cam
            away = np.linalg.norm(pose[:3, 3] - truth[:3, 3])
            found.append((away, rotation_angle_deg(pose[:3, :3], truth[:3, :3])))
    return np.array(found).reshape(-1, 2)


def test_images_of_another_place_are_not_localized(trained, make_walls):
    estimator, _ = trained
    here = localized(estimator, make_walls(6, seed=9), 6)
    assert len(here) == 6
    assert np.median(here[:, 0]) < 0.06
    assert len(localized(estimator, make_walls(6, seed=9, look=40), 6)) == 0


def indexed(estimator, scene_map, dataset, path, start_run, **graph):
    train = replace(estimator.config.train, warm_start=str(scene_map.path), iterations=0)
    config = replace(estimator.config, train=train, graph=replace(estimator.config.graph, **graph))
    result = MatchedEstimator(config)
    result.fit(dataset, start_run(path / "map", config, dataset))
    return result


def test_fewer_references_than_neighbours(trained, make_walls, tmp_path, start_run):
    few = indexed(*trained, make_walls(5), tmp_path, start_run, neighbours=9)
    evidence = few.estimate(make_walls(2, seed=9)[0].without_ground_truth())
    assert len(evidence.world_from_ref) == 5
    assert few.calibration == trained[0].calibration


def test_identical_references(trained, make_walls, tmp_path, start_run):
    class Twice(make_walls):
        def __init__(self):
            super().__init__(8)
            self._frames = [
                replace(f, name=f"{f.name}{copy}") for f in self._frames for copy in "ab"
            ]

    double = indexed(*trained, Twice(), tmp_path, start_run)
    evidence = double.estimate(make_walls(6, seed=9)[0].without_ground_truth())
    places = np.round(evidence.world_from_ref[:, :3, 3], 6)
    assert len(np.unique(places, axis=0)) == len(places)
    assert len(localized(double, make_walls(6, seed=9))) >= 3


def test_grey_images_and_a_black_one(trained, walls):
    estimator, _ = trained
    grey = walls[0].image.mean(2).round().astype(np.uint8)
    colour = np.repeat(grey[..., None], 3, 2)
    evidence = estimator.estimate(replace(walls[0], image=colour))
    assert len(evidence.world_from_ref) > 0
    solver = AveragingSolver(AveragingConfig())
    black = replace(walls[0], image=np.zeros_like(colour))
    result = solver.solve(estimator.estimate(black), walls[0].camera, Runtime())
    assert not result.localized

"""Poses, triangulation and alignment against analytic truth and SciPy-free oracles."""

import cv2
import numpy as np
import torch
from gnn_relpose.matched.align import Matches, Prior, align, residuals
from gnn_relpose.matched.depth import triangulate
from gnn_relpose.shared.poses import (
    difference,
    exp_quaternion,
    exp_rotation,
    invert,
    log_quaternion,
    log_rotation,
    perturb,
)

from reloc_core.geometry import inverse, so3_exp, transform


def random_pose(n, seed, angle=0.3, away=0.3):
    g = torch.Generator().manual_seed(seed)
    vector = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return exp_rotation(angle * vector), away * torch.randn(n, 3, generator=g, dtype=torch.float64)


def test_rotations_are_opencvs():
    for w in ([0.3, -0.8, 0.5], [1e-5, 0, 2e-5], [0, 0, 0], [0, 2.9, 0.1]):
        expected = cv2.Rodrigues(np.array(w, float))[0]
        w = torch.tensor(w, dtype=torch.float64)
        assert np.allclose(exp_rotation(w).numpy(), expected, atol=1e-9)
        assert torch.allclose(log_rotation(exp_rotation(w)), w, atol=1e-7)


def test_gradients_are_finite_at_zero():
    w = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    log_rotation(exp_rotation(w)).sum().backward()
    assert torch.allclose(w.grad, torch.ones_like(w), atol=1e-6)


def test_difference_undoes_perturb_and_invert_inverts():
    pose, tangent = random_pose(5, 0), 0.2 * torch.randn(5, 6, dtype=torch.float64)
    assert torch.allclose(difference(pose, perturb(pose, tangent)), tangent, atol=1e-9)
    back = invert(invert(pose))
    assert torch.allclose(back[1], pose[1])


def test_quaternion_logarithm_round_trip():
    q = torch.nn.functional.normalize(torch.randn(10_000, 4, dtype=torch.float64), dim=-1)
    q[0] = torch.tensor([1.0, 0, 0, 0])
    again = exp_quaternion(log_quaternion(q))
    assert torch.allclose((again * q).sum(-1).abs(), torch.ones(10_000, dtype=torch.float64))
    assert log_quaternion(q).norm(dim=-1).max() <= np.pi / 2 + 1e-9


def views(seed=0, cells=80, others=5):
    rng = np.random.default_rng(seed)
    rays = rng.uniform(-0.5, 0.5, (cells, 2))
    depth = rng.uniform(1.5, 4, cells)
    points = np.c_[rays, np.ones(cells)] * depth[:, None]
    poses = np.repeat(np.eye(4)[None], others, 0)
    poses[:, :3, :3] = so3_exp(rng.normal(0, 0.1, (others, 3)))
    poses[:, :3, 3] = rng.normal(0, 0.3, (others, 3))
    local = np.stack([transform(p, points) for p in poses])
    return rng, rays, depth, poses, local[..., :2] / local[..., 2:]


def test_triangulation_recovers_depth_and_survives_outliers():
    rng, rays, depth, poses, seen = views()
    usable = np.ones(seen.shape[:2], bool)
    exact = triangulate(rays, seen, poses, usable)
    assert np.allclose(exact.values, 1 / depth, rtol=1e-6)
    seen[0] = rng.uniform(-0.5, 0.5, seen[0].shape)  # one image matched at random
    robust = triangulate(rays, seen + rng.normal(0, 0.002, seen.shape), poses, usable)
    known = robust.values > 0
    assert known.mean() > 0.9
    assert np.median(np.abs(robust.values * depth - 1)[known]) < 0.03


def test_no_parallax_gives_no_depth():
    rng, rays, _, poses, seen = views()
    poses[:, :3, 3] = 1e-9
    pure = np.stack([transform(p, np.c_[rays, np.ones(len(rays))]) for p in poses])
    seen = pure[..., :2] / pure[..., 2:] + rng.normal(0, 0.001, seen.shape)
    found = triangulate(rays, seen, poses, np.ones(seen.shape[:2], bool))
    assert not found.values.any()
    none = triangulate(rays, seen[:0], poses[:0], np.ones((0, len(rays)), bool))
    assert not none.values.any()


def scene(n=3, cells=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    rays = torch.rand(n, cells, 2, generator=g, dtype=torch.float64) - 0.5
    depth = 0.6 + torch.rand(n, cells, 1, generator=g, dtype=torch.float64)
    points = torch.cat([rays, torch.ones_like(depth)], -1) * depth
    pose = random_pose(n, seed + 1, 0.1, 0.1)
    local = (points - pose[1][:, None]) @ pose[0]
    seen = local[..., :2] / local[..., 2:]
    return pose, Matches(points, seen, torch.ones(n, cells, dtype=torch.float64))


def identity(n):
    return torch.eye(3, dtype=torch.float64).repeat(n, 1, 1), torch.zeros(n, 3, dtype=torch.float64)


def test_alignment_recovers_the_pose_and_ignores_unweighted_cells():
    truth, matches = scene()
    weights = torch.ones_like(matches.valid)
    matches.seen[:, :20] += 0.3
    weights[:, :20] = 0
    scale = torch.tensor(50.0, dtype=torch.float64)
    pose, _, _ = align(identity(3), matches, weights, 15, scale)
    assert difference(pose, truth).abs().max() < 1e-5


def test_jacobian_is_that_of_finite_differences():
    truth, matches = scene(1, 8)
    start = perturb(truth, torch.full((1, 6), 0.05, dtype=torch.float64))
    from gnn_relpose.matched.align import _jacobian

    _, front, local = residuals(start, matches)
    analytic = _jacobian(local, front)
    for k in range(6):
        step = torch.zeros(1, 6, dtype=torch.float64)
        step[0, k] = 1e-6
        ahead, behind = (residuals(perturb(start, s), matches)[0] for s in (step, -step))
        assert torch.allclose(analytic[..., k], (ahead - behind) / 2e-6, atol=1e-6)


def test_information_is_that_of_the_errors():
    """With noise of the assumed size, squared errors measured by the information average six."""
    scale = torch.tensor(1e3, dtype=torch.float64)
    squares = []
    for seed in range(60):
        truth, matches = scene(4, 60, seed)
        g = torch.Generator().manual_seed(1000 + seed)
        noise = 0.008 * torch.randn(matches.seen.shape, generator=g, dtype=torch.float64)
        noisy = Matches(matches.points, matches.seen + noise, matches.valid)
        pose, own, _ = align(truth, noisy, noisy.valid, 8, scale)
        off = difference(pose, truth)
        squares += torch.einsum("qi,qij,qj->q", off, own, off).tolist()
    assert 5.0 < np.mean(squares) < 7.0


def test_prior_pulls_and_decides_without_matches():
    truth, matches = scene()
    unit = torch.eye(6, dtype=torch.float64).repeat(3, 1, 1)
    nothing = Matches(matches.points, matches.seen, torch.zeros_like(matches.valid))
    scale = torch.tensor(5.0, dtype=torch.float64)
    weights = torch.zeros_like(matches.valid)
    pose, own, total = align(identity(3), nothing, weights, 8, scale, Prior(truth, 1e6 * unit))
    assert difference(pose, truth).abs().max() < 1e-3
    assert (total.diagonal(dim1=1, dim2=2) > own.diagonal(dim1=1, dim2=2)).all()
    alone, _, _ = align(identity(3), nothing, weights, 8, scale)
    assert difference(alone, identity(3)).abs().max() < 1e-9


def test_masked_cells_change_nothing():
    _, matches = scene()
    valid = matches.valid.clone()
    valid[:, 0] = 0
    scale = torch.tensor(50.0, dtype=torch.float64)
    poses = []
    for value in (0.0, 1e6):
        seen = matches.seen.clone()
        seen[:, 0] = value
        poses.append(align(identity(3), Matches(matches.points, seen, valid), valid, 10, scale)[0])
    assert torch.equal(poses[0][1], poses[1][1])


def test_inverse_of_core_agrees():
    pose = random_pose(1, 4)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = pose[0][0].numpy(), pose[1][0].numpy()
    back = invert(pose)
    assert np.allclose(inverse(matrix)[:3, 3], back[1][0].numpy())

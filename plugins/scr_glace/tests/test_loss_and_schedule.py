import numpy as np
import pytest
import torch
from scr_glace.config import LossConfig, OptimizerConfig
from scr_glace.training.loss import reprojection_loss, robust, threshold
from scr_glace.training.muon import Muon, orthogonal
from scr_glace.training.schedule import one_cycle

from reloc_core.geometry import inverse, so3_exp
from reloc_core.training.packing import pack, unpack


@pytest.mark.parametrize(
    ("schedule", "expected"), [("circle", (51, 44.3013, 1)), ("linear", (51, 26, 1))]
)
def test_threshold(schedule, expected):
    config = LossConfig(schedule=schedule)
    got = [threshold(config, t) for t in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def problem(n=400, seed=0):
    rng = np.random.default_rng(seed)
    pose = np.tile(np.eye(4), (n, 1, 1))
    pose[:, :3, :3] = so3_exp(rng.normal(0, 0.3, (n, 3)))
    pose[:, :3, 3] = rng.normal(0, 1, (n, 3))
    k = np.tile(np.eye(3), (n, 1, 1))
    k[:, 0, 0], k[:, 1, 1] = rng.uniform(300, 600, n), rng.uniform(300, 600, n)
    k[:, :2, 2] = rng.uniform(200, 300, (n, 2))
    pixels = rng.uniform(0, 500, (n, 2))
    # Some behind the camera, some far, some grossly wrong.
    cam = rng.normal((0, 0, 3), 1, (n, 3))
    cam[:40, 2] *= -1
    cam[40:60] *= 800
    cam[60:80, 2] = 0.05
    points = np.einsum("nij,nj->ni", pose[:, :3, :3], cam) + pose[:, :3, 3]
    return points, inverse(pose), k, pixels


def published(points, cam_from_world, k, pixels, tau):
    """Steps 1 to 6 of the published loss in NumPy, with pixels and calibration matrices."""
    cam = np.einsum("nij,nj->ni", cam_from_world[:, :3, :3], points) + cam_from_world[:, :3, 3]
    q = np.einsum("nij,nj->ni", k, cam)
    u = q[:, :2] / np.maximum(q[:, 2:], 0.1)
    e = np.abs(u - pixels).sum(-1)
    invalid = (cam[:, 2] < 0.1) | (e > 1000) | (cam[:, 2] > 1000)
    ray = np.einsum("nij,nj->ni", np.linalg.inv(k), np.c_[pixels, np.ones(len(pixels))])
    pull = np.abs(cam - 10 * ray).sum(-1)
    return np.where(invalid, pull, tau * np.tanh(e / tau)).sum(), (~invalid).sum()


@pytest.mark.parametrize("progress", [0.0, 0.4, 0.99])
def test_loss_equals_the_published_formula(progress):
    points, cam_from_world, k, pixels = problem()
    config = LossConfig()
    expected, valid = published(points, cam_from_world, k, pixels, threshold(config, progress))
    focal = np.stack([k[:, 0, 0], k[:, 1, 1]], -1)
    rays = (pixels - k[:, :2, 2]) / focal
    terms = reprojection_loss(
        config,
        *(torch.from_numpy(a) for a in (points, cam_from_world[:, :3], rays, focal)),
        progress,
    )
    assert float(terms.total) == pytest.approx(expected, rel=1e-9)
    assert int(terms.valid) == valid
    assert 0 < valid < len(points)


def test_loss_is_zero_at_the_truth_and_has_finite_gradients_everywhere():
    points, cam_from_world, k, _ = problem()
    cam = np.einsum("nij,nj->ni", cam_from_world[:, :3, :3], points) + cam_from_world[:, :3, 3]
    keep = (cam[:, 2] > 0.2) & (cam[:, 2] < 900)
    rays = cam[:, :2] / cam[:, 2:]
    focal = np.stack([k[:, 0, 0], k[:, 1, 1]], -1)
    arrays = [torch.from_numpy(a[keep]) for a in (points, cam_from_world[:, :3], rays, focal)]
    terms = reprojection_loss(LossConfig(), *arrays, 0.3)
    assert float(terms.total) == pytest.approx(0, abs=1e-6)
    for kind in ("dyntanh", "tanh", "l1", "l1+sqrt", "l1+log"):
        wild = torch.from_numpy(points).requires_grad_()
        terms = reprojection_loss(
            LossConfig(type=kind),
            wild,
            *(torch.from_numpy(a) for a in (cam_from_world[:, :3], rays * 0, focal)),
            0.3,
        )
        terms.total.backward()
        assert torch.isfinite(wild.grad).all()


def test_other_robust_functions():
    e = torch.tensor([10.0, 50.0, 200.0])
    expected = {
        "tanh": 50 * np.tanh(e.numpy() / 50),
        "l1": [10, 50, 0],
        "l1+sqrt": [10, 50, 100],
        "l1+log": [10, 50, np.log(1 + 50 * 200)],
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(robust(LossConfig(type=kind), e, 0.5), values, rtol=1e-6)


def test_one_cycle_equals_pytorch():
    total = 200
    config = OptimizerConfig(respect_lr_min=False)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.0005)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.005, total_steps=total, cycle_momentum=False
    )
    for step in range(total):
        assert one_cycle(config, step, total) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        if step < total - 1:
            schedule.step()


def test_one_cycle_acceptance_values():
    config = OptimizerConfig(respect_lr_min=False)
    assert one_cycle(config, 0, 30_000) == pytest.approx(2e-4)
    assert one_cycle(config, 9_000 - 1, 30_000) == pytest.approx(5e-3)
    assert one_cycle(config, 29_999, 30_000) == pytest.approx(2e-8)
    assert one_cycle(OptimizerConfig(), 29_999, 30_000) == pytest.approx(5e-4)
    assert one_cycle(config, 0, 1) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonal_keeps_the_singular_vectors(dtype):
    """Against NumPy's SVD: the same directions, all about equally long."""
    for shape in ((80, 160), (160, 80)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        u, _, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
        found = orthogonal(matrix, dtype=dtype).double().numpy()
        inner = u.T @ found @ vh.T
        np.testing.assert_allclose(np.diag(inner), 1.0, atol=0.35)
        assert np.abs(inner - np.diag(np.diag(inner))).max() < 0.06


def test_blocks_of_rows_are_made_orthogonal_each_by_itself():
    matrix = torch.randn(96, 160, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrix, 32)
    for block, whole in zip(found.split(32), matrix.split(32), strict=True):
        torch.testing.assert_close(block, orthogonal(whole), rtol=1e-4, atol=1e-6)
    # Entries are about as large as those of the whole; rows that do not divide leave it whole.
    assert float(found.std() / orthogonal(matrix).std()) == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(orthogonal(matrix, 50), orthogonal(matrix))


def test_muon_resumes_where_it_stopped():
    def steps(first, last, state=None):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 3))
        optimizer = Muon(net.parameters(), 2.0)
        if state is not None:
            unpack(state, {"net": net}, optimizer)
        for step in range(first, last):
            x = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = (net(x) - x[:, :3]).square().mean()
            loss.backward()
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
        return pack({"net": net}, optimizer), float(loss.detach())

    whole, loss = steps(0, 40)
    half, early = steps(0, 20)
    resumed, _ = steps(20, 40, half)
    assert loss < early < 1.0
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)

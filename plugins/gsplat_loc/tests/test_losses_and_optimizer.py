"""Losses, Adam with a changing number of rows, and density control."""

import numpy as np
import pytest
import torch
from gsplat_loc.config import DensifyConfig, GsplatConfig, TrainConfig
from gsplat_loc.field.gaussians import from_points
from gsplat_loc.mapping.losses import psnr, ssim
from gsplat_loc.mapping.optimizer import DensityControl, FieldOptimizer, rotated
from gsplat_loc.mapping.train import _shown, schedule
from scipy.ndimage import correlate1d

from reloc_core.geometry import rotation_from_quaternion


def reference_ssim(a, b):
    """SSIM written out per channel with SciPy's correlation."""
    x = np.arange(11) - 5
    kernel = np.exp(-(x**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def blur(image):
        return correlate1d(
            correlate1d(image, kernel, 0, mode="constant"), kernel, 1, mode="constant"
        )

    values = []
    for p, q in zip(a, b, strict=True):
        mp, mq = blur(p), blur(q)
        vp, vq, c = blur(p * p) - mp**2, blur(q * q) - mq**2, blur(p * q) - mp * mq
        values.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4)
                      / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))  # fmt: skip
    return np.mean(values)


def test_ssim_agrees_with_a_plain_implementation():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 40, 30))
    found = ssim(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert float(found) == pytest.approx(reference_ssim(a, b), abs=1e-5)
    assert float(ssim(torch.from_numpy(a).float(), torch.from_numpy(a).float())) == pytest.approx(1)


def test_psnr():
    a = torch.full((4, 4, 3), 0.5)
    assert psnr(a + 0.1, a) == pytest.approx(20, abs=1e-3)


def steps(optimizer, count, target):
    for i in range(count):
        gaussians = optimizer.gaussians
        loss = sum(((v - target) ** 2).sum() for v in gaussians.tensors().values())
        loss.backward()
        optimizer.step(i)


def test_rows_keep_their_momentum_when_others_go(make_field):
    """Removing rows and adding fresh ones leaves the remaining rows' path unchanged."""
    options = TrainConfig(iterations=100)
    whole = FieldOptimizer(make_field(8), options, 1.0)
    part = FieldOptimizer(make_field(8), options, 1.0)
    kept = torch.tensor([0, 3, 5])
    steps(whole, 3, 0.7)
    steps(part, 3, 0.7)
    names = ("means", "base", "rest", "opacities", "scales", "quaternions")
    part.replace(kept, {n: torch.zeros_like(part[n].detach()[:2]) for n in names})
    steps(whole, 4, 0.7)
    steps(part, 4, 0.7)
    for name in names:
        assert len(part[name]) == 5
        torch.testing.assert_close(part[name][:3], whole[name][kept])


def test_checkpoint_continues_exactly(make_field):
    options = TrainConfig(iterations=100)
    first = FieldOptimizer(make_field(8), options, 1.0)
    steps(first, 3, 0.2)
    state = {k: v.clone() for k, v in first.state().items()}
    second = FieldOptimizer(make_field(5, seed=3), options, 1.0)
    second.load(state)
    steps(first, 3, 0.2)
    steps(second, 3, 0.2)
    torch.testing.assert_close(first.gaussians.tensors(), second.gaussians.tensors())


def test_density_control_clones_splits_and_removes(make_field):
    field = make_field(6)
    field.scales[:] = np.log(0.001)
    field.scales[1] = torch.tensor([0.1, 0.05, 0.02]).log()
    field.opacities[:] = 2.0
    field.opacities[4] = -9.0  # too faint
    optimizer = FieldOptimizer(field, TrainConfig(), 1.0)
    control = DensityControl(DensifyConfig(percent_dense=0.01), 1.0, 0, seed=0)
    control.sums = torch.tensor([1.0, 1.0, 0, 0, 1.0, 0])
    control.counts = torch.ones(6)
    control.round(optimizer, 400)
    # Gaussian 0 is cloned, 1 split in two, 4 removed.
    found = optimizer.gaussians.detached()
    assert len(found) == 4 + 1 + 2
    torch.testing.assert_close(found.means[4], field.means[0])
    torch.testing.assert_close(found.scales[-1], field.scales[1] - float(np.log(1.6)))
    assert float((found.means[-2:] - field.means[1]).norm(dim=1).max()) < 0.5


def test_growth_stops_at_the_limit(make_field):
    optimizer = FieldOptimizer(make_field(20), TrainConfig(), 1.0)
    control = DensityControl(DensifyConfig(max_scale=0, min_opacity=0), 1.0, 23, seed=0)
    control.sums = torch.arange(20.0)
    control.counts = torch.ones(20)
    control.round(optimizer, 400)
    assert len(optimizer["means"]) == 23


def test_rotation_of_vectors(make_field):
    field = make_field(10)
    vectors = torch.randn(10, 3)
    matrices = rotation_from_quaternion(field.quaternions.double().numpy())
    expected = np.einsum("nij,nj->ni", matrices, vectors.numpy())
    np.testing.assert_allclose(rotated(field.quaternions, vectors).numpy(), expected, atol=1e-5)


def test_few_images_shrink_the_whole_schedule():
    config = GsplatConfig()
    assert schedule(config, 700) is config
    short = schedule(config, 20)
    assert short.train.iterations == 1000
    assert (short.densify.start, short.densify.stop) == (150, 750)
    assert short.gaussians.sh_interval == 150
    assert config.train.iterations == 2000
    config.train.per_image = 0
    assert schedule(config, 20) is config


def test_gaussians_are_shown_where_they_are_in_their_colours():
    rng = np.random.default_rng(0)
    points, rgb = rng.normal(size=(20, 3)), rng.integers(0, 256, (20, 3), np.uint8)
    origin = np.array([1e6, -5.0, 2.0])
    shown = _shown(from_points(points, rgb, np.full(20, 0.1), 0.5, sh_degree=2), origin)
    np.testing.assert_allclose(shown.points, points + origin, atol=1e-6)
    np.testing.assert_allclose(shown.colors.astype(int), rgb, atol=1)

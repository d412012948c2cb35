"""Input that divides by zero, overflows or covers everything: finite values, finite gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rendering.scenes import leaf, make_scene, make_view, moving

from reloc_core.rendering import Gaussians, accumulate_features, rasterize
from reloc_core.rendering.reference import rasterize_reference

TWELVE = 12


def spoiled(kind):
    gaussians, channels = make_scene(TWELVE, 19, seed=2)
    m, q, s, o = (t.clone() for t in vars(gaussians).values())
    if kind == "zero quaternion":
        q[::2] = 0
    elif kind == "huge scales":
        s[::2] = 1e30
    elif kind == "tiny scales":
        s[::2] = 1e-30
    elif kind == "zero scales":
        s[:] = 0
    elif kind == "flat and huge":
        s[::2] = torch.tensor([1e20, 1e20, 0.0])
    elif kind == "behind":
        m[:, 2] *= -1
    elif kind == "transparent":
        o[:] = 0
    elif kind == "opaque":
        o[:] = 1
    elif kind == "not a number":
        m[0], q[1], s[2], o[3] = (float("nan"),) * 4
        m[4], s[5], q[6] = (float("inf"),) * 3
    elif kind == "camera inside":
        m[0] = torch.tensor([0.01, 0.0, 0.201])
        s[0] = 3.0
    elif kind == "same depth":
        m[:, 2] = 2.0
    elif kind == "beside the camera":
        m[:, 0] = 1e6
        m[:, 2] = 0.2001
    elif kind == "far away":
        m *= 1e20
    return Gaussians(m, q, s, o), channels


KINDS = [
    "zero quaternion",
    "huge scales",
    "tiny scales",
    "zero scales",
    "flat and huge",
    "behind",
    "transparent",
    "opaque",
    "not a number",
    "camera inside",
    "same depth",
    "beside the camera",
    "far away",
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_stays_finite(kind, antialias):
    gaussians, channels = spoiled(kind)
    view, twist = moving(make_view())
    live = leaf(gaussians, torch.float32)
    channels.requires_grad_(True)
    out = rasterize(live, channels, view, antialias=antialias, background=torch.ones(19))
    (out.image.sum() + out.alpha.sum() + out.depth.sum()).backward()
    values = (out.image, out.alpha, out.depth, out.weights, twist.grad, channels.grad)
    grads = [t.grad for t in vars(live).values()]
    assert all(torch.isfinite(t).all() for t in (*values, *grads))
    sums = accumulate_features(gaussians, torch.ones(28, 40, 5), view, antialias=antialias)
    assert torch.isfinite(sums.features).all()


@pytest.mark.parametrize("kind", ["zero quaternion", "opaque", "camera inside", "same depth"])
def test_still_agrees_with_the_reference(kind):
    gaussians, channels = spoiled(kind)
    view = make_view()
    double = Gaussians(*(t.double() for t in vars(gaussians).values()))
    want = rasterize_reference(double, channels.double(), view)
    out = rasterize(gaussians, channels, view)
    sure = want.margin > 1e-4
    assert sure.double().mean() > 0.8
    torch.testing.assert_close(out.image[sure].double(), want.image[sure], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["behind", "transparent"])
def test_nothing_to_draw_shows_the_background(kind):
    gaussians, channels = spoiled(kind)
    out = rasterize(gaussians, channels, make_view(), background=torch.full((19,), 0.25))
    assert torch.equal(out.image, torch.full_like(out.image, 0.25))
    assert not out.alpha.any()
    assert not out.visible.any()


def test_no_gaussians():
    empty, channels = make_scene(0, 3, seed=0)
    live = leaf(empty, torch.float32)
    background = torch.ones(3, requires_grad=True)
    out = rasterize(live, channels, make_view(), background=background)
    out.image.sum().backward()
    assert live.means.grad.shape == (0, 3)
    assert torch.equal(background.grad, torch.full((3,), 28.0 * 40))


def test_a_splat_larger_than_the_image_covers_it_evenly():
    gaussians = Gaussians(
        torch.tensor([[0.0, 0.0, 2.0]]),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.full((1, 3), 1e4),
        torch.tensor([0.5]),
    )
    out = rasterize(gaussians, torch.ones(1, 1), make_view(width=333, height=70))
    torch.testing.assert_close(out.image, torch.full_like(out.image, 0.5), rtol=0, atol=1e-4)


def test_one_opaque_splat_is_capped_not_dropped():
    gaussians, _ = make_scene(1, 0, seed=0)
    one = replace(
        gaussians,
        means=torch.tensor([[0.0, 0.0, 2.0]]),
        scales=torch.full((1, 3), 5.0),
        opacities=torch.ones(1),
    )
    out = rasterize(one, torch.ones(1, 3), make_view())
    assert out.alpha.max() == pytest.approx(0.99, abs=1e-6)


def test_a_pixel_is_a_pixel():
    view = make_view(width=1, height=1)
    out = rasterize(*make_scene(20, 3, seed=1), view)
    assert out.image.shape == (1, 1, 3)

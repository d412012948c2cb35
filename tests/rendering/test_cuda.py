"""The gsplat backend: its arguments against a stand-in, its pictures where CUDA is there."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from rendering.scenes import leaf, make_scene, make_view

from reloc_core.errors import PluginError
from reloc_core.rendering import Gaussians, View, accumulate_features, rasterize
from reloc_core.rendering.cuda import accumulate_cuda, rasterize_cuda
from reloc_core.rendering.reference import rasterize_reference


def fake_rasterization(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d,
    packed, render_mode, rasterize_mode, absgrad,
):  # fmt: skip
    """gsplat's documented contract on top of the reference."""
    assert (eps2d, packed, render_mode, absgrad) == (0.3, False, "RGB+ED", True)
    (cam_from_world,), (k,) = viewmats, Ks
    view = View(
        torch.linalg.inv(cam_from_world.double()),
        float(k[0, 0]),
        float(k[1, 1]),
        float(k[0, 2]) - 0.5,
        float(k[1, 2]) - 0.5,
        width,
        height,
    )
    out = rasterize_reference(
        Gaussians(means, quats, scales, opacities),
        colors,
        view,
        near=near_plane,
        antialias=rasterize_mode == "antialiased",
    )
    image = torch.cat([out.image, out.depth[..., None]], -1)
    info = {
        "means2d": torch.zeros(1, len(means), 2),
        "radii": torch.ones(1, len(means), 2, dtype=torch.int32),
    }
    return image[None], out.alpha[None, ..., None], info


@pytest.fixture
def fake_gsplat(monkeypatch):
    module = types.ModuleType("gsplat")
    module.rasterization = fake_rasterization
    monkeypatch.setitem(sys.modules, "gsplat", module)


@pytest.mark.parametrize("acting", [0, 3, 5])
@pytest.mark.parametrize("antialias", [False, True])
def test_adapter_keeps_the_contract(fake_gsplat, acting, antialias, tilted_view):
    scene = make_scene(60, 5, seed=3)
    background = torch.rand(5)

    def run(render):
        gaussians = leaf(scene[0], torch.float32)
        channels = scene[1].clone().requires_grad_(True)
        out = render(gaussians, channels)
        seed = torch.randn(28, 40, 5, generator=torch.Generator().manual_seed(0))
        ((out.image * seed).sum() + out.depth.sum()).backward()
        return out, [*(t.grad for t in vars(gaussians).values()), channels.grad]

    got, got_grads = run(
        lambda g, c: rasterize_cuda(g, c, tilted_view, background, 0.2, antialias, acting)
    )
    want, want_grads = run(
        lambda g, c: rasterize(
            g, c, tilted_view, background=background, antialias=antialias, geometry_channels=acting
        )
    )
    for name in ("image", "alpha", "depth", "weights"):
        torch.testing.assert_close(
            getattr(got, name), getattr(want, name), rtol=1e-3, atol=1e-3, msg=name
        )
    for a, b in zip(want_grads, got_grads, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-3 * float(a.abs().max()))


def test_adapter_accumulates(fake_gsplat, tilted_view):
    gaussians, _ = make_scene(60, 0, seed=3)
    features = torch.randn(28, 40, 7, generator=torch.Generator().manual_seed(0))
    got = accumulate_cuda(gaussians, features, tilted_view, 0.2, False)
    want = accumulate_features(gaussians, features, tilted_view)
    torch.testing.assert_close(got.weights, want.weights, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(got.features, want.features, rtol=1e-3, atol=2e-2)


def test_missing_gsplat_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    gaussians, channels = make_scene(5, 3, seed=1)
    with pytest.raises(PluginError, match=r"reloc\[cuda\]"):
        rasterize_cuda(gaussians, channels, make_view(), None, 0.2, False, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and gsplat")
@pytest.mark.parametrize("antialias", [False, True])
def test_cuda_agrees_with_the_cpu(antialias, tilted_view):
    pytest.importorskip("gsplat", reason="the extra reloc[cuda] is not installed")
    gaussians, channels = make_scene(200, 19, seed=5)
    on_device = Gaussians(*(t.cuda() for t in vars(gaussians).values()))
    got = rasterize(on_device, channels.cuda(), tilted_view, antialias=antialias)
    want = rasterize(gaussians, channels, tilted_view, antialias=antialias)
    assert (got.image.cpu() - want.image).abs().max() < 2e-3 * channels.abs().max()
    assert (got.alpha.cpu() - want.alpha).abs().max() < 2e-3

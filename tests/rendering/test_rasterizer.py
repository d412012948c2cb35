"""The native rasterizer against the dense float64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rendering.scenes import leaf, make_scene, make_view, moving

from reloc_core import _native
from reloc_core.errors import InputError
from reloc_core.rendering import Gaussians, accumulate_features, rasterize
from reloc_core.rendering.reference import rasterize_reference

NAMES = ("means", "quaternions", "scales", "opacities", "channels", "background", "twist")


def evaluate(render, dtype, scene, view, seeds, background, **options):
    """Render, send the given image gradients back; return the output and all gradients."""
    gaussians, channels = scene
    gaussians = leaf(gaussians, dtype)
    channels = channels.to(dtype).requires_grad_(True)
    background = background.to(dtype).requires_grad_(True)
    view, twist = moving(view)
    out = render(gaussians, channels, view, background=background, **options)
    torch.autograd.backward(
        [out.image, out.alpha, out.depth], [seed.to(out.image.dtype) for seed in seeds]
    )
    leaves = (
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales,
        gaussians.opacities,
        channels,
        background,
        twist,
    )
    return out, {name: x.grad for name, x in zip(NAMES, leaves, strict=True)}


def compare(scene, view, seed=0, tolerance=1e-4, **options):
    """Values and all gradients agree; pixels at a discontinuity of the model do not count."""
    g = torch.Generator().manual_seed(seed)
    channels = scene[1].shape[1]
    background = torch.rand(channels, generator=g)
    reference = {k: v for k, v in options.items() if k != "threads"}
    with torch.no_grad():
        double = Gaussians(*(t.double() for t in vars(scene[0]).values()))
        probe = rasterize_reference(double, scene[1].double(), view, **reference)
    sure = (probe.margin > 1e-4).double()
    assert sure.mean() > 0.9
    size = (view.height, view.width)
    seeds = (
        torch.randn(*size, channels, generator=g, dtype=torch.float64) * sure[..., None],
        torch.randn(*size, generator=g, dtype=torch.float64) * sure,
        torch.randn(*size, generator=g, dtype=torch.float64) * sure,
    )
    want, want_grads = evaluate(
        rasterize_reference, torch.float64, scene, view, seeds, background, **reference
    )
    got, got_grads = evaluate(rasterize, torch.float32, scene, view, seeds, background, **options)
    for name in ("image", "alpha", "depth"):
        a, b = getattr(want, name).detach(), getattr(got, name).detach().double()
        mask = sure[..., None] if a.ndim == 3 else sure
        torch.testing.assert_close(b * mask, a * mask, rtol=1e-4, atol=1e-5)
    for name in NAMES:
        a, b = want_grads[name], got_grads[name].double()
        scale = a.abs().max() if a.numel() else 0
        torch.testing.assert_close(b, a, rtol=0, atol=float(tolerance * scale), msg=name)
    return got


@pytest.mark.parametrize("channels", [0, 1, 3, 6, 16, 19, 40, 67, 133])
def test_values_and_gradients(channels, tilted_view):
    out = compare(make_scene(110, channels, seed=3), tilted_view)
    assert out.image.shape == (28, 40, channels)
    assert 0.3 < out.alpha.mean() < 1


@pytest.mark.parametrize("seed", [1, 2])
def test_antialiased(seed, tilted_view):
    compare(make_scene(150, 5, seed=seed, size=0.03), tilted_view, antialias=True)


def test_saturated_pixels_stop_early(tilted_view):
    gaussians, channels = make_scene(400, 4, seed=5, size=0.4)
    opaque = replace(gaussians, opacities=0.6 + 0.4 * gaussians.opacities)
    out = compare((opaque, channels), tilted_view)
    assert out.alpha.max() > 0.99


def test_needles_do_not_lose_accuracy():
    gaussians, channels = make_scene(40, 3, seed=7)
    scales = torch.tensor([[0.8, 1e-3, 1e-3]]).expand(40, 3).contiguous()
    compare((replace(gaussians, scales=scales), channels), make_view(focal=60.0))


def test_clamped_projection():
    # Wide splats beyond the border, where the Jacobian is held at the limit.
    gaussians, channels = make_scene(60, 3, seed=8, size=0.6, spread=5.0, depth=(0.3, 1.5))
    view = make_view()
    slopes = gaussians.means[:, :2] / gaussians.means[:, 2:]
    assert (slopes.abs() > max(view.slope_limits())).any()
    compare((gaussians, channels), view)


def test_many_gaussians_at_some_pixels():
    gaussians, channels = make_scene(9000, 3, seed=9, size=0.02)
    view = make_view(width=203, height=131, focal=190.0)
    pixels = torch.randint(0, 131, (60, 2), generator=torch.Generator().manual_seed(0))
    out = rasterize(gaussians, channels, view, threads=2)
    double = Gaussians(*(t.double() for t in vars(gaussians).values()))
    want = rasterize_reference(double, channels.double(), view, pixels=pixels)
    sure = want.margin > 1e-4
    x, y = pixels[sure].T
    torch.testing.assert_close(out.image[y, x].double(), want.image[sure], rtol=1e-4, atol=1e-5)
    assert sure.sum() > 50


def loss_of(out, seeds):
    return sum(
        (getattr(out, k) * s.to(out.image.dtype)).sum()
        for k, s in zip(("image", "alpha", "depth"), seeds, strict=True)
    )


def test_gradients_against_finite_differences(tilted_view):
    """Central differences of the float64 reference, per parameter and along the pose."""
    gaussians, channels = make_scene(12, 3, seed=11, size=0.2)
    view = tilted_view
    g = torch.Generator().manual_seed(0)
    double = Gaussians(*(t.double() for t in vars(gaussians).values()))
    margin = rasterize_reference(double, channels.double(), view).margin
    sure = (margin > 1e-3).double()
    seeds = [
        torch.randn(28, 40, 3, generator=g, dtype=torch.float64) * sure[..., None],
        torch.randn(28, 40, generator=g, dtype=torch.float64) * sure,
        torch.randn(28, 40, generator=g, dtype=torch.float64) * sure,
    ]
    _, grads = evaluate(
        rasterize, torch.float32, (gaussians, channels), view, seeds, torch.zeros(3)
    )

    def value(name, direction, step):
        moved = dict(vars(double))
        c, v = channels.double(), view
        if name == "channels":
            c = c + step * direction
        elif name == "twist":
            from reloc_core.rendering import exp_se3

            v = replace(view, world_from_cam=view.world_from_cam @ exp_se3(step * direction))
        else:
            moved[name] = moved[name] + step * direction
        return loss_of(rasterize_reference(Gaussians(**moved), c, v), seeds)

    for name in ("means", "quaternions", "scales", "opacities", "channels", "twist"):
        grad = grads[name].double()
        for _ in range(3):
            direction = torch.randn(grad.shape, generator=g, dtype=torch.float64)
            h = 1e-6
            slope = (value(name, direction, h) - value(name, direction, -h)) / (2 * h)
            scale = (grad.abs() * direction.abs()).sum()
            assert abs((grad * direction).sum() - slope) < 1e-4 * scale, name


def run_kernels(name, scene, view, seeds):
    gaussians, channels = scene
    native = _native.SplatScene(*(t.numpy() for t in (*vars(gaussians).values(), channels)))
    cam = torch.linalg.inv(view.world_from_cam)[:3].reshape(-1).tolist()
    camera = _native.SplatView(
        cam,
        [view.fx, view.fy, view.cx, view.cy],
        list(view.slope_limits()),
        view.width,
        view.height,
    )
    options = _native.SplatOptions(0.2, False, True, 1, name)
    state, *out = _native.splat_rasterize(native, camera, None, options)
    grads = _native.splat_backward(
        state, native, camera, None, *seeds, True, True, channels.shape[1], 1
    )
    return out[:5], grads


@pytest.mark.parametrize("kernels", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("channels", [3, 19, 64])
def test_instruction_sets_agree(kernels, channels, tilted_view):
    try:
        _native.kernel_name(kernels)
    except ValueError:
        pytest.skip(f"this processor does not run {kernels}")
    scene = make_scene(150, channels, seed=4)
    g = np.random.default_rng(0)
    seeds = [g.normal(size=(28, 40, *s)).astype(np.float32) for s in ((channels,), (), ())]
    want_out, want = run_kernels("auto", scene, tilted_view, seeds)
    got_out, got = run_kernels(kernels, scene, tilted_view, seeds)
    for a, b in zip((*want_out, *want), (*got_out, *got), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * np.abs(a).max())


def test_threads_do_not_change_a_bit():
    scene = make_scene(5000, 19, seed=12, size=0.05)
    view = make_view(width=150, height=97, focal=140.0)
    g = torch.Generator().manual_seed(1)
    seeds = [torch.randn(97, 150, *s, generator=g) for s in ((19,), (), ())]
    results = []
    for threads in (1, 2, 5):
        out, grads = evaluate(
            rasterize, torch.float32, scene, view, seeds, torch.rand(19, generator=g) * 0,
            threads=threads,
        )  # fmt: skip
        gathered = accumulate_features(scene[0], seeds[0], view, threads=threads)
        results.append(
            [out.image, out.alpha, out.depth, out.weights, *grads.values(), gathered.features]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_order_of_the_input_does_not_matter(tilted_view):
    gaussians, channels = make_scene(300, 7, seed=13)
    shuffle = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    mixed = Gaussians(*(t[shuffle] for t in vars(gaussians).values()))
    a = rasterize(gaussians, channels, tilted_view)
    b = rasterize(mixed, channels[shuffle], tilted_view)
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.weights[shuffle], b.weights)


@pytest.mark.parametrize("shift", [3, 8, 16, 32])
def test_tiles_leave_no_seam(shift):
    gaussians, channels = make_scene(200, 4, seed=14, spread=0.5)
    view = make_view(width=96, height=64, focal=90.0)
    moved = replace(view, cx=view.cx + shift)
    a = rasterize(gaussians, channels, view).image[:, :-shift]
    b = rasterize(gaussians, channels, moved).image[:, shift:]
    # Not bitwise: coordinates round differently; the slope limits follow the image.
    assert (a - b).abs().max() < 1e-2
    assert (a - b).abs().mean() < 1e-5


def test_geometry_channels_hold_back_the_others(tilted_view):
    scene = make_scene(80, 19, seed=15)
    g = torch.Generator().manual_seed(1)
    seed = torch.randn(28, 40, 19, generator=g)
    blank = torch.zeros(28, 40)

    def grads(acting, image_seed):
        return evaluate(
            rasterize, torch.float32, scene, tilted_view, (image_seed, blank, blank),
            torch.rand(19, generator=torch.Generator().manual_seed(2)), geometry_channels=acting,
        )[1]  # fmt: skip

    for acting in (0, 3, 10):
        front = seed.clone()
        front[..., acting:] = 0
        held, expected, full = grads(acting, seed), grads(19, front), grads(19, seed)
        assert torch.equal(held["channels"], full["channels"])
        for name in ("means", "quaternions", "scales", "opacities", "twist"):
            scale = float(full[name].abs().max())
            torch.testing.assert_close(held[name], expected[name], rtol=0, atol=1e-5 * scale)


def test_screen_gradients_are_the_slope_along_the_image_axes():
    gaussians, channels = make_scene(30, 3, seed=16, spread=0.4)
    view = make_view(width=48, height=32)
    double = Gaussians(*(t.double() for t in vars(gaussians).values()))
    margin = rasterize_reference(double, channels.double(), view).margin
    seed = torch.randn(32, 48, 3, generator=torch.Generator().manual_seed(0)) * (
        margin > 1e-3
    ).unsqueeze(-1)
    live = leaf(gaussians, torch.float32)
    out = rasterize(live, channels, view)
    assert out.screen_gradients.means is None
    out.image.backward(seed)
    assert out.screen_gradients.means_abs.ge(out.screen_gradients.means.abs() - 1e-5).all()
    h = 1e-5
    for axis, name in enumerate(("cx", "cy")):

        def value(step, name=name):
            moved = replace(view, **{name: getattr(view, name) + step})
            return (rasterize_reference(double, channels.double(), moved).image * seed).sum()

        slope = (value(h) - value(-h)) / (2 * h)
        total = out.screen_gradients.means[:, axis].sum()
        assert abs(total - slope) < 1e-3 * out.screen_gradients.means_abs[:, axis].sum()


@pytest.mark.parametrize("channels", [1, 3, 20, 64])
def test_accumulation_is_the_transpose_of_rendering(channels, tilted_view):
    gaussians, _ = make_scene(200, 0, seed=17)
    g = torch.Generator().manual_seed(0)
    features = torch.randn(28, 40, channels, generator=g)
    values = torch.randn(200, channels, generator=g)
    sums = accumulate_features(gaussians, features, tilted_view)
    out = rasterize(gaussians, values, tilted_view)
    left = (out.image.double() * features).sum()
    right = (sums.features.double() * values).sum()
    assert abs(left - right) < 1e-5 * (out.image * features).abs().sum()
    torch.testing.assert_close(sums.weights, out.weights)
    torch.testing.assert_close(out.weights.sum(), out.alpha.sum(), rtol=1e-4, atol=1e-3)


def test_visibility(tilted_view):
    gaussians, channels = make_scene(200, 3, seed=18, spread=3.0)
    out = rasterize(gaussians, channels, tilted_view)
    double = Gaussians(*(t.double() for t in vars(gaussians).values()))
    want = rasterize_reference(double, channels.double(), tilted_view)
    torch.testing.assert_close(out.weights.double(), want.weights, rtol=1e-3, atol=5e-3)
    assert not out.weights[~out.visible].any()
    assert 0 < out.visible.sum() < 200
    assert torch.equal(out.visible, out.radii > 0)


def test_changing_an_input_before_the_backward_pass_is_noticed(tilted_view):
    gaussians, channels = make_scene(10, 3, seed=1)
    channels.requires_grad_(True)
    out = rasterize(gaussians, channels, tilted_view)
    with torch.no_grad():
        channels += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.image.sum().backward()


def test_wrong_arguments_are_named(tilted_view):
    gaussians, channels = make_scene(5, 3, seed=1)
    with pytest.raises(InputError, match=r"scales has shape"):
        rasterize(replace(gaussians, scales=gaussians.scales[:4]), channels, tilted_view)
    with pytest.raises(InputError, match=r"channels have shape"):
        rasterize(gaussians, channels[:4], tilted_view)
    with pytest.raises(InputError, match="float32"):
        rasterize(leaf(gaussians, torch.float64), channels.double(), tilted_view)
    with pytest.raises(InputError, match="geometry_channels"):
        rasterize(gaussians, channels, tilted_view, geometry_channels=4)
    with pytest.raises(InputError, match="background"):
        rasterize(gaussians, channels, tilted_view, background=torch.zeros(2))
    with pytest.raises(InputError, match="threads"):
        rasterize(gaussians, channels, tilted_view, threads=0)
    with pytest.raises(InputError, match="focal"):
        rasterize(gaussians, channels, replace(tilted_view, fx=0.0))
    broken = replace(tilted_view, world_from_cam=tilted_view.world_from_cam * float("nan"))
    with pytest.raises(InputError, match="not finite"):
        rasterize(gaussians, channels, broken)
    with pytest.raises(InputError, match="features have shape"):
        accumulate_features(gaussians, torch.zeros(3, 3, 2), tilted_view)

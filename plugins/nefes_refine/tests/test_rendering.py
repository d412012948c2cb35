"""Hash grid, compositing, sampling and encodings against independent computations."""

import math

import numpy as np
import pytest
import torch
from nefes_refine.field.hashgrid import PRIMES, HashGrid
from nefes_refine.field.rendering import apply_affine, composite, inverse_cdf

from reloc_core import _native


def reference_encoding(grid, position):
    """One position, in plain Python integers and float64."""
    out = []
    table = grid.table.detach().double().numpy()
    for n, size, offset in zip(grid.resolutions, grid.sizes, grid.offsets, strict=True):
        low = [min(int(p * n), n - 1) for p in position]
        value = np.zeros(grid.channels)
        for corner in np.ndindex(2, 2, 2):
            c = [a + b for a, b in zip(low, corner, strict=True)]
            if (n + 1) ** 3 <= size:
                row = c[0] + (n + 1) * (c[1] + (n + 1) * c[2])
            else:
                row = (c[0] * PRIMES[0] ^ c[1] * PRIMES[1] ^ c[2] * PRIMES[2]) % size
            weight = math.prod(
                (p * n - a) if b else 1 - (p * n - a)
                for p, a, b in zip(position, low, corner, strict=True)
            )
            value += weight * table[offset + row]
        out.append(value)
    return np.concatenate(out)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_both_encodings_agree_with_plain_python(channels):
    torch.manual_seed(0)
    grid = HashGrid(4, channels, 1 << 9, 4, 40)
    torch.nn.init.normal_(grid.table)
    positions = torch.cat([torch.rand(30, 3), torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0.5]])])
    expected = np.stack([reference_encoding(grid, p.double().tolist()) for p in positions])
    np.testing.assert_allclose(grid(positions).detach(), expected, atol=2e-5)
    np.testing.assert_allclose(grid.gathered(positions).detach(), expected, atol=2e-5)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_native_gradients_are_those_of_autograd(channels):
    torch.manual_seed(0)
    grid = HashGrid(3, channels, 1 << 8, 4, 30)
    torch.nn.init.normal_(grid.table)
    upstream = torch.randn(50, 3 * channels)
    positions = torch.rand(50, 3, requires_grad=True)
    wanted = (positions, grid.table)
    native, plain = (
        torch.autograd.grad((encode(positions) * upstream).sum(), wanted)
        for encode in (grid, grid.gathered)
    )
    for ours, theirs in zip(native, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["forward", "gathered"])
def test_gradient_with_respect_to_positions_by_finite_differences(encoder):
    torch.manual_seed(0)
    grid = HashGrid(3, 4, 1 << 8, 4, 12)
    torch.nn.init.normal_(grid.table)
    position = torch.tensor([[0.313, 0.551, 0.777]], requires_grad=True)
    getattr(grid, encoder)(position)[0, 5].backward()
    for axis in range(3):
        step = torch.zeros(1, 3)
        step[0, axis] = 1e-3
        with torch.no_grad():
            slope = (grid(position + step) - grid(position - step))[0, 5] / 2e-3
        assert position.grad[0, axis] == pytest.approx(float(slope), rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(
    ("resolutions", "sizes", "message"),
    [([4], [100], "sizes"), ([4, 8], [125], "one length"), ([0], [1], "resolutions")],
)
def test_kernel_refuses_layouts_that_would_leave_the_table(resolutions, sizes, message):
    with pytest.raises(ValueError, match=message):
        _native.HashGrid(np.array(resolutions), np.array(sizes), 4)


def test_kernel_refuses_positions_outside_the_cube_and_wrong_tables():
    grid = _native.HashGrid(np.array([4]), np.array([125]), 4)
    table = np.zeros((125, 4), np.float32)
    for bad in (np.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match="unit cube"):
            grid.encode(np.full((1, 3), bad, np.float32), table)
    with pytest.raises(ValueError, match="table"):
        grid.encode(np.zeros((1, 3), np.float32), table[:-1])
    with pytest.raises(ValueError, match="grad"):
        grid.backward_positions(np.zeros((2, 3), np.float32), table, np.zeros((1, 4), np.float32))


def test_slab_of_constant_density_has_its_closed_form():
    density, samples = 3.0, 64
    lengths = torch.full((1, samples), 0.5 / samples, dtype=torch.float64)
    weights = composite(torch.full_like(lengths, density), lengths)
    assert float(weights.sum()) == pytest.approx(1 - math.exp(-density * 0.5), abs=1e-12)
    assert float(weights[0, 10] / weights[0, 9]) == pytest.approx(
        math.exp(-density * 0.5 / samples)
    )


def test_samples_concentrate_where_the_weight_is():
    edges = torch.linspace(0, 1, 11)[None]
    weights = torch.full((1, 10), 1e-6)
    weights[0, 7] = 1
    found = inverse_cdf(edges, weights, torch.linspace(0.01, 0.99, 20)[None])
    assert float(found.min()) >= 0.7
    assert float(found.max()) <= 0.8
    uniform = inverse_cdf(edges, torch.ones(1, 10), torch.tensor([[0.25, 0.5]]))
    torch.testing.assert_close(uniform, torch.tensor([[0.25, 0.5]]))


def test_exposure_is_affine_before_the_sigmoid():
    colour = torch.tensor([[0.2, -0.4, 1.0]])
    affine = torch.cat([torch.arange(9.0), torch.tensor([0.1, 0.2, 0.3])])[None]
    matrix = np.arange(9.0).reshape(3, 3)
    expected = 1 / (1 + np.exp(-(matrix @ colour[0].numpy() + [0.1, 0.2, 0.3])))
    np.testing.assert_allclose(apply_affine(colour, affine)[0], expected, rtol=1e-5)

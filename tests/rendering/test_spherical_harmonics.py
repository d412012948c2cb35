from __future__ import annotations

import numpy as np
import pytest
import torch

from reloc_core.errors import InputError
from reloc_core.rendering import evaluate_sh, exp_se3
from reloc_core.rendering.spherical_harmonics import sh_basis


def test_basis_is_orthonormal_on_the_sphere():
    # Gauss-Legendre in z, uniform in azimuth: exact for these polynomials.
    z, weight = np.polynomial.legendre.leggauss(8)
    azimuth = np.arange(16) * 2 * np.pi / 16
    r = np.sqrt(1 - z**2)
    points = np.stack(
        [np.outer(r, np.cos(azimuth)), np.outer(r, np.sin(azimuth)), np.outer(z, np.ones(16))], -1
    ).reshape(-1, 3)
    weights = np.repeat(weight, 16) * 2 * np.pi / 16
    basis = sh_basis(torch.from_numpy(points), 3).numpy()
    np.testing.assert_allclose(basis.T * weights @ basis, np.eye(16), atol=1e-12)


def test_signs_and_order_of_the_file_format():
    def basis(x, y, z):
        return sh_basis(torch.tensor([[x, y, z]], dtype=torch.float64), 3)[0].numpy()

    assert (np.sign(basis(1, 0, 0)[[1, 2, 3]]) == [0, 0, -1]).all()
    assert (np.sign(basis(0, 1, 0)[[1, 2, 3]]) == [-1, 0, 0]).all()
    assert (np.sign(basis(0, 0, 1)[[1, 2, 3]]) == [0, 1, 0]).all()
    d = np.sqrt(1 / 3)
    np.testing.assert_array_equal(
        np.sign(np.round(basis(d, d, d), 12)[4:]), [1, -1, 0, -1, 0, -1, 1, -1, -1, -1, 0, 1]
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gradients(degree):
    g = torch.Generator().manual_seed(degree)
    c = torch.randn(6, 16, 3, generator=g, dtype=torch.float64, requires_grad=True)
    d = torch.randn(6, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, d: evaluate_sh(c, d, degree), (c, d))


def test_length_of_the_direction_does_not_matter_and_colour_is_not_negative():
    g = torch.Generator().manual_seed(0)
    c, d = torch.randn(50, 16, 3, generator=g) * 2, torch.randn(50, 3, generator=g)
    colours = evaluate_sh(c, d)
    torch.testing.assert_close(colours, evaluate_sh(c, 7 * d))
    assert colours.min() == 0


def test_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="degree 2"):
        evaluate_sh(torch.zeros(2, 4, 3), torch.zeros(2, 3), 2)
    with pytest.raises(InputError, match="coefficients have shape"):
        evaluate_sh(torch.zeros(2, 5, 3), torch.zeros(2, 3))


def test_exp_se3_is_a_rotation_with_the_twist_as_derivative():
    twist = torch.tensor([0.1, 0.2, -0.3, 0.4, -0.5, 0.6], dtype=torch.float64)
    rotation = exp_se3(twist)[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    angle = torch.arccos((rotation.trace() - 1) / 2)
    torch.testing.assert_close(angle, twist[3:].norm())
    assert torch.autograd.gradcheck(
        exp_se3, torch.zeros(6, dtype=torch.float64, requires_grad=True)
    )

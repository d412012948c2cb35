"""Real spherical harmonics up to degree 3, in the order and with the signs of 3DGS files."""

from __future__ import annotations

import torch
from torch import Tensor

from reloc_core.errors import InputError

C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, 0.31539156525252005)
_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Return the (N, (degree + 1)^2) basis functions at unit directions (N, 3)."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, C0)]
    if degree >= 1:
        basis += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree >= 2:
        a, b = _C2
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            a * x * y,
            -a * y * z,
            b * (2 * zz - xx - yy),
            -a * x * z,
            a / 2 * (xx - yy),
        ]
    if degree >= 3:
        e, f, g, h = _C3
        basis += [
            -e * y * (3 * xx - yy),
            f * x * y * z,
            -g * y * (4 * zz - xx - yy),
            h * z * (2 * zz - 3 * xx - 3 * yy),
            -g * x * (4 * zz - xx - yy),
            f / 2 * z * (xx - yy),
            -e * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def evaluate_sh(coefficients: Tensor, directions: Tensor, degree: int | None = None) -> Tensor:
    """Return the colours that Gaussians show in the given directions.

    Colour = max(0, 1/2 + sum_k coefficient_k basis_k(direction)), the model of 3DGS.

    Args:
        coefficients: (N, K, D) with K = 1, 4, 9 or 16.
        directions: (N, 3) from the camera centre to the Gaussian, of any length (normalised here;
            the zero vector gives the constant part alone).
        degree: highest degree used, 0..3; by default all that the coefficients hold.

    Returns:
        (N, D) colours, not negative. Differentiable in both arguments.

    Raises:
        InputError: shapes that do not fit or a degree beyond the coefficients.
    """
    if coefficients.ndim != 3 or coefficients.shape[1] not in (1, 4, 9, 16):
        raise InputError(
            f"coefficients have shape {tuple(coefficients.shape)}, expected (N, 1|4|9|16, D)."
        )
    if tuple(directions.shape) != (coefficients.shape[0], 3):
        raise InputError(
            f"directions have shape {tuple(directions.shape)}, "
            f"expected ({coefficients.shape[0]}, 3)."
        )
    held = {1: 0, 4: 1, 9: 2, 16: 3}[coefficients.shape[1]]
    used = held if degree is None else degree
    if not 0 <= used <= held:
        raise InputError(f"degree {used} was asked for, the coefficients hold up to {held}.")
    if used == 0:
        return (0.5 + C0 * coefficients[:, 0]).clamp_min(0)
    unit = torch.nn.functional.normalize(directions, dim=-1)
    basis = sh_basis(unit, used)
    return (0.5 + torch.einsum("nk,nkd->nd", basis, coefficients[:, : basis.shape[1]])).clamp_min(0)

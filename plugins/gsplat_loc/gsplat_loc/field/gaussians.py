"""The field: parameters of the Gaussians and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.errors import MapError
from reloc_core.types import Float64Array

SH_0 = 0.28209479177387814
"""Value of the constant spherical harmonic."""


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians in the form in which they are optimized (Kerbl et al., 3DGS, 2023).

    Attributes:
        means: (N, 3) float32 positions, scene units, relative to the field's origin.
        colors: (N, K, 3) coefficients of the spherical harmonics, K = (degree + 1)^2.
        opacities: (N,) logits.
        scales: (N, 3) logarithms of standard deviations, scene units.
        quaternions: (N, 4) as w, x, y, z; not normalised.
    """

    means: Tensor
    colors: Tensor
    opacities: Tensor
    scales: Tensor
    quaternions: Tensor

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics."""
        return round(self.colors.shape[1] ** 0.5) - 1

    def tensors(self) -> dict[str, Tensor]:
        """All parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def rows(self, index: Tensor) -> Gaussians:
        """The Gaussians of an index or mask."""
        return Gaussians(**{name: value[index] for name, value in self.tensors().items()})

    def detached(self) -> Gaussians:
        """The same values without gradients."""
        return Gaussians(**{name: value.detach() for name, value in self.tensors().items()})

    def to(self, device: str) -> Gaussians:
        """On another device."""
        return Gaussians(**{name: value.to(device) for name, value in self.tensors().items()})

    def with_degree(self, degree: int) -> Gaussians:
        """With coefficients up to another degree: cut off, or zeros added."""
        count = (degree + 1) ** 2
        colors = self.colors[:, :count]
        return replace(self, colors=F.pad(colors, (0, 0, 0, count - colors.shape[1])))


def from_points(
    points: Float64Array, rgb: np.ndarray, spacing: Float64Array, opacity: float, sh_degree: int
) -> Gaussians:
    """Round Gaussians at points.

    Args:
        points: (N, 3) relative to the field's origin.
        rgb: (N, 3) uint8.
        spacing: (N,) standard deviations, scene units.
        opacity: of all, in 0..1.
        sh_degree: of the colours; only the constant part is set.
    """
    count = len(points)
    colors = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    colors[:, 0] = (torch.from_numpy(rgb.astype(np.float32)) / 255 - 0.5) / SH_0
    quaternions = torch.zeros(count, 4)
    quaternions[:, 0] = 1
    scales = torch.from_numpy(np.log(np.maximum(spacing, 1e-7)).astype(np.float32))
    return Gaussians(
        torch.from_numpy(points.astype(np.float32)),
        colors,
        torch.full((count,), float(np.log(opacity / (1 - opacity)))),
        scales[:, None].repeat(1, 3),
        quaternions,
    )


def checked(tensors: Mapping[str, Tensor], source: str) -> Gaussians:
    """Gaussians from tensors that were read, if they are whole.

    Raises:
        MapError: a parameter is missing, has another shape, or is not finite.
    """
    names = [f.name for f in fields(Gaussians)]
    for name in names:
        if name not in tensors:
            raise MapError(f"{source} lacks '{name}': it is no Gaussian field. Train it again.")
    count = len(tensors["means"])
    degree = tensors["colors"].shape[1] ** 0.5 if tensors["colors"].ndim == 3 else 0
    shapes = {"means": (count, 3), "opacities": (count,), "scales": (count, 3),
              "quaternions": (count, 4)}  # fmt: skip
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise MapError(
                f"{source}: '{name}' has shape {tuple(tensors[name].shape)}, not {shape}."
            )
    if degree not in (1, 2, 3, 4) or tuple(tensors["colors"].shape[::2]) != (count, 3):
        raise MapError(
            f"{source}: 'colors' has shape {tuple(tensors['colors'].shape)}, which is no set of "
            "spherical harmonics of degree 0..3."
        )
    for name in names:
        bad = ~torch.isfinite(tensors[name]).reshape(count, -1).all(1)
        if bad.any():
            raise MapError(
                f"{source}: {int(bad.sum())} of {count} Gaussians have a '{name}' that is not finite. "
                "Its training diverged or the file is damaged; train again or remove them."
            )
    return Gaussians(**{name: tensors[name].float() for name in names})

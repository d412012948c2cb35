"""Differentiable rendering of 3D Gaussians with any number of channels.

`rasterize` renders, `accumulate_features` averages image features into the Gaussians,
`evaluate_sh` turns spherical harmonics into colours and `exp_se3` moves a camera. These modules
need PyTorch; nothing else of the core imports them.
"""

from reloc_core.rendering.poses import exp_se3
from reloc_core.rendering.rasterizer import accumulate_features, rasterize
from reloc_core.rendering.spherical_harmonics import evaluate_sh
from reloc_core.rendering.types import (
    FeatureSums,
    Gaussians,
    RenderOutput,
    ScreenGradients,
    View,
)

__all__ = [
    "FeatureSums",
    "Gaussians",
    "RenderOutput",
    "ScreenGradients",
    "View",
    "accumulate_features",
    "evaluate_sh",
    "exp_se3",
    "rasterize",
]

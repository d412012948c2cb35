"""The training images in short: where they were, roughly what they showed, how well the field shows it.

A regressed pose may lie outside the reach of matching and alignment. The mapped images most like the
query are other places to begin from, and the field's cost on images that it was not trained on tells
whether a refinement has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.field.data import Images
from reloc_core.geometry import so3_log
from reloc_core.types import Float64Array

_GRID = (3, 4)  # cells whose mean features describe an image
_ALIKE = 0.98  # similarity from which on two views are one start
_TRUSTED = 3.0  # standard deviations by which given covariances may be too small
_CHI2 = 16.8  # 99 % of a chi-squared variable with six degrees of freedom
_SPREADS = 2.0  # above the mean cost of unseen images, up to which a refinement has arrived
_HOPELESS = 1.5  # times that cost; first matches from a metre away led to 1.35 and arrived
_LEAST_SPREAD = 0.1  # of the mean cost: a few images tell their spread poorly


@dataclass
class MappedViews:
    """N training images.

    Attributes:
        descriptors: (N, D) unit descriptors, float16.
        poses: (N, 4, 4) float64 world_from_cam.
        cost: mean feature cost of unseen images at their true poses.
        spread: standard deviation of that cost.
    """

    descriptors: Tensor
    poses: Tensor
    cost: float
    spread: float

    @classmethod
    def of(cls, images: Images, quality: dict[str, float]) -> MappedViews:
        """The training images in short, with what `evaluate_field` found on unseen ones."""
        descriptors = torch.stack([describe(images.maps([i])[0]) for i in range(len(images))])
        return cls(descriptors.half(), images.poses, 1 - quality["fused"], quality["fused_spread"])

    def some(self, which: np.ndarray) -> MappedViews:
        """Only some of the images (N,) bool."""
        chosen = torch.from_numpy(which)
        return MappedViews(self.descriptors[chosen], self.poses[chosen], self.cost, self.spread)

    def arrived(self, cost: float) -> bool:
        """Whether a feature cost is one that true poses have."""
        return cost <= self._bound

    def hopeless(self, cost: float) -> bool:
        """Whether a rendering is so unlike the query that no further one nearby will arrive."""
        return cost > _HOPELESS * self._bound

    @property
    def _bound(self) -> float:
        return self.cost + _SPREADS * max(self.spread, _LEAST_SPREAD * self.cost)

    def starts(
        self, features: Tensor, pose: Float64Array, covariance: Float64Array | None, count: int
    ) -> list[Float64Array]:
        """Poses (4, 4) of the images most like a query, the most alike first.

        Args:
            features: (C, H, W) unit features of the query.
            pose: (4, 4) that the query was given.
            covariance: (6, 6) of it; views that contradict it are left out. None: any view will do.
            count: at most so many.
        """
        known = self.descriptors.float()
        similarity = known @ describe(features).cpu()
        poses = self.poses.numpy()
        possible = _compatible(poses, pose, covariance)
        chosen: list[int] = []
        for index in torch.argsort(similarity, descending=True).tolist():
            if len(chosen) == count:
                break
            if possible[index] and all(known[index] @ known[other] < _ALIKE for other in chosen):
                chosen.append(index)
        return [poses[index] for index in chosen]


def describe(features: Tensor) -> Tensor:
    """Unit descriptor (D,) of a feature map (C, H, W): its means over a coarse grid."""
    return F.normalize(F.adaptive_avg_pool2d(features[None], _GRID)[0].flatten(), dim=0)


def tangents(pose: Float64Array, poses: Float64Array) -> Float64Array:
    """Tangents (N, 6) of `reloc_core.types` that move a pose (4, 4) to others (N, 4, 4)."""
    turned = pose[:3, :3].T
    shift = (poses[:, :3, 3] - pose[:3, 3]) @ turned.T
    return np.concatenate([so3_log(turned @ poses[:, :3, :3]), shift], 1)


def _compatible(
    poses: Float64Array, pose: Float64Array, covariance: Float64Array | None
) -> np.ndarray:
    """Which poses (N, 4, 4) a pose with covariance admits."""
    if covariance is None:
        return np.ones(len(poses), bool)
    difference = tangents(pose, poses)
    information = np.linalg.inv(covariance * _TRUSTED**2 + 1e-12 * np.eye(6))
    distance = np.einsum("ni,ij,nj->n", difference, information, difference)
    return np.asarray(distance < _CHI2)

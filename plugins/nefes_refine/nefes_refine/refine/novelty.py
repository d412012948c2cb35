"""How far an image is from what was mapped, and what that says of a regressed pose.

A regressor answers any image. The mapped image most like the query was somewhere, too: where the two
disagree, or where none is alike, the answer is worth less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from nefes_refine.refine.mapped_views import MappedViews, describe, tangents
from reloc_core.types import Float64Array

_NEAREST = 3  # mapped images whose poses are compared
_TOLERATED = 1.0  # spreads by which the similarity may fall before covariances grow
_LARGEST = 1e4  # factor of a covariance


@dataclass(frozen=True)
class Novelty:
    """What is usual for images that a regressor has not seen.

    Attributes:
        similarity: mean similarity of the most similar mapped image.
        spread: its standard deviation.
        distance: mean squared Mahalanobis distance between a regressed pose and that of the nearest of the
            most similar mapped images, by the covariance of the regressor's errors.
    """

    similarity: float
    spread: float
    distance: float

    @classmethod
    def measure(
        cls,
        views: MappedViews,
        maps: Sequence[Tensor],
        poses: Float64Array,
        covariance: Float64Array,
    ) -> Novelty:
        """From feature maps and regressed poses (N, 4, 4) of images that none of the views shows."""
        found = [_compare(views, m, p, covariance) for m, p in zip(maps, poses, strict=True)]
        similarity, distance = np.array(found).T
        return cls(
            float(similarity.mean()),
            float(max(similarity.std(), 0.01)),
            float(max(distance.mean(), 1e-3)),
        )

    def judge(
        self, views: MappedViews, features: Tensor, pose: Float64Array, covariance: Float64Array
    ) -> tuple[dict[str, float], float]:
        """Signals about a regressed pose, and the factor by which its covariance grows."""
        similarity, distance = _compare(views, features, pose, covariance)
        strange = (self.similarity - similarity) / self.spread
        apart = distance / self.distance
        factor = max(1.0, apart) * max(1.0, strange - _TOLERATED + 1) ** 2
        signals = {"familiarity": -strange, "retrieval": -float(np.log(apart + 1e-6))}
        return signals, min(factor, _LARGEST)

    def metadata(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


@torch.no_grad()
def _compare(
    views: MappedViews, features: Tensor, pose: Float64Array, covariance: Float64Array
) -> tuple[float, float]:
    """Similarity of the most similar view, and the squared distance of its or its likes' pose."""
    similarity = views.descriptors.float() @ describe(features).cpu()
    best = torch.argsort(similarity, descending=True)[:_NEAREST]
    off = tangents(pose, views.poses.numpy()[best.numpy()])
    squares = np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off)
    return float(similarity[best[0]]), float(squares.min())

"""Supervision of relative poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gnn_relpose.matched.network import EdgePoses
from gnn_relpose.shared.loss import WeightedPoseLoss
from gnn_relpose.shared.poses import Pose, difference

RIGHT_ROTATION = 0.087  # rad, 5 degrees
RIGHT_TRANSLATION = 0.08  # depths of the scene
_FINAL = 2.0  # weight of the last round's aligned poses relative to the others


@dataclass(frozen=True)
class LossTerms:
    """Loss and what it is made of.

    Attributes:
        total: scalar to minimise.
        rotation: median error of the last round in radians.
        translation: the same in depths of the scene.
        right: share of edges whose last pose is right.
    """

    total: Tensor
    rotation: Tensor
    translation: Tensor
    right: Tensor


def graph_loss(
    weighting: WeightedPoseLoss, rounds: Sequence[EdgePoses], target: Pose, genuine: Tensor
) -> LossTerms:
    """Loss of all rounds: pose errors, likelihood of the last errors, and certainty.

    Args:
        weighting: of translation against rotation.
        rounds: outputs of the network.
        target: true poses of the query edges.
        genuine: (Q,) 1 for edges that can be solved; the others only teach certainty.
    """
    total = genuine.new_zeros(())
    count = genuine.sum().clamp(min=1)
    last = len(rounds) - 1
    off = genuine.new_zeros(len(genuine), 6)
    for number, found in enumerate(rounds):
        for pose, final in ((found.regressed, False), (found.aligned, number == last)):
            off = difference(pose, target)
            # Beyond a limit an error says no more than "wrong": those edges must not dominate.
            size = off.abs() / (1 + off.abs() / 0.5)
            rotation = (size[:, :3].mean(-1) * genuine).sum() / count
            translation = (size[:, 3:].mean(-1) * genuine).sum() / count
            weight = _FINAL if final else 0.5
            total = total + weight * weighting(translation, rotation)
        errors = torch.stack([off[:, :3].norm(dim=-1), off[:, 3:].norm(dim=-1)], -1).detach()
        right = (errors[:, 0] < RIGHT_ROTATION) & (errors[:, 1] < RIGHT_TRANSLATION)
        # Laplace likelihood of the errors: deviations that fit them, outliers included.
        variance = found.covariance.diagonal(dim1=1, dim2=2)
        deviation = torch.stack([variance[:, :3].sum(-1), variance[:, 3:].sum(-1)], -1).log() / 2
        likelihood = errors * (-deviation).exp() + deviation
        total = total + 0.1 * (likelihood.mean(-1) * right).sum() / right.sum().clamp(min=1)
        total = total + 0.2 * F.binary_cross_entropy_with_logits(found.certainty, right.float())
    known = genuine > 0
    return LossTerms(
        total,
        errors[known, 0].median() if known.any() else errors.new_zeros(()),
        errors[known, 1].median() if known.any() else errors.new_zeros(()),
        right[known].float().mean() if known.any() else errors.new_zeros(()),
    )

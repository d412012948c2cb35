"""What stages 2 and 3 minimise: the likelihood of scene coordinates carried along the flow."""

from __future__ import annotations

import torch
from torch import Tensor

from kfnet_temporal.common.losses import photometric, smoothness, truncated
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.filtering.kalman import State, predict, update
from kfnet_temporal.published.process import OflowProcess, warped, whole_window


def flow_loss(
    process: OflowProcess, features: Tensor, labels: Tensor, cells: Tensor, config: TemporalConfig,
    std: float, generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """The loss of stage 2 for two images: likelihood, smoothness, photometric; both ways.

    Args:
        process: with the network.
        features: (2, C, h, w) that its flow is computed from.
        labels: (2, 3, h, w) metres, NaN where unknown.
        cells: (2, c, h, w) grey levels 0..255 at the cells.
        config: options.
        std: metres; of noise that is added to the true state.
        generator: of that noise.
    """
    options = config.process
    device = process.device
    features, labels, cells = features.to(device), labels.to(device), cells.to(device)
    total = torch.zeros((), device=device)
    for before, now in ((0, 1), (1, 0)):
        known, known_now = (torch.isfinite(labels[t]).all(0) for t in (before, now))
        noise = std * torch.randn(labels[before].shape, generator=generator).to(device)
        mean = torch.where(known, labels[before] + noise, torch.zeros_like(noise))
        variance = torch.where(known, std**2, torch.inf)
        motion = process.motion(features[before], features[now])
        prior = predict(State(mean, variance), motion.flow, process.noise_std(motion, variance))
        mask = known_now & whole_window(known) & prior.known
        spread = torch.where(mask, prior.variance, torch.ones_like(prior.variance))
        total = total + truncated(prior.mean, spread, labels[now], mask, options.loss_clamp)
        total = total + options.smooth_weight * smoothness(
            prior.mean[None], cells[now][None], mask[None]
        )
        total = total + options.photometric_weight * photometric(
            warped(cells[before], motion.flow)[None], cells[now][None], known_now[None]
        )
    return total


def window_loss(
    process: OflowProcess, points: Tensor, variances: Tensor, features: Tensor, labels: Tensor,
    cells: Tensor, config: TemporalConfig,
) -> Tensor:  # fmt: skip
    """The loss of stage 3: measurement, prior and posterior of every image of a window.

    Args:
        process: with the network.
        points: (T, 3, h, w) measured scene coordinates in metres.
        variances: (T, h, w) of these in m^2.
        features: (T, C, h, w) that the flow is computed from.
        labels: (T, 3, h, w) metres, NaN where unknown.
        cells: (T, c, h, w) grey levels 0..255 at the cells.
        config: options.
    """
    options = config.joint
    device = process.device
    features, labels, cells = features.to(device), labels.to(device), cells.to(device)
    state: State | None = None
    total = torch.zeros((), device=device)
    for t in range(len(points)):
        measured = State(points[t], variances[t])
        prior = posterior = measured
        if state is not None:
            motion = process.motion(features[t - 1], features[t])
            prior = predict(state, motion.flow, process.noise_std(motion, variances[t]))
            posterior = update(prior, measured)
        for weight, found in zip(options.weights, (measured, prior, posterior), strict=True):
            mask = found.known & torch.isfinite(labels[t]).all(0)
            spread = torch.where(mask, found.variance, torch.ones_like(found.variance))
            cost = truncated(found.mean, spread, labels[t], mask, options.loss_clamp)
            cost = cost + options.smooth_weight * smoothness(
                found.mean[None], cells[t][None], mask[None]
            )
            total = total + weight * cost
        state = posterior
    return total / len(points)

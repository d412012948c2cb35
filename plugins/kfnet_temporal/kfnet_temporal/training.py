"""Stages 2 and 3 of the compact preset: the flow and its noise, then all noises through the filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kfnet_temporal.clips import Clip
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.kalman import State, predict, update, warp
from kfnet_temporal.losses import smoothness, truncated
from kfnet_temporal.process import Motion, Process, coordinate_slope
from kfnet_temporal.published_training import joint_rate
from kfnet_temporal.resume import Checkpoints, step_rng, train_steps
from reloc_core.interfaces import Run

_ROOM = 8.0  # m^3


class NoiseScale(nn.Module):
    """What a measurement's variance means: how precise right cells are, and how likely a cell is one.

    A variance that is calibrated for squared errors mixes both. Relative to 10 cm,
    s = 3 cm * exp(a) (v / 10 cm)^b is the standard deviation of right cells, and
    exp(c - d log(v / 10 cm)) the odds of being right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.tensor(0.0))
        self.power = nn.Parameter(torch.tensor(0.4))
        self.log_odds = nn.Parameter(torch.tensor(0.7))
        self.odds_slope = nn.Parameter(torch.tensor(1.0))

    @torch.no_grad()
    def set_identity(self) -> None:
        """Take variances as they are."""
        self.log_factor.fill_(float(np.log(0.1 / 0.03)))
        self.power.fill_(1.0)

    def forward(self, state: State) -> State:
        """The state of right cells with its support; unknown cells stay unknown."""
        known = state.known
        relative = torch.where(known, state.variance, torch.ones_like(state.variance)).log() / 2
        relative = relative + 2.302585
        variance = (2 * (self.log_factor + self.power * relative)).exp() * 0.03**2
        support = (self.log_odds - self.odds_slope * relative).clamp(-6, 4).exp()
        return State(
            state.mean,
            torch.where(known, variance, torch.full_like(variance, torch.inf)),
            torch.where(known, support, torch.zeros_like(support)),
        )

    def fit(self, clips: Sequence[Clip], steps: int = 150) -> None:
        """Fit to the errors of held-out measurements: a Gaussian of right cells and a uniform rest."""
        relative, squares = [], []
        for clip in clips:
            for t, measured in enumerate(clip.measured):
                mask = clip.known(t) & measured.known
                squares.append((measured.mean - clip.labels[t]).square().sum(0)[mask])
                relative.append(measured.variance[mask].log() / 2 + 2.302585)
        x, e2 = torch.cat(relative), torch.cat(squares)
        if len(x) == 0:
            return
        stride = max(1, len(x) // 40_000)
        x, e2 = x[::stride], e2[::stride]
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        for _ in range(steps):
            log_std = self.log_factor + self.power * x + float(np.log(0.03))
            logit = (self.log_odds - self.odds_slope * x).clamp(-6, 4)
            right = -3 * log_std - e2 / (2 * (2 * log_std).exp()) - 2.757  # 1.5 log(2 pi)
            # The rest lies anywhere within a room of some cubic metres.
            wrong = torch.full_like(right, -float(np.log(_ROOM)))
            loss = -torch.logaddexp(
                nn.functional.logsigmoid(logit) + right, nn.functional.logsigmoid(-logit) + wrong
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def process_std(process: Process, motion: Motion, state: State) -> Tensor:
    """Process noise (h, w) in metres for moving a state."""
    with torch.no_grad():
        slope = coordinate_slope(warp(state, motion.flow).mean)
    return process.noise_std(motion, slope)


def train_flow(
    process: Process, clips: Sequence[Clip], config: TemporalConfig, run: Run,
    checkpoints: Checkpoints,
) -> None:  # fmt: skip
    """Stage 2: the prior from the true previous coordinates must explain the true current ones."""
    options = config.process
    optimizer = torch.optim.Adam(process.parameters(), options.learning_rate)

    def step_loss(step: int) -> Tensor:
        rng, generator = step_rng(run.runtime.seed, 2, step)
        clip = clips[int(rng.integers(len(clips)))]
        t = int(rng.integers(1, len(clip)))
        losses = [
            _flow_loss(process, clip, a, b, rng, generator, config)
            for a, b in ((t - 1, t), (t, t - 1))
        ]
        return torch.stack(losses).sum()

    with run.progress("Flow", options.iterations) as progress:
        train_steps(
            checkpoints, "flow", options.iterations, {"process": process}, optimizer, step_loss,
            lambda step: options.learning_rate * 0.5 ** (step / options.halve_every), progress,
            max_norm=5.0,
        )  # fmt: skip


def _flow_loss(
    process: Process, clip: Clip, before: int, now: int, rng: np.random.Generator,
    generator: torch.Generator, config: TemporalConfig,
) -> Tensor:  # fmt: skip
    options = config.process
    motion = clip.motion(process, before, now)
    std = float(rng.uniform(options.noise[0], options.noise[1]))
    truth = clip.labels[before]
    known = clip.known(before)
    noisy = truth + std * torch.randn(truth.shape, generator=generator)
    state = State(
        torch.where(known, noisy, torch.zeros_like(noisy)),
        torch.where(known, torch.full(known.shape, std**2), torch.full(known.shape, torch.inf)),
    )
    prior = predict(state, motion.flow, process_std(process, motion, state))
    mask = prior.known & clip.known(now)
    variance = torch.where(mask, prior.variance, torch.ones_like(prior.variance))
    loss = truncated(prior.mean, variance, clip.labels[now], mask, options.loss_clamp)
    if options.smooth_weight > 0:
        loss = loss + options.smooth_weight * smoothness(
            prior.mean[None], clip.cell_image(now)[None], mask[None]
        )
    return loss


def train_joint(
    process: Process, scale: NoiseScale, clips: Sequence[Clip], config: TemporalConfig, run: Run,
    checkpoints: Checkpoints,
) -> None:  # fmt: skip
    """Stage 3: windows of the video, forwards and backwards, through the unrolled filter."""
    options = config.joint
    scale.fit(clips)
    optimizer = torch.optim.Adam(
        [*process.noise.parameters(), *scale.parameters()], options.learning_rate
    )
    usable = [c for c in clips if len(c) >= options.window] or list(clips)

    def step_loss(step: int) -> Tensor:
        rng, _ = step_rng(run.runtime.seed, 3, step)
        clip = usable[int(rng.integers(len(usable)))]
        window = min(options.window, len(clip))
        first = int(rng.integers(0, len(clip) - window + 1))
        backwards = bool(rng.integers(2))
        return _window_loss(
            process, scale, clip, list(range(first, first + window)), backwards, config
        )

    with run.progress("Joint", options.iterations) as progress:
        train_steps(
            checkpoints, "joint", options.iterations, {"process": process, "scale": scale},
            optimizer, step_loss, lambda step: joint_rate(config, step), progress, max_norm=5.0,
        )  # fmt: skip


def _window_loss(
    process: Process, scale: NoiseScale, clip: Clip, frames: Sequence[int], backwards: bool,
    config: TemporalConfig,
) -> Tensor:  # fmt: skip
    order = list(frames)[::-1] if backwards else list(frames)
    state: State | None = None
    total = torch.zeros(())
    for t in order:
        measured = replace(scale(clip.measured[t]), support=None)
        prior = posterior = measured
        if state is not None:
            motion = clip.backward[t] if backwards else clip.forward[t - 1]
            prior = predict(
                state, motion.flow, process_std(process, motion, state), config.filter.fading
            )
            posterior = update(prior, measured)
        for weight, found in zip(config.joint.weights, (measured, prior, posterior), strict=True):
            mask = found.known & clip.known(t)
            variance = torch.where(mask, found.variance, torch.ones_like(found.variance))
            total = total + weight * truncated(
                found.mean, variance, clip.labels[t], mask, config.joint.loss_clamp
            )
        state = posterior
    return total / len(order)

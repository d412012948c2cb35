"""Stages 2 and 3 with a fixed measurement: the flow and its noise, then all noises through the filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.losses import smoothness, truncated
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.filtering.clips import Clip
from kfnet_temporal.filtering.kalman import State, predict, update
from kfnet_temporal.filtering.noise import NoiseScale
from kfnet_temporal.filtering.process import Process, process_std
from reloc_core.interfaces import Run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.streams import numpy_rng, torch_rng


def train_flow(
    process: Process, clips: Sequence[Clip], config: TemporalConfig, run: Run,
    checkpoint: Checkpoint,
) -> None:  # fmt: skip
    """Stage 2: the prior from the true previous coordinates must explain the true current ones."""
    options = config.process
    optimizer = torch.optim.Adam(process.parameters(), options.learning_rate)

    def step_loss(step: int) -> Tensor:
        rng = numpy_rng(run.runtime.seed, "flow", step)
        generator = torch_rng(run.runtime.seed, "flow noise", step)
        clip = clips[int(rng.integers(len(clips)))]
        t = int(rng.integers(1, len(clip)))
        losses = [
            _flow_loss(process, clip, a, b, rng, generator, config)
            for a, b in ((t - 1, t), (t, t - 1))
        ]
        return torch.stack(losses).sum()

    train_steps(
        run, "Flow", checkpoint, "flow", options.iterations, {"process": process}, optimizer,
        step_loss, options.rate, max_norm=5.0,
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
    checkpoint: Checkpoint,
) -> None:  # fmt: skip
    """Stage 3: windows of the video, forwards and backwards, through the unrolled filter."""
    options = config.joint
    scale.fit(clips)
    optimizer = torch.optim.Adam(
        [*process.noise.parameters(), *scale.parameters()], options.learning_rate
    )
    usable = [c for c in clips if len(c) >= options.window] or list(clips)

    def step_loss(step: int) -> Tensor:
        rng = numpy_rng(run.runtime.seed, "windows", step)
        clip = usable[int(rng.integers(len(usable)))]
        window = min(options.window, len(clip))
        first = int(rng.integers(0, len(clip) - window + 1))
        backwards = bool(rng.integers(2))
        return _window_loss(
            process, scale, clip, list(range(first, first + window)), backwards, config
        )

    train_steps(
        run, "Joint", checkpoint, "joint", options.iterations,
        {"process": process, "scale": scale}, optimizer, step_loss, options.rate, max_norm=5.0,
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

"""Stages 2 and 3: the flow and its noise, then all noises through the unrolled filter; calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.kalman import State, predict, update, warp
from kfnet_temporal.losses import smoothness, truncated
from kfnet_temporal.process import FlowProcess, Motion, coordinate_slope
from kfnet_temporal.tracker import Tracker
from reloc_core.interfaces import Run
from reloc_core.types import ImageArray

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


@dataclass
class Clip:
    """Consecutive mapping frames, ready for training.

    Attributes:
        features: (T, C, h, w) float16.
        labels: (T, 3, h, w) metres relative to the origin, NaN where unknown.
        measured: per frame, from an estimator that has not seen it.
        images: T grey images (H, W) uint8 that the features describe.
        forward: motions from frame t to t - 1, for t = 1 .. T - 1; filled by `add_motions`.
        backward: motions from frame t to t + 1, for t = 0 .. T - 2.
    """

    features: Tensor
    labels: Tensor
    measured: list[State]
    images: list[ImageArray]
    forward: list[Motion]
    backward: list[Motion]

    def __len__(self) -> int:
        return len(self.features)

    def motion(self, process: FlowProcess, before: int, now: int) -> Motion:
        """The flow from one frame to a neighbour of it."""
        return process.motion(
            self.features[before].float(),
            self.features[now].float(),
            (self.images[before], self.images[now]) if process.refine else None,
        )

    def cell_image(self, t: int) -> Tensor:
        """(1, h, w) grey levels at the cells."""
        height, width = self.features.shape[-2:]
        return torch.from_numpy(self.images[t][::8, ::8][:height, :width].copy()).float()[None]

    def known(self, t: int) -> Tensor:
        """(h, w) bool: where frame t has labels."""
        return torch.isfinite(self.labels[t]).all(0)


def process_std(process: FlowProcess, motion: Motion, state: State) -> Tensor:
    """Process noise (h, w) in metres for moving a state."""
    with torch.no_grad():
        slope = coordinate_slope(warp(state, motion.flow).mean)
    return process.noise_std(motion, slope)


def train_flow(
    process: FlowProcess, clips: Sequence[Clip], config: TemporalConfig, run: Run
) -> None:
    """Stage 2: the prior from the true previous coordinates must explain the true current ones."""
    options = config.process
    rng = np.random.default_rng(run.runtime.seed)
    generator = torch.Generator().manual_seed(run.runtime.seed)
    optimizer = torch.optim.Adam(process.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 ** (step / options.halve_every)
    )
    with run.progress("Flow", options.iterations) as progress:
        for _ in range(options.iterations):
            clip = clips[rng.integers(len(clips))]
            t = int(rng.integers(1, len(clip)))
            loss = sum(
                _flow_loss(process, clip, a, b, rng, generator, config)
                for a, b in ((t - 1, t), (t, t - 1))
            )
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(process.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            progress.advance(1, loss=float(loss.detach()))


def _flow_loss(
    process: FlowProcess, clip: Clip, before: int, now: int, rng: np.random.Generator,
    generator: torch.Generator, config: TemporalConfig,
) -> Tensor:  # fmt: skip
    options = config.process
    motion = clip.motion(process, before, now)
    std = float(rng.uniform(*options.noise))
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


@torch.no_grad()
def add_motions(process: FlowProcess, clips: Sequence[Clip], run: Run) -> None:
    """Flow between all neighbours, both ways; it stays as it is from here on."""
    with run.progress("Motions", sum(len(c) - 1 for c in clips)) as progress:
        for clip in clips:
            clip.forward, clip.backward = [], []
            for t in range(len(clip) - 1):
                clip.forward.append(clip.motion(process, t, t + 1))
                clip.backward.append(clip.motion(process, t + 1, t))
                progress.advance()


def train_joint(
    process: FlowProcess, scale: NoiseScale, clips: Sequence[Clip], config: TemporalConfig, run: Run
) -> None:
    """Stage 3: windows of the video, forwards and backwards, through the unrolled filter."""
    options = config.joint
    rng = np.random.default_rng(run.runtime.seed + 1)
    scale.fit(clips)
    parameters = [*process.noise.parameters(), *scale.parameters()]
    optimizer = torch.optim.Adam(parameters, options.learning_rate)
    steps = max(options.iterations, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / steps)
    usable = [c for c in clips if len(c) >= options.window] or list(clips)
    with run.progress("Joint", options.iterations) as progress:
        for _ in range(options.iterations):
            clip = usable[rng.integers(len(usable))]
            window = min(options.window, len(clip))
            first = int(rng.integers(0, len(clip) - window + 1))
            frames = list(range(first, first + window))
            backwards = bool(rng.integers(2))
            loss = _window_loss(process, scale, clip, frames, backwards, config)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            progress.advance(1, loss=float(loss.detach()))


def _window_loss(
    process: FlowProcess, scale: NoiseScale, clip: Clip, frames: Sequence[int], backwards: bool,
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


@dataclass(frozen=True)
class Calibration:
    """What the filter needs to be told beside its networks.

    Attributes:
        noise: factor on all variances within the filter, so that innovations are as large as it says.
        output: factor on the posterior variance, so that its errors are as large as it says; above
            `noise` when neighbouring frames share errors.
        min_similarity: cosine from which a cell counts as found again.
    """

    noise: float = 1.0
    output: float = 1.0
    min_similarity: float = 0.7


def run_filter(
    process: FlowProcess, scale: NoiseScale, clip: Clip, config: TemporalConfig, found: Calibration
) -> tuple[Tensor, Tensor]:
    """Filter a clip.

    Returns:
        accepted normalised innovations (n,), and normalised squared posterior errors (m,).
    """
    tracker = Tracker(config.filter, found.min_similarity)
    innovations, errors = [], []
    for t in range(len(clip)):
        measured = inflate(scale(clip.measured[t]), found.noise)
        if tracker.state is None:
            step = tracker.start(measured, "start")
        else:
            motion = clip.forward[t - 1]
            std = process_std(process, motion, tracker.state)
            std = std * config.filter.process_factor * found.noise**0.5
            step = tracker.step(measured, motion, std)
        innovations.append(step.accepted_nis())
        mask = step.posterior.known & clip.known(t)
        error = (step.posterior.mean - clip.labels[t]).square().sum(0)[mask]
        errors.append(error / step.posterior.variance[mask])
    return torch.cat(innovations), torch.cat(errors)


def inflate(state: State, factor: float) -> State:
    """A state with its variance multiplied."""
    return replace(state, variance=state.variance * factor)


@torch.no_grad()
def calibrate(
    process: FlowProcess, scale: NoiseScale, clips: Sequence[Clip], config: TemporalConfig
) -> Calibration:
    """Choose the scalars by running the filter over held-out measurements."""
    found = Calibration(min_similarity=_separating_similarity(process, clips))
    low, high = -6.0, 2.0
    for _ in range(9):
        middle = (low + high) / 2
        found = replace(found, noise=float(np.exp(middle)))
        nis = torch.cat([run_filter(process, scale, c, config, found)[0] for c in clips])
        if len(nis) == 0:
            return replace(found, noise=1.0)
        if float(nis.mean()) > config.filter.target_nis:
            low = middle
        else:
            high = middle
    errors = torch.cat([run_filter(process, scale, c, config, found)[1] for c in clips])
    # The median is not moved by cells that are wrong altogether; 2.366 is that of chi-square(3).
    return replace(found, output=max(float(errors.median()) / 2.366, 0.1))


def _separating_similarity(process: FlowProcess, clips: Sequence[Clip]) -> float:
    """Cosine halfway between cells of neighbouring frames and cells of frames far apart."""
    near = torch.cat([m.similarity.flatten() for c in clips for m in c.forward])
    far = []
    count = len(clips)
    for i, clip in enumerate(clips):
        other = clips[(i + count // 2) % count]
        a, b = clip.features[0].float(), other.features[-1].float()
        images = (clip.images[0], other.images[-1]) if process.refine else None
        far.append(process.motion(a, b, images).similarity.flatten())
    return float((near.median() + torch.cat(far).median()) / 2)

"""The Kalman filter over a grid of scene coordinates: warp, predict, test, update.

Zhou et al., KFNet, CVPR 2020. Every cell is an independent 3D Gaussian with an isotropic covariance.
The functions know neither images nor networks, so that they serve any measurement and any flow.
"No information" is an infinite variance; nothing here takes a missing value for a certain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_AGREEING = 30


@dataclass(frozen=True)
class State:
    """Scene coordinates with their uncertainty, on a grid.

    Attributes:
        mean: (3, h, w) scene coordinates in metres; anything finite where the variance is infinite.
        variance: (h, w) variance along any axis in m^2; infinite where nothing is known.
        support: (h, w) odds that a cell is right at all, gathered over time; its variance is that of
            right cells. Regressed coordinates are either about right or far off, which no single
            Gaussian says. None where only the Gaussian counts.
    """

    mean: Tensor
    variance: Tensor
    support: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """(h, w) bool: where there is information."""
        return torch.isfinite(self.variance)

    @property
    def median_std(self) -> float:
        """Metres; median standard deviation where there is information, NaN where there is none."""
        return float(self.variance[self.known].median().sqrt())


def sample_positions(flow: Tensor) -> Tensor:
    """Grid positions (2, h, w), x first, that a backward flow (2, h, w) in cells points at."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=flow.dtype, device=flow.device),
        torch.arange(width, dtype=flow.dtype, device=flow.device),
        indexing="ij",
    )
    return torch.stack([x, y]) + flow


def sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples (C, h, w) of maps (C, H, W) at positions (2, h, w) in cells; 0 outside."""
    height, width = maps.shape[-2:]
    scale = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=maps.dtype)
    grid = positions.permute(1, 2, 0) / scale.to(maps.device) * 2 - 1
    return F.grid_sample(maps[None], grid[None].to(maps.dtype), align_corners=True)[0]


def inside(positions: Tensor, height: int, width: int) -> Tensor:
    """Where positions (2, h, w) lie on a grid, its border included."""
    x, y = positions
    return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)


def warp(state: State, flow: Tensor) -> State:
    """Move a state along a backward flow.

    Coordinates and standard deviations are interpolated as published; cells without information,
    and those outside the grid, do not take part, and a cell of which less than half the weight is
    known stays unknown.

    Args:
        state: of the previous frame.
        flow: (2, h, w) in cells, x first: cell p of the current frame was at p + flow(p).

    Returns:
        the state on the current frame's grid, without process noise.
    """
    positions = sample_positions(flow)
    known = state.known.to(state.mean.dtype)
    # Ones, not zeros: the square root has a gradient there.
    std = torch.where(state.known, state.variance, torch.ones_like(state.variance)).sqrt()
    # Not 0 * inf: an unknown mean is zeroed, its weight is zero anyway.
    maps = torch.cat([state.mean * known, (std * known)[None], known[None]])
    sampled = sample(maps, positions)
    weight = sampled[4]
    usable = (weight > 0.5) & inside(positions, *state.variance.shape)
    scale = 1 / weight.clamp_min(1e-6)
    variance = torch.where(
        usable, (sampled[3] * scale).square(), torch.full_like(weight, torch.inf)
    )
    support = None
    if state.support is not None:
        support = sample((state.support * known)[None], positions)[0] * scale * usable
    return State(sampled[:3] * scale * usable, variance, support)


def predict(
    state: State, flow: Tensor, process_std: Tensor, fading: float = 1.0, memory: float = 1.0
) -> State:
    """The prior of the current frame: warped state plus process noise.

    Args:
        state: posterior of the previous frame.
        flow: (2, h, w) backward flow in cells.
        process_std: (h, w) metres; infinite where the flow means nothing.
        fading: factor on the warped variance, at least 1.
        memory: factor on the warped support, at most 1.
    """
    warped = warp(state, flow)
    support = None if warped.support is None else warped.support * memory
    return State(warped.mean, warped.variance * fading + process_std.square(), support)


def innovation(prior: State, measured: State) -> Tensor:
    """Normalised innovation squared (h, w): chi-square with 3 degrees of freedom when all is right.

    NaN where the prior or the measurement says nothing.
    """
    total = prior.variance + measured.variance
    nis = (measured.mean - prior.mean).square().sum(0) / total
    return torch.where(torch.isfinite(total), nis, torch.full_like(nis, torch.nan))


def update(prior: State, measured: State) -> State:
    """The posterior of every cell; each side may know nothing.

    Written with information (inverse variance), so that an infinite variance has weight zero.
    """
    a, b = 1 / prior.variance, 1 / measured.variance
    total = a + b
    gain = torch.where(total > 0, b / total.clamp_min(1e-30), torch.zeros_like(total))
    support = None
    if prior.support is not None and measured.support is not None:
        support = prior.support + measured.support
    return State(prior.mean + gain * (measured.mean - prior.mean), 1 / total, support)


def correct_common(prior: State, measured: State, agreeing: Tensor, gain: float) -> State:
    """Remove part of the error that all cells of the prior share.

    Errors of the flow are alike in neighbouring cells, so the warped map drifts as a whole; a filter
    per cell believes they are independent and would follow a thousand agreeing innovations no faster
    than one. The small rigid motion that explains the agreeing cells' innovations best (linearised,
    weighted by their variances) is applied to the whole prior, times `gain`.

    Args:
        prior: of the current frame.
        measured: of the current frame.
        agreeing: (h, w) bool, cells of which both know and that passed the test.
        gain: 0..1, share of the motion that is applied.
    """
    if gain <= 0 or int(agreeing.sum()) < _FEWEST_AGREEING:
        return prior
    points = prior.mean[:, agreeing].T.double()
    error = (measured.mean - prior.mean)[:, agreeing].T.double()
    weight = (1 / (prior.variance + measured.variance))[agreeing].double()
    weight = weight / weight.sum()
    centre = (weight[:, None] * points).sum(0)
    arm = points - centre
    # e = t + w x arm, as normal equations in (t, w).
    zero = torch.zeros_like(arm[:, 0])
    x, y, z = arm.T
    cross = torch.stack([zero, z, -y, -z, zero, x, y, -x, zero], 1).view(-1, 3, 3)
    jacobian = torch.cat([torch.eye(3).double().expand(len(arm), 3, 3), cross], 2)
    weighted = jacobian * weight[:, None, None]
    normal = torch.einsum("nij,nik->jk", weighted, jacobian)
    normal = normal + 1e-6 * torch.eye(6).double()
    motion = torch.linalg.solve(normal, torch.einsum("nij,ni->j", weighted, error)) * gain
    height, width = prior.variance.shape
    all_arms = prior.mean.flatten(1).T.double() - centre
    turned = torch.linalg.cross(motion[3:].expand_as(all_arms), all_arms)
    moved = prior.mean + (motion[:3] + turned).T.view(3, height, width).to(prior.mean.dtype)
    return State(moved, prior.variance, prior.support)


def likelier(
    prior: State, measured: State, posterior: State, rejected: Tensor, cost: float, most: float
) -> State:
    """Resolve disagreements in favour of the side with more support, which loses some of it.

    A cell that keeps being measured where it is believed to be gathers support; a wrong match that
    jumps about does not, and a wrong belief loses its support to measurements that agree.

    Args:
        prior: of the current frame, with support.
        measured: of the current frame, with support.
        posterior: of `update`; stays where the test was passed.
        rejected: (h, w) bool, where prior and measurement contradict each other.
        cost: share of the loser's support that the winner loses.
        most: largest support, so that beliefs stay revisable.
    """
    assert prior.support is not None
    assert measured.support is not None
    assert posterior.support is not None
    new = rejected & (measured.support > prior.support)
    old = rejected & ~new
    mean = torch.where(new, measured.mean, torch.where(old, prior.mean, posterior.mean))
    variance = torch.where(
        new, measured.variance, torch.where(old, prior.variance, posterior.variance)
    )
    contested = torch.maximum(measured.support, prior.support) - cost * torch.minimum(
        measured.support, prior.support
    )
    support = torch.where(rejected, contested, posterior.support).clamp_max(most)
    return State(mean, variance, support)


def gate(
    prior: State,
    measured: State,
    posterior: State,
    rejected: Tensor,
    policy: str,
    growth: float = 1.0,
) -> State:
    """Replace the cells whose innovation failed the test.

    Args:
        prior: of the current frame.
        measured: of the current frame.
        posterior: of `update`.
        rejected: (h, w) bool.
        policy: see `FilterConfig.policy`.
        growth: factor on the variance of a prior that is kept.
    """
    if policy == "off":
        return posterior
    if policy == "keep_prior":
        mean, variance = prior.mean, prior.variance * growth
    elif policy == "use_measurement":
        mean, variance = measured.mean, measured.variance
    else:
        mean, variance = posterior.mean, torch.full_like(posterior.variance, torch.inf)
    return State(
        torch.where(rejected, mean, posterior.mean),
        torch.where(rejected, variance, posterior.variance),
        posterior.support,
    )

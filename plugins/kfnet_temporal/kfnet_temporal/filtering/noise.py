"""What the variances of a measurement mean to the filter, learned from held-out measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from kfnet_temporal.filtering.clips import Clip
from kfnet_temporal.filtering.kalman import State

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
        """Fit to the errors of held-out measurements: a Gaussian of right cells and a uniform rest.

        Four numbers in less than a second: nothing that a checkpoint or a progress bar would be for.
        """
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

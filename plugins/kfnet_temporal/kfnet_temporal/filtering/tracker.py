"""The filter over a sequence: when to predict, what to believe, when to start anew."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kfnet_temporal.config import FilterConfig
from kfnet_temporal.filtering.kalman import (
    State,
    correct_common,
    gate,
    innovation,
    likelier,
    predict,
    update,
)
from kfnet_temporal.filtering.process import Motion


@dataclass(frozen=True)
class Step:
    """What happened in one frame.

    Attributes:
        posterior: what is believed now.
        measured: of this frame alone.
        prior: before the measurement, None in the first frame and after a new start.
        nis: (h, w) normalised innovation squared, NaN where one side knows nothing; None without
            a prior.
        rejected: (h, w) bool, cells whose innovation failed the test; None without a prior.
        process_std: (h, w) metres; None without a prior.
        motion: flow from the previous frame; None without one.
        event: "start", "cut", "gap", "size", "recovered", "doubted", "frozen" or ""
            in a normal frame.
    """

    posterior: State
    measured: State
    prior: State | None = None
    nis: Tensor | None = None
    rejected: Tensor | None = None
    process_std: Tensor | None = None
    motion: Motion | None = None
    event: str = ""

    @property
    def gain(self) -> float:
        """Variance of a cell by this frame alone over that of the posterior, a median; at least 1."""
        both = self.posterior.known & self.measured.known
        if not bool(both.any()):
            return 1.0
        return max(1.0, float((self.measured.variance / self.posterior.variance)[both].median()))

    def accepted_nis(self) -> Tensor:
        """Values (n,) of the tested cells that passed; empty without a prior."""
        if self.nis is None or self.rejected is None:
            return self.posterior.variance.new_zeros(0)
        return self.nis[torch.isfinite(self.nis) & ~self.rejected]

    def signals(self) -> dict[str, float]:
        """What the frame tells of its worth, larger is better; see `Evidence.signals`.

        `sharpness` is the negative logarithm of the measured coordinates' median standard deviation,
        `consistency` the share of the tested cells whose innovation passed.
        """
        found = {}
        if math.isfinite(self.measured.median_std) and self.measured.median_std > 0:
            found["sharpness"] = -math.log(self.measured.median_std)
        if self.nis is not None and self.rejected is not None:
            tested = torch.isfinite(self.nis)
            if bool(tested.any()):
                found["consistency"] = float((tested & ~self.rejected).sum() / tested.sum())
        return found


@dataclass
class Tracker:
    """State of the filter between frames; its memory does not grow.

    Args:
        config: of the filter.
        min_similarity: cosine of features from which a cell counts as found again.
    """

    config: FilterConfig
    min_similarity: float = 0.7
    state: State | None = None
    doubted: int = field(default=0)

    def reset(self) -> None:
        """Forget everything."""
        self.state = None
        self.doubted = 0

    def start(self, measured: State, event: str) -> Step:
        """Begin with a measurement alone."""
        self.state, self.doubted = measured, 0
        return Step(measured, measured, event=event)

    def hold(self, measured: State) -> Step:
        """Keep what is believed: the picture is the last one again and says nothing new."""
        assert self.state is not None
        return Step(self.state, measured, event="frozen")

    def lost_view(self, motion: Motion) -> bool:
        """Whether too little of the frame was found again in the previous one."""
        share = (motion.similarity > self.min_similarity).float().mean()
        return bool(share < self.config.min_overlap)

    def step(self, measured: State, motion: Motion, process_std: Tensor) -> Step:
        """Advance by one frame that follows the last one.

        Args:
            measured: of this frame.
            motion: flow from this frame to the last one.
            process_std: (h, w) metres.
        """
        config = self.config
        assert self.state is not None
        if self.lost_view(motion):
            return self.start(measured, "cut")
        prior = predict(self.state, motion.flow, process_std, config.fading, config.memory)
        nis = innovation(prior, measured)
        if config.common_gain > 0:
            prior = correct_common(prior, measured, nis < config.threshold, config.common_gain)
            nis = innovation(prior, measured)
        tested = torch.isfinite(nis)
        rejected = tested & (nis > config.threshold)
        event = ""
        failing = float(rejected.sum()) / max(float(tested.sum()), 1.0)
        if config.policy != "off" and failing > config.lost_share:
            self.doubted += 1
            if self.doubted > config.patience:
                return self.start(measured, "recovered")
            event = "doubted"
            posterior = _hold(prior, config.rejected_growth)
        else:
            self.doubted = 0
            posterior = self._fuse(prior, measured, rejected)
        self.state = posterior
        return Step(posterior, measured, prior, nis, rejected, process_std, motion, event)

    def _fuse(self, prior: State, measured: State, rejected: Tensor) -> State:
        config = self.config
        posterior = update(prior, measured)
        if config.floor > 0:
            least = config.floor * measured.variance
            # A frame that knows nothing sets no floor.
            least = torch.where(torch.isfinite(least), least, torch.zeros_like(least))
            posterior = replace(posterior, variance=torch.maximum(posterior.variance, least))
        if config.policy == "likelier":
            return likelier(
                prior, measured, posterior, rejected, config.contest, config.max_support
            )
        return gate(prior, measured, posterior, rejected, config.policy, config.rejected_growth)


def _hold(prior: State, growth: float) -> State:
    return replace(prior, variance=prior.variance * growth)

"""A Kalman filter on the pose: what the cells' errors have in common.

All cells of a frame are read from the same map, so their errors are shared and last as long as the
view does; averaging over cells does not remove them, averaging over time does, but slowly. The state is
the pose, predicted by tracked points, and the error that the pose of the filtered coordinates has at the
moment: a first-order Gauss-Markov process (Gelb, Applied Optimal Estimation, 1974, section 3.8). Without
it the filter would become sure of a pose that many frames agree about for one and the same wrong reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kfnet_temporal.config import PoseConfig
from kfnet_temporal.tangent import adjoint, minus, plus
from kfnet_temporal.tracks import Relative
from reloc_core.types import Float64Array

_SMOOTHING = 0.3
_FLEETING = 0.1
"""Variance of the errors that a frame shares with no other, as a share of those that last."""


@dataclass(frozen=True)
class Belief:
    """A pose (4, 4) with its covariance (6, 6) in the tangent of `reloc_core.types`."""

    world_from_cam: Float64Array
    covariance: Float64Array


@dataclass(frozen=True)
class _Joint:
    """A pose with the lasting error (6,) of the measured poses, and their covariance (12, 12)."""

    world_from_cam: Float64Array
    offset: Float64Array
    covariance: Float64Array

    @property
    def belief(self) -> Belief:
        """The pose alone."""
        return Belief(self.world_from_cam, self.covariance[:6, :6])


class PoseFilter:
    """The filter between frames.

    Args:
        config: options.
    """

    def __init__(self, config: PoseConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._state: _Joint | None = None
        self._rival: _Joint | None = None
        self._agreeing = self._coasted = 0
        self._velocity = np.eye(4)

    @property
    def belief(self) -> Belief | None:
        """The pose that is believed, if any."""
        return None if self._state is None else self._state.belief

    def predict(self, relative: Relative | None) -> None:
        """Move the belief along with the camera.

        Without a motion the camera keeps its velocity for some frames, ever less certain; then the
        belief is lost.
        """
        options = self.config
        if relative is None:
            self._coasted += 1
            if self._coasted > options.coast:
                self.reset()
            motion = self._velocity
            noise = _diagonal(options.coast_rotation, options.coast_drift)
        else:
            # Smoothed over a few frames: single ones are noisy.
            self._velocity = plus(
                self._velocity, _SMOOTHING * minus(relative.last_from_cam, self._velocity)
            )
            self._coasted = 0
            motion = relative.last_from_cam
            noise = _diagonal(options.drift_rotation, options.drift)
            noise = noise + options.track_noise * relative.covariance
        self._state = self._moved(self._state, motion, noise)
        self._rival = self._moved(self._rival, motion, noise)

    def ahead(self, frames: int) -> Belief | None:
        """The belief some frames later at constant velocity, which it does not change."""
        state = self._state
        noise = _diagonal(self.config.coast_rotation, self.config.coast_drift)
        for _ in range(min(frames, self.config.coast)):
            state = self._moved(state, self._velocity, noise)
        return None if state is None else state.belief

    def update(self, measured: Belief, sure: bool = False) -> None:
        """Correct the belief by a measured pose.

        One that contradicts the belief counts less the more it does; when several do and agree with
        each other, the filter follows them.

        Args:
            measured: pose of the frame.
            sure: whether a single contradiction is enough.
        """
        options = self.config
        floor = _diagonal(options.floor_rotation, options.floor)
        fresh = Belief(measured.world_from_cam, measured.covariance * options.redundancy + floor)
        if self._state is None:
            self._follow(_begun(fresh))
            return
        if self._contradiction(self._state, fresh) <= options.threshold:
            self._rival, self._agreeing = None, 0
        elif sure:
            self._follow(_begun(fresh))
            return
        else:
            rival = self._rival
            if rival is None or self._contradiction(rival, fresh) > options.threshold:
                self._rival, self._agreeing = _begun(fresh), 0
            else:
                self._rival = self._fused(rival, fresh)
            self._agreeing += 1
            if self._agreeing >= options.confirm:
                self._follow(self._rival)
                return
        self._state = self._fused(self._state, fresh)

    def _follow(self, state: _Joint | None) -> None:
        self._state, self._rival, self._agreeing = state, None, 0

    @property
    def _kept(self) -> float:
        """Correlation of the lasting errors of neighbouring frames."""
        return float(np.exp(-1 / self.config.shared))

    def _moved(
        self, state: _Joint | None, motion: Float64Array, noise: Float64Array
    ) -> _Joint | None:
        if state is None:
            return None
        jacobian = adjoint(motion)
        both = np.zeros((12, 12))
        both[:6, :6], both[6:, 6:] = jacobian, self._kept * jacobian
        covariance = both @ state.covariance @ both.T
        covariance[:6, :6] += noise
        return _Joint(state.world_from_cam @ motion, both[6:, 6:] @ state.offset, covariance)

    def _prior(self, state: _Joint, fresh: Belief) -> Float64Array:
        """The state's covariance with what is new of the lasting error in this frame."""
        covariance = state.covariance.copy()
        covariance[6:, 6:] += (1 - self._kept**2) * fresh.covariance
        return covariance

    def _innovation(self, state: _Joint, fresh: Belief) -> tuple[Float64Array, Float64Array]:
        """Difference (6,) of measured and expected pose, and its covariance."""
        covariance = _OBSERVED @ self._prior(state, fresh) @ _OBSERVED.T
        error = minus(fresh.world_from_cam, state.world_from_cam) - state.offset
        return error, covariance + _FLEETING * fresh.covariance

    def _contradiction(self, state: _Joint, fresh: Belief) -> float:
        """Normalised innovation squared: chi-square with 6 degrees of freedom when all is right."""
        error, covariance = self._innovation(state, fresh)
        return float(error @ np.linalg.solve(covariance, error))

    def _fused(self, state: _Joint, fresh: Belief) -> _Joint:
        prior = self._prior(state, fresh)
        error, expected = self._innovation(state, fresh)
        excess = float(error @ np.linalg.solve(expected, error)) / self.config.threshold
        noise = _FLEETING * fresh.covariance + max(0.0, excess - 1.0) * expected
        total = _OBSERVED @ prior @ _OBSERVED.T + noise
        gain = prior @ _OBSERVED.T @ np.linalg.inv(total)
        change = gain @ error
        rest = np.eye(12) - gain @ _OBSERVED
        # Joseph's form stays symmetric and positive.
        return _Joint(
            plus(state.world_from_cam, change[:6]),
            state.offset + change[6:],
            rest @ prior @ rest.T + gain @ noise @ gain.T,
        )


_OBSERVED = np.concatenate([np.eye(6), np.eye(6)], 1)


def _begun(measured: Belief) -> _Joint:
    """The state after a first measurement, whose error is the lasting one at first."""
    lasting, fleeting = measured.covariance, _FLEETING * measured.covariance
    covariance = np.block([[lasting + fleeting, -lasting], [-lasting, lasting]])
    return _Joint(measured.world_from_cam, np.zeros(6), covariance)


def _diagonal(rotation: float, translation: float) -> Float64Array:
    return np.diag([rotation**2] * 3 + [translation**2] * 3)

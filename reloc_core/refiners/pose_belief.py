"""A Kalman filter on the pose of a camera that moves, for measurements whose errors last.

All evidence of a frame comes from the same map, so its errors are shared and last as long as the view
does; averaging over points does not remove them, averaging over time does, but slowly. The state is the
pose and the error that the measured poses have at the moment: a first-order Gauss-Markov process (Gelb,
Applied Optimal Estimation, 1974, section 3.8). Without it the filter would become sure of a pose that
many frames agree about for one and the same wrong reason.

Velocities follow white-noise accelerations (Bar-Shalom et al., Estimation with Applications to Tracking
and Navigation, 2001, section 6.2.2), so that the standard deviation of a pose whose motion is not seen
grows with time to the power of 3/2 in the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reloc_core.geometry import adjoint, pose_minus, pose_plus
from reloc_core.refiners.config import PoseFilterConfig
from reloc_core.types import Float64Array

_FLEETING = 0.1
"""Variance of the errors that a frame shares with no other, as a share of those that last."""
_AT_FIRST = 4.0
"""Seconds of random accelerations that a camera has behind it when it is first seen."""
_P, _V, _L = slice(0, 6), slice(6, 12), slice(12, 18)
"""Pose, velocity and lasting error in the state."""


@dataclass(frozen=True)
class Belief:
    """A pose (4, 4) with its covariance (6, 6) in the tangent of `reloc_core.types`."""

    world_from_cam: Float64Array
    covariance: Float64Array


@dataclass(frozen=True)
class _State:
    """A pose with its velocity (6,) per second and the lasting error (6,) of the measured poses.

    The covariance (18, 18) is in this order.
    """

    world_from_cam: Float64Array
    velocity: Float64Array
    offset: Float64Array
    covariance: Float64Array

    @property
    def belief(self) -> Belief:
        """The pose alone."""
        return Belief(self.world_from_cam, self.covariance[_P, _P])


class PoseBelief:
    """What is believed of the pose from frame to frame.

    Args:
        config: options.

    Attributes:
        distance: of what the camera sees, in the scene's unit; lengths in the config are shares of it.
    """

    def __init__(self, config: PoseFilterConfig) -> None:
        self.config = config
        self.distance = config.distance
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._state: _State | None = None
        self._rival: _State | None = None
        self._agreeing = 0
        self._unmeasured = 0.0

    @property
    def belief(self) -> Belief | None:
        """The pose that is believed, if any."""
        return None if self._state is None else self._state.belief

    # --------------------------------------------------------------------------- prediction

    def move(self, motion: Float64Array, covariance: Float64Array, seconds: float) -> None:
        """Move the belief along with the camera.

        Args:
            motion: (4, 4) last_from_cam.
            covariance: (6, 6) of the motion.
            seconds: since the last frame.
        """
        noise = covariance + self.drift(1)
        speed = pose_minus(motion, np.eye(4)) / seconds

        def moved(state: _State | None) -> _State | None:
            if state is None:
                return None
            added = np.zeros((18, 18))
            added[_P, _P] = noise
            state = self._carried(state, motion, np.zeros((6, 6)), added, seconds)
            # The mean speed is not quite that of the end: both come from the same accelerations.
            shaken, covariance = self._accelerations * seconds, state.covariance.copy()
            total = covariance[_V, _V] + shaken / 3 + noise / seconds**2
            shared = covariance[:, _V].copy()
            shared[_V] += shaken / 2
            gain = shared @ np.linalg.inv(total)
            covariance[_V, _V] += shaken
            return _changed(
                state, gain @ (speed - state.velocity), covariance - gain @ total @ gain.T
            )

        self._state, self._rival = moved(self._state), moved(self._rival)
        self._unmeasured += seconds

    def coast(self, seconds: float) -> None:
        """Move the belief on at constant velocity: the motion was not seen."""
        self._state = self._coasted(self._state, seconds)
        self._rival = self._coasted(self._rival, seconds)
        self._unmeasured += seconds

    def ahead(self, seconds: float) -> Belief | None:
        """The belief some time later at constant velocity, which it does not change."""
        moved = self._coasted(self._state, seconds)
        return None if moved is None else moved.belief

    def _coasted(self, state: _State | None, seconds: float) -> _State | None:
        if state is None or seconds <= 0:
            return state
        noise, added = self._accelerations, np.zeros((18, 18))
        added[_P, _P], added[_V, _V] = noise * seconds**3 / 3, noise * seconds
        added[_P, _V] = added[_V, _P] = noise * seconds**2 / 2
        motion = pose_plus(np.eye(4), state.velocity * seconds)
        return self._carried(state, motion, np.eye(6) * seconds, added, seconds)

    def _carried(
        self, state: _State, motion: Float64Array, by_velocity: Float64Array, noise: Float64Array,
        seconds: float,
    ) -> _State:  # fmt: skip
        """A state after a motion that depends on the velocity by a (6, 6) Jacobian."""
        kept = float(np.exp(-seconds / self.config.shared))
        jacobian = np.eye(18)
        jacobian[_P, _P] = adjoint(motion)
        jacobian[_P, _V] = by_velocity
        jacobian[_L, _L] = kept * adjoint(motion)
        return _State(
            state.world_from_cam @ motion,
            state.velocity,
            jacobian[_L, _L] @ state.offset,
            jacobian @ state.covariance @ jacobian.T + noise,
        )

    def drift(self, frames: int) -> Float64Array:
        """Covariance (6, 6) of a motion that was followed over some frames, at least."""
        return frames * self._lengths(self.config.drift_rotation, self.config.drift)

    @property
    def _accelerations(self) -> Float64Array:
        """Spectral density (6, 6)."""
        return self._lengths(self.config.acceleration_rotation, self.config.acceleration)

    # --------------------------------------------------------------------------- correction

    def correct(self, measured: Belief, sure: bool = False) -> bool:
        """Correct the belief by a measured pose; returns whether they agree.

        One that contradicts the belief counts less the more it does; when several do and agree with
        each other, the filter follows them.

        Args:
            measured: pose of the frame.
            sure: whether a single contradiction is enough.
        """
        options = self.config
        floor = self._lengths(options.floor_rotation, options.floor)
        fresh = Belief(measured.world_from_cam, measured.covariance * options.redundancy + floor)
        seconds, self._unmeasured = self._unmeasured, 0.0
        if self._state is None:
            self._follow(self._begun(fresh))
            return True
        if self._contradiction(self._state, fresh, seconds) <= options.threshold:
            self._rival, self._agreeing = None, 0
            self._state = self._fused(self._state, fresh, seconds)
            return True
        if sure:
            self._follow(self._begun(fresh))
            return True
        rival = self._rival
        if rival is None or self._contradiction(rival, fresh, seconds) > options.threshold:
            self._rival, self._agreeing = self._begun(fresh), 0
        else:
            self._rival = self._fused(rival, fresh, seconds)
        self._agreeing += 1
        if self._agreeing >= options.confirm:
            self._follow(self._rival)
            return True
        self._state = self._fused(self._state, fresh, seconds)
        return False

    def inform(self, prior: Belief) -> bool:
        """Correct the belief by an independent pose of the map's world; returns whether they agree.

        A prior that contradicts is left aside: of the two it has never seen the map.
        """
        state = self._state
        if state is None:
            return False
        error = pose_minus(prior.world_from_cam, state.world_from_cam)
        total = state.covariance[_P, _P] + prior.covariance
        if float(error @ np.linalg.solve(total, error)) > self.config.threshold:
            return False
        self._state = _corrected(state, state.covariance, error, _POSE, prior.covariance)
        return True

    def _follow(self, state: _State | None) -> None:
        self._state, self._rival, self._agreeing = state, None, 0

    def _prior(self, state: _State, fresh: Belief, seconds: float) -> Float64Array:
        """The state's covariance with what is new of the lasting error in this frame."""
        covariance: Float64Array = state.covariance.copy()
        covariance[_L, _L] += -np.expm1(-2 * seconds / self.config.shared) * fresh.covariance
        return covariance

    def _innovation(
        self, state: _State, fresh: Belief, seconds: float
    ) -> tuple[Float64Array, Float64Array]:
        """Difference (6,) of measured and expected pose, and its covariance."""
        covariance = _MEASURED @ self._prior(state, fresh, seconds) @ _MEASURED.T
        error = pose_minus(fresh.world_from_cam, state.world_from_cam) - state.offset
        return error, covariance + _FLEETING * fresh.covariance

    def _contradiction(self, state: _State, fresh: Belief, seconds: float) -> float:
        """Normalised innovation squared: chi-square with 6 degrees of freedom when all is right."""
        error, covariance = self._innovation(state, fresh, seconds)
        return float(error @ np.linalg.solve(covariance, error))

    def _fused(self, state: _State, fresh: Belief, seconds: float) -> _State:
        error, expected = self._innovation(state, fresh, seconds)
        excess = float(error @ np.linalg.solve(expected, error)) / self.config.threshold
        noise = _FLEETING * fresh.covariance + max(0.0, excess - 1.0) * expected
        return _corrected(state, self._prior(state, fresh, seconds), error, _MEASURED, noise)

    def _begun(self, measured: Belief) -> _State:
        """The state after a first measurement, whose error is the lasting one at first."""
        lasting, fleeting = measured.covariance, _FLEETING * measured.covariance
        covariance = np.zeros((18, 18))
        covariance[_P, _P], covariance[_L, _L] = lasting + fleeting, lasting
        covariance[_P, _L] = covariance[_L, _P] = -lasting
        covariance[_V, _V] = self._accelerations * _AT_FIRST
        return _State(measured.world_from_cam, np.zeros(6), np.zeros(6), covariance)

    def _lengths(self, rotation: float, share: float) -> Float64Array:
        """Covariance (6, 6) of a rotation in radians and a share of the distance."""
        std: Float64Array = np.array([rotation] * 3 + [share * self.distance] * 3)
        return np.asarray(np.diag(std**2))


def _observing(*parts: slice) -> Float64Array:
    """(6, 18) that adds up parts of the state."""
    result = np.zeros((6, 18))
    for chosen in parts:
        result[:, chosen] = np.eye(6)
    return result


_POSE, _MEASURED = _observing(_P), _observing(_P, _L)


def _corrected(
    state: _State, prior: Float64Array, error: Float64Array, observed: Float64Array,
    noise: Float64Array,
) -> _State:  # fmt: skip
    """Kalman's update. Joseph's form of the covariance stays symmetric and positive.

    Args:
        state: to be corrected.
        prior: (18, 18) its covariance before.
        error: (6,) of what was observed.
        observed: (6, 18) what that is of the state.
        noise: (6, 6) of the observation.
    """
    gain = prior @ observed.T @ np.linalg.inv(observed @ prior @ observed.T + noise)
    rest = np.eye(18) - gain @ observed
    return _changed(state, gain @ error, rest @ prior @ rest.T + gain @ noise @ gain.T)


def _changed(state: _State, change: Float64Array, covariance: Float64Array) -> _State:
    """The state that lies a change (18,) away, with another covariance."""
    return _State(
        pose_plus(state.world_from_cam, change[_P]),
        state.velocity + change[_V],
        state.offset + change[_L],
        covariance,
    )

"""A Kalman filter on the pose: what the cells' errors have in common.

All cells of a frame are read from the same map, so their errors are shared and last as long as the
view does; averaging over cells does not remove them, averaging over time does. The state is the pose,
predicted by tracked points and corrected by the pose that the filtered coordinates give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kfnet_temporal.config import PoseConfig
from kfnet_temporal.tracks import Relative
from reloc_core.geometry import skew, so3_exp, so3_log
from reloc_core.types import Float64Array

_SMOOTHING = 0.3


@dataclass(frozen=True)
class Belief:
    """A pose (4, 4) with its covariance (6, 6) in the tangent of `reloc_core.types`."""

    world_from_cam: Float64Array
    covariance: Float64Array


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
        self.belief: Belief | None = None
        self._rival: Belief | None = None
        self._agreeing = self._coasted = 0
        self._velocity = np.eye(4)

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
        self.belief = _moved(self.belief, motion, noise)
        self._rival = _moved(self._rival, motion, noise)

    def ahead(self, frames: int) -> Belief | None:
        """The belief some frames later at constant velocity, which it does not change."""
        belief = self.belief
        noise = _diagonal(self.config.coast_rotation, self.config.coast_drift)
        for _ in range(min(frames, self.config.coast)):
            belief = _moved(belief, self._velocity, noise)
        return belief

    def update(self, measured: Belief, sure: bool = False) -> None:
        """Correct the belief by a measured pose, whose errors last for several frames.

        As the filter takes errors of different frames for independent, the covariance of a
        measurement is multiplied by `shared`. One that contradicts the belief counts less the more it
        does; when several do and agree with each other, the filter follows them.

        Args:
            measured: pose of the frame.
            sure: whether a single contradiction is enough.
        """
        options = self.config
        floor = _diagonal(options.floor_rotation, options.floor)
        fresh = Belief(measured.world_from_cam, measured.covariance * options.redundancy + floor)
        if self.belief is None:
            self._follow(fresh)
            return
        if consistency(self.belief, fresh) <= options.threshold:
            self._rival, self._agreeing = None, 0
        elif sure:
            self._follow(fresh)
            return
        else:
            if self._rival is None or consistency(self._rival, fresh) > options.threshold:
                self._rival, self._agreeing = fresh, 0
            else:
                self._rival = self._fused(self._rival, fresh)
            self._agreeing += 1
            if self._agreeing >= options.confirm:
                self._follow(self._rival)
                return
        self.belief = self._fused(self.belief, fresh)

    def _follow(self, belief: Belief) -> None:
        self.belief, self._rival, self._agreeing = belief, None, 0

    def _fused(self, belief: Belief, fresh: Belief) -> Belief:
        excess = max(1.0, consistency(belief, fresh) / self.config.threshold)
        noise = fresh.covariance * self.config.shared * excess
        error = minus(fresh.world_from_cam, belief.world_from_cam)
        gain = belief.covariance @ np.linalg.inv(belief.covariance + noise)
        rest = np.eye(6) - gain
        # Joseph's form stays symmetric and positive.
        return Belief(
            plus(belief.world_from_cam, gain @ error),
            rest @ belief.covariance @ rest.T + gain @ noise @ gain.T,
        )


def consistency(belief: Belief, measured: Belief) -> float:
    """Normalised innovation squared: chi-square with 6 degrees of freedom when all is right."""
    error = minus(measured.world_from_cam, belief.world_from_cam)
    return float(error @ np.linalg.solve(belief.covariance + measured.covariance, error))


def _moved(belief: Belief | None, motion: Float64Array, noise: Float64Array) -> Belief | None:
    if belief is None:
        return None
    jacobian = adjoint(motion)
    return Belief(belief.world_from_cam @ motion, jacobian @ belief.covariance @ jacobian.T + noise)


def _diagonal(rotation: float, translation: float) -> Float64Array:
    return np.diag([rotation**2] * 3 + [translation**2] * 3)


def plus(world_from_cam: Float64Array, tangent: Float64Array) -> Float64Array:
    """The pose that lies (w, v) away: R Exp(w), t + R v."""
    result = world_from_cam.copy()
    result[:3, :3] = world_from_cam[:3, :3] @ so3_exp(tangent[:3])
    result[:3, 3] += world_from_cam[:3, :3] @ tangent[3:]
    return result


def minus(world_from_there: Float64Array, world_from_cam: Float64Array) -> Float64Array:
    """The tangent (6,) that leads from the second pose to the first."""
    rotation = world_from_cam[:3, :3].T
    shift = rotation @ (world_from_there[:3, 3] - world_from_cam[:3, 3])
    return np.concatenate([so3_log(rotation @ world_from_there[:3, :3]), shift])


def adjoint(motion: Float64Array) -> Float64Array:
    """(6, 6) that takes the tangent at T to the one at T @ motion."""
    back = motion[:3, :3].T
    result = np.zeros((6, 6))
    result[:3, :3] = result[3:, 3:] = back
    result[3:, :3] = -back @ skew(motion[:3, 3])
    return result

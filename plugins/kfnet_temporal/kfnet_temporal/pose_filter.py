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


@dataclass(frozen=True)
class Belief:
    """A pose (4, 4) with its covariance (6, 6) in the tangent of `reloc_core.types`."""

    world_from_cam: Float64Array
    covariance: Float64Array


@dataclass
class PoseFilter:
    """The filter between frames.

    Args:
        config: options.
        belief: of the last frame; None before the first and after a loss.
        contradicted: frames in a row whose measurement failed the test.
    """

    config: PoseConfig
    belief: Belief | None = None
    contradicted: int = 0

    def reset(self) -> None:
        """Forget everything."""
        self.belief, self.contradicted = None, 0

    def predict(self, relative: Relative | None) -> None:
        """Move the belief along with the camera; without a motion it is lost."""
        if self.belief is None or relative is None:
            self.belief = None
            return
        options = self.config
        motion = relative.last_from_cam
        jacobian = adjoint(motion)
        noise = np.diag([options.drift_rotation**2] * 3 + [options.drift**2] * 3)
        self.belief = Belief(
            self.belief.world_from_cam @ motion,
            jacobian @ self.belief.covariance @ jacobian.T
            + noise
            + options.track_noise * relative.covariance,
        )

    def update(self, measured: Belief) -> None:
        """Correct the belief by a measured pose, whose errors last for several frames.

        As the filter takes errors of different frames for independent, the covariance of a
        measurement is multiplied by `shared`. One that fails the test counts less the more it fails;
        too many of these in a row start anew.
        """
        options = self.config
        floor = np.diag([options.floor_rotation**2] * 3 + [options.floor**2] * 3)
        noise = measured.covariance * options.redundancy + floor
        if self.belief is None:
            self.belief, self.contradicted = Belief(measured.world_from_cam, noise), 0
            return
        error = minus(measured.world_from_cam, self.belief.world_from_cam)
        consistency = float(error @ np.linalg.solve(self.belief.covariance + noise, error))
        self.contradicted = self.contradicted + 1 if consistency > options.threshold else 0
        if self.contradicted > options.patience:
            self.belief, self.contradicted = Belief(measured.world_from_cam, noise), 0
            return
        noise = noise * options.shared * max(1.0, consistency / options.threshold)
        gain = self.belief.covariance @ np.linalg.inv(self.belief.covariance + noise)
        rest = np.eye(6) - gain
        # Joseph's form stays symmetric and positive.
        self.belief = Belief(
            plus(self.belief.world_from_cam, gain @ error),
            rest @ self.belief.covariance @ rest.T + gain @ noise @ gain.T,
        )


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

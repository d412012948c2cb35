"""Poses near a pose: the tangent of `reloc_core.types`, rotation first."""

from __future__ import annotations

import numpy as np

from reloc_core.geometry import nearest_rotation, skew, so3_exp, so3_log
from reloc_core.types import Float64Array


def plus(world_from_cam: Float64Array, tangent: Float64Array) -> Float64Array:
    """The pose that lies (w, v) away: R Exp(w), t + R v.

    Its rotation is a rotation to the last digit: in a loop of products and transposes the rounding
    errors would double with every frame.
    """
    result = world_from_cam.copy()
    result[:3, :3] = nearest_rotation(world_from_cam[:3, :3] @ so3_exp(tangent[:3]))
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

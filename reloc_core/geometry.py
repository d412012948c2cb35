"""Rigid transforms and camera projection in NumPy float64.

Conventions are those of `reloc_core.types`. All functions broadcast over leading dimensions unless
they say otherwise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np

from reloc_core.errors import InputError
from reloc_core.types import Camera, Float64Array, FloatArray

FARTHEST = 1e12
"""Largest coordinate that is taken for one; float64 tells tenths of a millimetre there."""

OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Right-multiply an OpenGL camera-to-world pose (x right, y up, z back) to get an OpenCV one."""


def inverse(a_from_b: FloatArray) -> Float64Array:
    """Inverse of rigid transforms, shape (..., 4, 4)."""
    pose = np.asarray(a_from_b, np.float64)
    result = np.zeros_like(pose)
    rotation_t = np.swapaxes(pose[..., :3, :3], -1, -2)
    result[..., :3, :3] = rotation_t
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, pose[..., :3, 3])
    result[..., 3, 3] = 1
    return result


def transform(a_from_b: FloatArray, points_b: FloatArray) -> Float64Array:
    """Apply a transform (4, 4) or (..., 1, 4, 4) to points (..., 3)."""
    pose = np.asarray(a_from_b, np.float64)
    points = np.asarray(points_b, np.float64)
    result: Float64Array = np.einsum("...ij,...j->...i", pose[..., :3, :3], points)
    return result + pose[..., :3, 3]


def skew(v: FloatArray) -> Float64Array:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    v = np.asarray(v, np.float64)
    result = np.zeros((*v.shape[:-1], 3, 3))
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    result[..., 0, 1], result[..., 0, 2] = -z, y
    result[..., 1, 0], result[..., 1, 2] = z, -x
    result[..., 2, 0], result[..., 2, 1] = -y, x
    return result


def so3_exp(w: FloatArray) -> Float64Array:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3) in radians (Rodrigues)."""
    w = np.asarray(w, np.float64)
    theta = np.linalg.norm(w, axis=-1)[..., None, None]
    k = skew(w)
    # sinc forms stay accurate for tiny angles.
    a = np.sinc(theta / np.pi)
    b = 0.5 * np.sinc(theta / (2 * np.pi)) ** 2
    result: Float64Array = np.eye(3) + a * k + b * (k @ k)
    return result


def so3_log(rotation: FloatArray) -> Float64Array:
    """Rotation vectors (..., 3) in radians, norm in [0, pi], of rotation matrices (..., 3, 3)."""
    q = quaternion_from_rotation(rotation)
    w, v = q[..., :1], q[..., 1:]
    n = np.linalg.norm(v, axis=-1, keepdims=True)
    angle = 2 * np.arctan2(n, w)
    result: Float64Array = v * np.where(n > 1e-12, angle / np.maximum(n, 1e-300), 2.0)
    return result


def quaternion_from_rotation(rotation: FloatArray) -> Float64Array:
    """Unit quaternions (..., 4) as w, x, y, z with w >= 0 of rotation matrices (..., 3, 3)."""
    r = np.asarray(rotation, np.float64)
    d = np.stack([r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]], -1)
    trace = d.sum(-1)
    # The outer product q q^T has the rotation's entries; take its best-conditioned column.
    outer = np.empty((*r.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[..., i + 1, i + 1] = 1 + 2 * d[..., i] - trace
        outer[..., 0, i + 1] = outer[..., i + 1, 0] = r[..., k, j] - r[..., j, k]
        outer[..., i + 1, j + 1] = outer[..., j + 1, i + 1] = r[..., j, i] + r[..., i, j]
    best = np.argmax(np.stack([outer[..., i, i] for i in range(4)], -1), -1)
    q = np.take_along_axis(outer, best[..., None, None], -1)[..., 0]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    result: Float64Array = np.where(q[..., :1] < 0, -q, q)
    return result


def rotation_from_quaternion(quaternion: FloatArray) -> Float64Array:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) as w, x, y, z; normalised here.

    Raises:
        InputError: a quaternion of norm zero or with entries that are not finite or beyond `FARTHEST`.
    """
    q = np.asarray(quaternion, np.float64)
    if not np.all(np.abs(q) <= FARTHEST):
        raise InputError(f"A quaternion has entries that are not finite, or beyond {FARTHEST:g}.")
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if np.any(norm < 1e-12):
        raise InputError("A quaternion has norm zero.")
    q = q / norm
    w, v = q[..., 0], q[..., 1:]
    k = skew(v)
    result: Float64Array = np.eye(3) + 2 * w[..., None, None] * k + 2 * (k @ k)
    return result


def rotation_angle_deg(a: FloatArray, b: FloatArray) -> Float64Array:
    """Angle in degrees between rotations (..., 3, 3); accurate near 0 and 180."""
    relative = np.swapaxes(np.asarray(a, np.float64), -1, -2) @ np.asarray(b, np.float64)
    result: Float64Array = np.degrees(np.linalg.norm(so3_log(relative), axis=-1))
    return result


def check_pose(pose: FloatArray, tolerance: float = 1e-3) -> str:
    """Say why a 4x4 matrix is no rigid transform, or return "" when it is.

    Args:
        pose: (4, 4).
        tolerance: largest accepted deviation of R^T R from the identity, element by element.
    """
    if pose.shape != (4, 4):
        return f"the pose has shape {pose.shape}, expected (4, 4)"
    if not np.all(np.isfinite(pose)):
        return "the pose contains NaN or infinity"
    if np.abs(pose).max() > FARTHEST:
        return f"the pose has an entry beyond {FARTHEST:g}"
    rotation = pose[:3, :3]
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if deviation > tolerance:
        return f"the upper-left 3x3 block is no rotation (R^T R is off by {deviation:.2g})"
    if np.linalg.det(rotation) < 0:
        return "the upper-left 3x3 block is a reflection (determinant -1)"
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > tolerance:
        return "the last row is not 0 0 0 1"
    return ""


def nearest_rotation(rotation: FloatArray) -> Float64Array:
    """The rotation closest in Frobenius norm to matrices (..., 3, 3)."""
    u, _, vt = np.linalg.svd(np.asarray(rotation, np.float64))
    sign = np.sign(np.linalg.det(u @ vt))
    u[..., :, 2] *= sign[..., None]
    return np.asarray(u @ vt)


def orthonormalized(pose: FloatArray) -> Float64Array:
    """Rigid transforms (..., 4, 4) in float64 whose rotations are exact ones.

    Every pose that leaves a pipeline is one: regressed and rendered rotations are often of single
    precision, with determinants off by 1e-6.
    """
    result = np.array(pose, np.float64)
    result[..., :3, :3] = nearest_rotation(result[..., :3, :3])
    result[..., 3, :] = (0, 0, 0, 1)
    return result


_MAX_ANGLE = math.radians(89)
"""Rays farther off the optical axis are out of the field of any lens here."""


def _distort(camera: Camera, x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Apply the model's distortion to normalised coordinates."""
    k = camera.distortion
    r2 = x * x + y * y
    if camera.is_fisheye:
        k1, k2, k3, k4 = (*k, 0.0, 0.0, 0.0)[:4]
        r = np.sqrt(r2)
        theta = np.arctan(r)
        t2 = theta * theta
        theta_d = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        scale = np.where(r > 1e-8, theta_d / np.maximum(r, 1e-8), 1.0)
        return x * scale, y * scale
    k1 = k[0]
    k2 = k[1] if len(k) > 1 else 0.0
    radial = 1 + r2 * (k1 + r2 * k2)
    if camera.model == "FULL_OPENCV":
        k3, k4, k5, k6 = k[4:8]
        radial = (radial + k3 * r2**3) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    if len(k) < 4:
        return x * radial, y * radial
    p1, p2 = k[2], k[3]
    xy = x * y
    return (
        x * radial + 2 * p1 * xy + p2 * (r2 + 2 * x * x),
        y * radial + 2 * p2 * xy + p1 * (r2 + 2 * y * y),
    )


def _tangential(camera: Camera) -> bool:
    return camera.model in ("OPENCV", "FULL_OPENCV") and any(camera.distortion[2:4])


@functools.lru_cache(maxsize=64)
def _profile(camera: Camera) -> tuple[Float64Array, Float64Array]:
    """Radii on the plane z = 1 and what the radial distortion makes of them, up to its fold.

    Beyond the fold the polynomial comes back: two rays would share a pixel, of which the lens sees
    the inner one.
    """
    radii = np.tan(np.linspace(0, _MAX_ANGLE, 4001))
    lens = camera
    if _tangential(camera):
        k = camera.distortion
        lens = replace(camera, params=(*camera.params[:4], *k[:2], 0.0, 0.0, *k[4:]))
    with np.errstate(all="ignore"):
        seen = _distort(lens, radii, np.zeros_like(radii))[0]
    grows = np.diff(seen) > 0
    count = len(radii) if grows.all() else max(int(np.argmin(grows)), 2)
    return radii[:count], seen[:count]


def _slopes(camera: Camera, x: Float64Array, y: Float64Array) -> tuple[Float64Array, ...]:
    """Distorted coordinates and their derivatives by x and by y, the latter by differences."""
    step = 1e-6
    fx, fy = _distort(camera, x, y)
    ax, ay = _distort(camera, x + step, y)
    bx, by = _distort(camera, x, y + step)
    return fx, fy, (ax - fx) / step, (ay - fy) / step, (bx - fx) / step, (by - fy) / step


def _in_field(camera: Camera, x: Float64Array, y: Float64Array) -> np.ndarray:
    """Whether rays (x, y, 1) are seen: nothing folds between the optical axis and them."""
    seen = np.asarray(np.hypot(x, y) <= _profile(camera)[0][-1])
    if _tangential(camera):
        for share in np.linspace(0.125, 1, 8):
            _, _, xx, yx, xy, yy = _slopes(camera, share * x, share * y)
            seen &= (xx * yy - xy * yx > 0) & (xx + yy > 0)
    return seen


def project(camera: Camera, points_cam: FloatArray) -> tuple[Float64Array, np.ndarray]:
    """Project camera-frame points to pixels.

    Args:
        camera: intrinsics, including distortion.
        points_cam: (..., 3) metres, OpenCV axes.

    Returns:
        pixels (..., 2), NaN behind the camera and outside of the field of its lens (beyond the fold of
        the distortion, or 89 degrees off the axis), and a mask (...) of the others. Whether they fall
        inside the image is for the caller to check.
    """
    p = np.asarray(points_cam, np.float64)
    front = p[..., 2] > 1e-9
    z = np.where(front, p[..., 2], np.nan)
    x, y = p[..., 0] / z, p[..., 1] / z
    if not camera.is_pinhole:
        with np.errstate(all="ignore"):
            front = front & _in_field(camera, x, y)
            x, y = _distort(camera, np.where(front, x, np.nan), np.where(front, y, np.nan))
    return np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], -1), front


def unproject(camera: Camera, pixels: FloatArray, iterations: int = 20) -> Float64Array:
    """Viewing directions with z = 1 of pixels: the inverse of `project` up to depth.

    Distortion is inverted by Newton steps with a numerical Jacobian from the radial profile's inverse;
    pixels beyond the field that the lens has (see `project`) give NaN.

    Args:
        camera: intrinsics.
        pixels: (..., 2).
        iterations: upper bound of Newton steps.

    Returns:
        (..., 3) float64.
    """
    px = np.asarray(pixels, np.float64)
    x = (px[..., 0] - camera.cx) / camera.fx
    y = (px[..., 1] - camera.cy) / camera.fy
    if not camera.is_pinhole:
        with np.errstate(all="ignore"):
            x, y = _undistort(camera, x, y, iterations)
    return np.stack([x, y, np.ones_like(x)], -1)


def _undistort(
    camera: Camera, target_x: Float64Array, target_y: Float64Array, iterations: int
) -> tuple[Float64Array, Float64Array]:
    """The rays that the lens sends to distorted coordinates; NaN where there is none."""
    radii, seen = _profile(camera)
    target = np.hypot(target_x, target_y)
    scale = np.where(target > 1e-8, np.interp(target, seen, radii) / np.maximum(target, 1e-8), 1.0)
    x, y = target_x * scale, target_y * scale
    for _ in range(iterations):
        fx, fy, xx, yx, xy, yy = _slopes(camera, x, y)
        ex, ey = fx - target_x, fy - target_y
        if not max(np.nanmax(np.abs(ex), initial=0), np.nanmax(np.abs(ey), initial=0)) >= 1e-12:
            break
        det = xx * yy - xy * yx
        det = np.where(np.abs(det) < 1e-12, np.nan, det)
        x = x - (yy * ex - xy * ey) / det
        y = y - (xx * ey - yx * ex) / det
    fx, fy = _distort(camera, x, y)
    good = (np.hypot(fx - target_x, fy - target_y) < 1e-9) & _in_field(camera, x, y)
    return np.where(good, x, np.nan), np.where(good, y, np.nan)


def lift(camera: Camera, pixels: FloatArray, depth: FloatArray) -> Float64Array:
    """Camera-frame points (..., 3) of pixels (..., 2) with depth (...) along the optical axis."""
    result: Float64Array = unproject(camera, pixels) * np.asarray(depth, np.float64)[..., None]
    return result


def pose_plus(world_from_cam: FloatArray, tangent: FloatArray) -> Float64Array:
    """The pose (4, 4) that lies xi = (w, v) away: R Exp(w), t + R v.

    Its rotation is one to the last digit: in a loop of products the rounding errors would grow.
    """
    pose, xi = np.asarray(world_from_cam, np.float64), np.asarray(tangent, np.float64)
    result: Float64Array = pose.copy()
    result[:3, :3] = nearest_rotation(pose[:3, :3] @ so3_exp(xi[:3]))
    result[:3, 3] += pose[:3, :3] @ xi[3:]
    return result


def pose_minus(world_from_there: FloatArray, world_from_cam: FloatArray) -> Float64Array:
    """The tangent xi (6,) at the second pose that leads to the first one."""
    there = inverse(world_from_cam) @ np.asarray(world_from_there, np.float64)
    return np.concatenate([so3_log(there[:3, :3]), there[:3, 3]])


def adjoint(motion: FloatArray) -> Float64Array:
    """(6, 6) that takes the tangent of a pose T to the one of T @ motion."""
    pose = np.asarray(motion, np.float64)
    back = pose[:3, :3].T
    result = np.zeros((6, 6))
    result[:3, :3] = result[3:, 3:] = back
    result[3:, :3] = -back @ skew(pose[:3, 3])
    return result

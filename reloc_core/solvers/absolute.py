"""Absolute pose from 2D-3D correspondences."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reloc_core import _native
from reloc_core.errors import ConfigError, DeviceError, InputError
from reloc_core.solvers.checks import floats, is_integer, make_options
from reloc_core.solvers.device import check_supported, device_index
from reloc_core.solvers.options import AbsolutePoseOptions, DsacOptions
from reloc_core.types import CAMERA_MODELS, BoolArray, Camera, Float64Array


@dataclass(frozen=True)
class PoseEstimate:
    """Outcome of one pose problem.

    Attributes:
        success: whether `world_from_cam` is a pose to be used.
        message: why not; "" on success.
        world_from_cam: (4, 4) float64, OpenCV camera axes; the identity where no pose was found.
        covariance: (6, 6) float64 in the tangent at the pose, camera axes, order rotation (rad),
            translation (scene unit): R_true = R Exp(w), t_true = t + R v. Infinite without a pose.
        inliers: (N,) bool over the input; points within three sigmas of the estimated noise.
        num_inliers: number of true entries.
        score: 0..1, larger is surer.
        iterations: minimal samples drawn.
        noise: estimated noise: pixels for the reprojection residual, scene units for rays.
        effective_points: independent observations the covariance stands for.
        design_effect: how much correlated noise inflated the variance; 1 for independent noise.
        false_alarms: decimal logarithm of how many poses with this many inliers are expected by chance
            among as many unrelated correspondences; -30 is far beyond chance, 0 is chance.
        focal_shift: by how much the logarithm of the focal length would have to change for the inliers,
            to first order; 0 where it was not looked at.
        focal_shift_std: standard deviation of `focal_shift` if errors were independent, else infinite.
        camera: the camera of the pose: the given one, or that with the estimated focal length. None
            for RGB-D.
        focal_std: standard deviation of `camera.fx` in pixels where it was estimated, else None.
        rival: probability that another pose, which explains what disagrees with this one, is right.
        camera_doubt: logarithm of by how much the variance grew, where it grew most, since the camera
            may be wrong; 0 where nothing speaks against it or another one took its place.
    """

    success: bool
    message: str
    world_from_cam: Float64Array
    covariance: Float64Array
    inliers: BoolArray
    num_inliers: int
    score: float
    iterations: int
    noise: float
    effective_points: float
    design_effect: float
    false_alarms: float
    focal_shift: float
    focal_shift_std: float
    camera: Camera | None = None
    focal_std: float | None = None
    rival: float = 0.0
    camera_doubt: float = 0.0


@functools.lru_cache(maxsize=256)
def native_camera(camera: Camera) -> _native.Camera:
    """The native twin of a camera."""
    try:
        return _native.Camera(
            camera.model, camera.width, camera.height, list(camera.params), camera.focal_sigma
        )
    except ValueError as error:
        raise InputError(f"{error}.") from None


@functools.lru_cache(maxsize=64)
def native_options(options: Any) -> Any:
    """The native twin of a solver's options, which has the name of their class.

    Raises:
        ConfigError: a value is out of range.
    """
    values = dataclasses.asdict(options)
    if values.get("search_radius", 0.0) is None:
        values["search_radius"] = 0.0
    try:
        return getattr(_native, type(options).__name__)(values)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


def check_camera(camera: object) -> _native.Camera:
    """The native twin of a camera.

    Raises:
        InputError: not a camera.
    """
    if not isinstance(camera, Camera):
        raise InputError(f"camera must be a reloc_core.types.Camera, got {type(camera).__name__}.")
    return native_camera(camera)


def _with_focal_factor(camera: Camera, factor: float) -> Camera:
    focals = 1 if CAMERA_MODELS[camera.model][0] == "f" else 2
    params = [p * factor for p in camera.params[:focals]]
    return dataclasses.replace(camera, params=(*params, *camera.params[focals:]))


def _to_estimate(values: tuple[Any, ...], camera: Camera) -> PoseEstimate:
    success, message, *common, scale, std = values
    found: tuple[Camera, float | None] = (camera, None)
    if success and std > 0:
        found = (_with_focal_factor(camera, scale), std * camera.fx)
    elif not success and scale != 1:
        message += (
            f"; a focal length of {scale * camera.fx:.0f} px in place of the camera's "
            f"{camera.fx:.0f} px would fit better. Check the calibration and the image size"
        )
    arguments: list[Any] = [success, message, *common, *found]
    return PoseEstimate(*arguments)


def check_focal(camera: object, options: AbsolutePoseOptions) -> None:
    """Raise an `InputError` for a camera whose focal length cannot be estimated as asked."""
    if options.estimate_focal and isinstance(camera, Camera) and camera.is_fisheye:
        raise InputError(
            f"estimate_focal does not take camera model {camera.model}: the rays of "
            "fisheye lenses do not scale with the focal length. Calibrate the camera first."
        )


def arrays(points2d: Any, points3d: Any, weights: Any, variances: Any) -> tuple[Any, Any, Any, Any]:
    """The arrays of one problem, checked."""
    p3 = floats("points3d", points3d, (None, 3))
    n = len(p3)
    return (
        floats("points2d", points2d, (n, 2)),
        p3,
        None if weights is None else floats("weights", weights, (n,)),
        None if variances is None else floats("variances", variances, (n,)),
    )


def estimate_absolute_pose(
    points2d: Any,
    points3d: Any,
    camera: Camera,
    *,
    weights: Any = None,
    variances: Any = None,
    options: AbsolutePoseOptions | Mapping[str, Any] | None = None,
) -> PoseEstimate:
    """Robust camera pose from pixels and scene points.

    Locally optimised RANSAC over P3P samples, then an iteratively reweighted fit at the noise found in
    the residuals; the reprojection residual is by the camera model's exact projection. With the option
    `estimate_focal` the camera's focal length is left aside and estimated too, and the covariance of
    the pose is marginalised over it. Releases the GIL. No state is kept between calls.

    Args:
        points2d: (N, 2) pixels, (0, 0) the centre of the top-left pixel; float32 or float64.
        points3d: (N, 3) scene coordinates. Rows with non-finite values carry no information.
        camera: intrinsics; all models of `reloc_core.types.CAMERA_MODELS`.
        weights: (N,) relative confidence, used in sampling, scoring and fit. Points whose weight is
            not positive are left out.
        variances: (N,) variance of each 3D point along any axis, scene units squared, or None. Only
            their ratios matter: a common factor is estimated.
        options: `AbsolutePoseOptions` or a mapping of its fields.

    Returns:
        The estimate; a problem without a trustworthy answer gives `success=False` and a `message`.

    Raises:
        InputError: an array has the wrong shape or type.
        ConfigError: an option is unknown or out of range.
    """
    checked = make_options(AbsolutePoseOptions, options)
    native, cam = native_options(checked), check_camera(camera)
    check_focal(camera, checked)
    p2, p3, w, v = arrays(points2d, points3d, weights, variances)
    values = _native.absolute_pose(p2, p3, cam, w, v, native)
    return _to_estimate(values, camera)


def per_problem(
    name: str, values: Sequence[Any] | None, n: int, of: str = "problems"
) -> Sequence[Any]:
    """One entry of `values` per problem; nothing for each where there are none."""
    if values is None:
        return [None] * n
    if len(values) != n:
        raise InputError(f"{name} has {len(values)} entries for {n} {of}.")
    return values


def estimate_absolute_pose_batch(
    points2d: Sequence[Any],
    points3d: Sequence[Any],
    cameras: Camera | Sequence[Camera],
    *,
    weights: Sequence[Any] | None = None,
    variances: Sequence[Any] | None = None,
    options: AbsolutePoseOptions | Mapping[str, Any] | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> list[PoseEstimate]:
    """Solve several problems over `threads` threads; the same values as one by one.

    On a CUDA device the search goes through the same samples and decides as on the CPU; sums are
    added in another order, so that results agree to rounding. It pays for dozens of problems or more.

    Args:
        points2d: B arrays (N_i, 2).
        points3d: B arrays (N_i, 3).
        cameras: one camera for all, or B.
        weights: B arrays (N_i,) or None.
        variances: B arrays (N_i,) or None.
        options: as for `estimate_absolute_pose`, for all problems.
        threads: number of threads; does not change the result.
        device: "cpu", "cuda" or "cuda:1" and so on. CUDA needs a build with `RELOC_CUDA=ON`; there
            `threads` prepare the problems, and `options.threads` and `options.kernels` do nothing
            to the solution.

    Raises:
        InputError: the lists differ in length, a camera has distortion (on CUDA), or as for
            `estimate_absolute_pose`.
        ConfigError: an option is unknown or out of range, or there is no such device.
        DeviceError: the device failed, for one because its memory is full.
    """
    index = device_index(device)
    if not is_integer(threads) or threads < 1:
        raise ConfigError(f"threads must be a positive integer, got {threads!r}.")
    checked = make_options(AbsolutePoseOptions, options)
    native = native_options(checked)
    n = len(points3d)
    points2d = per_problem("points2d", points2d, n)
    cams = [cameras] * n if isinstance(cameras, Camera) else per_problem("cameras", cameras, n)
    if index >= 0:
        check_supported(checked, cams)
    problems = []
    for p2, p3, cam, w, v in zip(
        points2d,
        points3d,
        cams,
        per_problem("weights", weights, n),
        per_problem("variances", variances, n),
        strict=True,
    ):
        check_focal(cam, checked)
        a2, a3, aw, av = arrays(p2, p3, w, v)
        problems.append((a2, a3, check_camera(cam), aw, av))
    try:
        results = _native.absolute_pose_batch(problems, native, threads, index)
    except RuntimeError as error:
        raise DeviceError(f"{error}.") from None
    return [_to_estimate(r, cam) for r, cam in zip(results, cams, strict=True)]


def estimate_pose_dsac(
    points2d: Any,
    points3d: Any,
    camera: Camera,
    *,
    options: DsacOptions | Mapping[str, Any] | None = None,
) -> PoseEstimate:
    """Camera pose by the soft-inlier scheme of DSAC* (Brachmann and Rother, TPAMI 2021).

    For comparison with published results; `estimate_absolute_pose` is more accurate and faster.

    Args:
        points2d: (N, 2) pixels.
        points3d: (N, 3) scene coordinates.
        camera: intrinsics.
        options: `DsacOptions` or a mapping of its fields.

    Raises:
        InputError: an array has the wrong shape or type.
        ConfigError: an option is unknown or out of range.
    """
    native = native_options(make_options(DsacOptions, options))
    cam = check_camera(camera)
    p2, p3, _, _ = arrays(points2d, points3d, None, None)
    return _to_estimate(_native.dsac_pose(p2, p3, cam, native), camera)

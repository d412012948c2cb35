"""Typed options of the solver functions. Imports no native code."""

from __future__ import annotations

from dataclasses import dataclass

from reloc_core.errors import ConfigError
from reloc_core.solvers.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_not_negative,
    check_positive,
    check_seed,
    check_share,
    is_number,
    refuse,
    require,
)

RESIDUALS = ("auto", "reprojection", "ray")
KERNELS = ("auto", "avx512", "avx2", "baseline")
_MAX_SAMPLES = 10**8
_MAX_THREADS = 1024


@dataclass(frozen=True)
class AbsolutePoseOptions:
    """Options of `estimate_absolute_pose`.

    Attributes:
        residual: what the final fit minimises. "reprojection": pixels, right when the noise sits in the
            image (keypoint matches). "ray": distance of the scene point from the viewing ray, right
            when the noise sits in the 3D points (scene coordinates). "auto": ray when variances
            are given or the pixels lie on a lattice (they were laid out, so that all noise is in the
            points); else reprojection, unless the residuals speak clearly for the ray.
        threshold: pixels; narrow radius of the search and first robust scale of the final fit.
            The last scale is estimated from the residuals.
        search_radius: pixels; wide radius of the search. None: 25, or 12 for reprojection.
        confidence: probability of having drawn one outlier-free sample at which the search stops.
        min_iterations: minimal samples drawn at least.
        max_iterations: minimal samples drawn at most; bounds the time per call.
        min_inliers: a pose with fewer supporting points is not returned as a success.
        min_score: a pose with a lower score is not returned as a success; below 0.01 next to none is
            right, and no success is within what chance gives, whatever the score.
        local_noise: estimate the noise level per image region in place of once; for the ray residual
            and 1,000 points or more.
        pixel_noise: pixels; image part of the noise where variances of the 3D points are given.
        estimate_focal: the focal length is unknown and estimated with the pose, by the reprojection
            residual. Of the camera, the principal point, the distortion coefficients and the ratio
            of the focal lengths are kept; not for fisheye models.
        verify_focal: compare the camera's focal length with what the inliers say, with its uncertainty
            (`Camera.focal_sigma`), and correct or refuse where they contradict it (docs/solvers.md).
            Without it the focal length is taken as exact.
        focal_floor: standard deviation of any camera's focal length, over the focal length, at least;
            the covariance of the pose takes it in. 0: a calibration is exact.
        redundancy: how many correspondences are worth one independent one, because they share their
            errors; the covariance is multiplied by it.
        seed: random seed; the same input and seed give the same result.
        threads: threads for one problem (the batch call has its own). Does not change the result.
        kernels: instruction set; "auto" takes the widest one the processor has.
    """

    residual: str = "auto"
    threshold: float = 10.0
    search_radius: float | None = None
    confidence: float = 0.99
    min_iterations: int = 16
    max_iterations: int = 100_000
    min_inliers: int = 6
    min_score: float = 0.01
    local_noise: bool = True
    pixel_noise: float = 1.0
    estimate_focal: bool = False
    verify_focal: bool = True
    focal_floor: float = 0.0
    redundancy: float = 1.0
    seed: int = 0
    threads: int = 1
    kernels: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self, "residual", RESIDUALS)
        check_positive(self, "threshold", "number of pixels", 1e5)
        _check_search(self)
        check_not_negative(self, "pixel_noise", "number of pixels")
        check_flag(self, "estimate_focal")
        check_flag(self, "verify_focal")
        check_share(self, "focal_floor")
        require(
            is_number(self.redundancy) and self.redundancy >= 1,
            "redundancy", self.redundancy, "a number of at least 1",
        )  # fmt: skip
        check_integer(self, "threads", 1, _MAX_THREADS)
        if self.estimate_focal and self.residual == "ray":
            raise ConfigError(
                "residual must be 'reprojection' or 'auto' where estimate_focal is set: rays of an "
                "unknown focal length are not known."
            )


@dataclass(frozen=True)
class DsacOptions:
    """Options of `estimate_pose_dsac`; the defaults are the published ones.

    Attributes:
        hypotheses: number of hypotheses.
        threshold: pixels; inlier threshold of sampling, soft count and refinement.
        alpha: scale of the soft inlier score.
        max_error: pixels; larger reprojection errors count as this.
        max_tries: minimal sets drawn per hypothesis at most.
        refine_steps: rounds of refinement at most.
        seed: random seed.
        threads: threads over hypotheses; does not change the result.
        kernels: instruction set; "auto" takes the widest one the processor has.
    """

    hypotheses: int = 64
    threshold: float = 10.0
    alpha: float = 100.0
    max_error: float = 100.0
    max_tries: int = 1000
    refine_steps: int = 100
    seed: int = 0
    threads: int = 1
    kernels: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self, "kernels", KERNELS)
        check_integer(self, "hypotheses", 1, 10**6)
        check_integer(self, "max_tries", 1, 10**6)
        check_integer(self, "refine_steps", 0, 10_000)
        check_integer(self, "threads", 1, _MAX_THREADS)
        for name in ("threshold", "alpha", "max_error"):
            check_positive(self, name, most=1e5)
        require(
            self.max_error >= self.threshold, "max_error", self.max_error, "at least the threshold"
        )
        check_seed(self)


@dataclass(frozen=True)
class RgbdPoseOptions:
    """Options of `estimate_rgbd_pose`; lengths in scene units (metres).

    Attributes:
        threshold: narrow radius of the search and first robust scale of the final fit.
        search_radius: wide radius of the search; None: 2.5 times the threshold.
        confidence: probability of having drawn one outlier-free sample at which the search stops.
        min_iterations: minimal samples drawn at least.
        max_iterations: minimal samples drawn at most; bounds the time per call.
        min_inliers: a pose with fewer supporting points is not returned as a success.
        min_score: a pose with a lower score is not returned as a success; below 0.01 next to none is
            right, and no success is within what chance gives, whatever the score.
        local_noise: estimate the noise level per image region in place of once.
        seed: random seed.
        kernels: instruction set; "auto" takes the widest one the processor has.
    """

    threshold: float = 0.05
    search_radius: float | None = None
    confidence: float = 0.99
    min_iterations: int = 16
    max_iterations: int = 100_000
    min_inliers: int = 6
    min_score: float = 0.01
    local_noise: bool = True
    seed: int = 0
    kernels: str = "auto"

    def __post_init__(self) -> None:
        check_positive(self, "threshold", "length", 1e9)
        _check_search(self)


@dataclass(frozen=True)
class RelativePoseOptions:
    """Options of `estimate_relative_pose`.

    Attributes:
        threshold: pixels; Sampson distance up to which a match supports a pose.
        confidence: probability of having drawn one outlier-free sample at which the search stops.
        min_iterations: minimal samples drawn at least.
        max_iterations: minimal samples drawn at most; bounds the time per call.
        min_inliers: a pose with fewer supporting matches is not returned as a success.
        seed: random seed.
    """

    threshold: float = 2.0
    confidence: float = 0.99
    min_iterations: int = 32
    max_iterations: int = 10_000
    min_inliers: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "threshold", "number of pixels", 1e5)
        _check_sampling(self)


def _check_sampling(
    options: AbsolutePoseOptions | RgbdPoseOptions | RelativePoseOptions,
) -> None:
    """Checks of the fields that all searches share."""
    check_share(options, "confidence", ends=False)
    check_integer(options, "min_iterations", 1, _MAX_SAMPLES)
    check_integer(options, "max_iterations", options.min_iterations, _MAX_SAMPLES)
    check_integer(options, "min_inliers", 4)
    check_seed(options)


def _check_search(options: AbsolutePoseOptions | RgbdPoseOptions) -> None:
    """Checks of the fields that the absolute searches share."""
    check_choice(options, "kernels", KERNELS)
    _check_sampling(options)
    radius, least = options.search_radius, options.threshold
    if radius is not None and not (is_number(radius) and least <= radius <= 1e9):
        refuse("search_radius", radius, f"None or at least the threshold ({least})")
    check_share(options, "min_score")
    check_flag(options, "local_noise")

"""Typed options of the solver functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from reloc_core.errors import ConfigError, did_you_mean

RESIDUALS = ("auto", "reprojection", "ray")
KERNELS = ("auto", "avx512", "avx2", "baseline")

OptionsT = TypeVar("OptionsT")


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise a `ConfigError` that names the option and the rule it breaks."""
    if not condition:
        raise ConfigError(f"{name} must be {rule}, got {value!r}.")


def is_integer(value: object) -> bool:
    """Whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether the value is a finite int or float and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise a `ConfigError` unless the value is one of the known names."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r}.{did_you_mean(str(value), known)}")


def check_seed(name: str, value: object) -> None:
    """Raise a `ConfigError` unless the value is a 64-bit unsigned integer."""
    ok = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64
    require(ok, name, value, "an integer from 0 to 2^64 - 1")


@contextmanager
def as_solver_options(**renamed: str) -> Iterator[None]:
    """Report a bad option under its name in a configuration, `solver.NAME`.

    Args:
        renamed: options that have another name there.
    """
    try:
        yield
    except ConfigError as error:
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"solver.{renamed.get(name, name)} {rest}") from None


def make_options(cls: type[OptionsT], options: OptionsT | Mapping[str, Any] | None) -> OptionsT:
    """Options of type `cls` from an instance, a mapping or None (the defaults).

    Raises:
        ConfigError: a name is unknown or a value makes no sense.
    """
    if options is None:
        return cls()
    if isinstance(options, cls):
        return options
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"options must be {cls.__name__} or a mapping, got {type(options).__name__}."
        )
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{cls.__name__} has no option '{name}'.{did_you_mean(str(name), known)}"
            )
    return cls(**options)


@dataclass(frozen=True)
class AbsolutePoseOptions:
    """Options of `estimate_absolute_pose`.

    Attributes:
        residual: what the final fit minimises. "reprojection": pixels, right when the noise sits in the
            image (keypoint matches). "ray": distance of the scene point from the viewing ray, right
            when the noise sits in the 3D points (scene coordinates). "auto": ray when variances
            are given, else whichever explains the residuals better.
        threshold: pixels; narrow radius of the search and first robust scale of the final fit.
            The last scale is estimated from the residuals.
        search_radius: pixels; wide radius of the search. None: 25, or 12 for reprojection.
        confidence: probability of having drawn one outlier-free sample at which the search stops.
        min_iterations: minimal samples drawn at least.
        max_iterations: minimal samples drawn at most; bounds the time per call.
        min_inliers: a pose with fewer supporting points is not returned as a success.
        min_score: a pose with a lower score is not returned as a success. At 0.7 about 99 % of the
            successes are right; below 0.01 next to none.
        local_noise: estimate the noise level per image region in place of once; for the ray residual
            and 1,000 points or more.
        pixel_noise: pixels; image part of the noise where variances of the 3D points are given.
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
    seed: int = 0
    threads: int = 1
    kernels: str = "auto"

    def __post_init__(self) -> None:
        choice("residual", self.residual, RESIDUALS)
        choice("kernels", self.kernels, KERNELS)
        require(
            is_number(self.threshold) and 0 < self.threshold <= 1e5,
            "threshold", self.threshold, "a positive number of pixels",
        )  # fmt: skip
        _check_search(self)
        require(
            is_number(self.pixel_noise) and self.pixel_noise >= 0,
            "pixel_noise", self.pixel_noise, "zero or a positive number of pixels",
        )  # fmt: skip
        require(
            is_integer(self.threads) and 1 <= self.threads <= 1024,
            "threads", self.threads, "an integer from 1 to 1024",
        )  # fmt: skip


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
        choice("kernels", self.kernels, KERNELS)
        for name, top in (("hypotheses", 10**6), ("max_tries", 10**6), ("threads", 1024)):
            value = getattr(self, name)
            require(
                is_integer(value) and 1 <= value <= top, name, value, f"an integer from 1 to {top}"
            )
        require(
            is_integer(self.refine_steps) and 0 <= self.refine_steps <= 10_000,
            "refine_steps", self.refine_steps, "an integer from 0 to 10000",
        )  # fmt: skip
        for name in ("threshold", "alpha", "max_error"):
            value = getattr(self, name)
            require(is_number(value) and 0 < value <= 1e5, name, value, "a positive number")
        require(
            self.max_error >= self.threshold, "max_error", self.max_error, "at least the threshold"
        )
        check_seed("seed", self.seed)


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
        min_score: a pose with a lower score is not returned as a success. At 0.7 about 99 % of the
            successes are right; below 0.01 next to none.
        local_noise: estimate the noise level per image region in place of once.
        seed: random seed.
        kernels: instruction set; "auto" takes the widest one the processor has.
    """

    threshold: float = 0.1
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
        choice("kernels", self.kernels, KERNELS)
        require(
            is_number(self.threshold) and 0 < self.threshold <= 1e9,
            "threshold", self.threshold, "a positive length",
        )  # fmt: skip
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
        require(
            is_number(self.threshold) and 0 < self.threshold <= 1e5,
            "threshold", self.threshold, "a positive number of pixels",
        )  # fmt: skip
        _check_sampling(self)


def _check_sampling(
    options: AbsolutePoseOptions | RgbdPoseOptions | RelativePoseOptions,
) -> None:
    """Checks of the fields that all searches share."""
    o = options
    require(
        is_number(o.confidence) and 0 < o.confidence < 1,
        "confidence", o.confidence, "between 0 and 1",
    )  # fmt: skip
    require(
        is_integer(o.min_iterations) and 1 <= o.min_iterations <= 10**8,
        "min_iterations", o.min_iterations, "a positive integer",
    )  # fmt: skip
    require(
        is_integer(o.max_iterations) and o.min_iterations <= o.max_iterations <= 10**8,
        "max_iterations", o.max_iterations, "an integer from min_iterations to 1e8",
    )  # fmt: skip
    require(
        is_integer(o.min_inliers) and o.min_inliers >= 4,
        "min_inliers", o.min_inliers, "an integer of at least 4",
    )  # fmt: skip
    check_seed("seed", o.seed)


def _check_search(options: AbsolutePoseOptions | RgbdPoseOptions) -> None:
    """Checks of the fields that the absolute searches share."""
    o = options
    _check_sampling(o)
    require(
        o.search_radius is None
        or (is_number(o.search_radius) and o.threshold <= o.search_radius <= 1e9),
        "search_radius", o.search_radius, f"None or at least the threshold ({o.threshold})",
    )  # fmt: skip
    require(
        is_number(o.min_score) and 0 <= o.min_score <= 1,
        "min_score", o.min_score, "between 0 and 1",
    )  # fmt: skip
    require(isinstance(o.local_noise, bool), "local_noise", o.local_noise, "true or false")

"""The values that flow through a pipeline: cameras, frames, queries, evidence and localizations.

Conventions, the same everywhere (see docs/conventions.md):

* `world_from_cam` is a 4x4 float64 rigid transform, OpenCV camera axes (x right, y down, z forward),
  in metres or the scene's own unit. Names read `a_from_b`: p_a = a_from_b @ p_b.
* Pixel (0, 0) is the centre of the top-left pixel; x runs right, y runs down.
* Images are RGB uint8, (height, width, 3). Depth is float32 metres along z, 0 where unknown.
* Covariances are 6x6 in the tangent (rotation in rad, translation in m; camera axes) at the estimate:
  R_true = R_est Exp(w), t_true = t_est + R_est v for xi = (w, v) ~ N(0, covariance).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from reloc_core.errors import InputError, did_you_mean

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Float64Array: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
ImageArray: TypeAlias = npt.NDArray[np.uint8]
DepthArray: TypeAlias = npt.NDArray[np.float32]

_WIDEST = 1e3  # focal lengths in an image size that no lens has
_LONGEST = 1e4  # image sizes in a focal length
CAMERA_MODELS: Mapping[str, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
    "SIMPLE_RADIAL_FISHEYE": ("f", "cx", "cy", "k1"),
    "RADIAL_FISHEYE": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV_FISHEYE": ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"),
    "FULL_OPENCV": (
        "fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6",
    ),
}  # fmt: skip
"""COLMAP's camera models and their parameters, in COLMAP's order. cx and cy follow our pixel
convention (COLMAP's minus 0.5)."""


@dataclass(frozen=True)
class Camera:
    """Intrinsics of one image.

    Attributes:
        model: a key of `CAMERA_MODELS`.
        width: image width in pixels.
        height: image height in pixels.
        params: parameters in the order of `CAMERA_MODELS[model]`, pixels where they are lengths.
        focal_sigma: standard deviation of the focal length over the focal length. About 0.003 for a
            calibrated camera, 0.05 for one that comes from EXIF, 0.3 for a guess. 0 says nothing: it is
            calibrated for the solvers, and for a map if its own images were taken with it.

    Raises:
        InputError: unknown model, wrong number of parameters, non-finite or non-positive values.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]
    focal_sigma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.focal_sigma <= 1:
            raise InputError(f"focal_sigma must be between 0 and 1, got {self.focal_sigma}.")
        if self.model not in CAMERA_MODELS:
            raise InputError(
                f"Unknown camera model '{self.model}'.{did_you_mean(self.model, CAMERA_MODELS)}"
            )
        names = CAMERA_MODELS[self.model]
        object.__setattr__(self, "params", tuple(float(p) for p in self.params))
        if len(self.params) != len(names):
            raise InputError(
                f"Camera model {self.model} takes {len(names)} parameters "
                f"({', '.join(names)}), got {len(self.params)}."
            )
        if self.width <= 0 or self.height <= 0:
            raise InputError(f"Image size must be positive, got {self.width}x{self.height}.")
        if not all(math.isfinite(p) for p in self.params):
            raise InputError(f"Camera parameters must be finite, got {self.params}.")
        if self.fx <= 0 or self.fy <= 0:
            raise InputError(
                f"Focal length must be positive, got {self.fx}, {self.fy} px. Check the calibration."
            )
        size = max(self.width, self.height)
        if min(self.fx, self.fy) < size / _WIDEST or max(self.fx, self.fy) > size * _LONGEST:
            raise InputError(
                f"No camera has a focal length of {self.fx:.6g}, {self.fy:.6g} px with an image of "
                f"{self.width}x{self.height}. Check its unit: it is in pixels."
            )

    @classmethod
    def pinhole(
        cls, focal: float, width: int, height: int, center: tuple[float, float] | None = None
    ) -> Camera:
        """A SIMPLE_PINHOLE camera; the principal point defaults to the image centre."""
        cx, cy = center if center is not None else ((width - 1) / 2, (height - 1) / 2)
        return cls("SIMPLE_PINHOLE", width, height, (focal, cx, cy))

    @property
    def _single_focal(self) -> bool:
        return CAMERA_MODELS[self.model][0] == "f"

    @property
    def fx(self) -> float:
        """Focal length along x in pixels."""
        return self.params[0]

    @property
    def fy(self) -> float:
        """Focal length along y in pixels."""
        return self.params[0] if self._single_focal else self.params[1]

    @property
    def cx(self) -> float:
        """Principal point x in pixels; 0 is the centre of the left column."""
        return self.params[1] if self._single_focal else self.params[2]

    @property
    def cy(self) -> float:
        """Principal point y in pixels; 0 is the centre of the top row."""
        return self.params[2] if self._single_focal else self.params[3]

    @property
    def distortion(self) -> tuple[float, ...]:
        """Distortion coefficients in the order of the model; empty for pinholes."""
        return self.params[3:] if self._single_focal else self.params[4:]

    @property
    def is_pinhole(self) -> bool:
        """Whether points project as through a pinhole: no fisheye, and no distortion that is not zero."""
        return not self.is_fisheye and not any(self.distortion)

    @property
    def is_fisheye(self) -> bool:
        """Whether the model maps the angle off the axis, not its tangent, to the image."""
        return self.model.endswith("_FISHEYE")

    @property
    def matrix(self) -> Float64Array:
        """3x3 calibration matrix K (without distortion)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def scaled(self, width: int, height: int) -> Camera:
        """The camera of the image resized to `width` x `height` (per-axis factors).

        A model with one focal length stays so when both factors agree to 0.5 %, which is what
        rounding to whole pixels costs; otherwise the result has separate focal lengths.
        """
        return replace(self._scaled(width, height), focal_sigma=self.focal_sigma)

    def _scaled(self, width: int, height: int) -> Camera:
        sx, sy = width / self.width, height / self.height
        # Pixel centres: the corner of the image stays at -0.5.
        cx, cy = (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5
        if not self._single_focal:
            return Camera(
                self.model, width, height, (self.fx * sx, self.fy * sy, cx, cy, *self.distortion)
            )
        if abs(sx / sy - 1) <= 0.005:
            focal = self.fx * math.sqrt(sx * sy)
            return Camera(self.model, width, height, (focal, cx, cy, *self.distortion))
        k = (*self.distortion, 0.0, 0.0)[:2]
        if any(k) or self.is_fisheye:
            model = "OPENCV_FISHEYE" if self.is_fisheye else "OPENCV"
            focals = (self.fx * sx, self.fy * sy)
            return Camera(model, width, height, (*focals, cx, cy, *k, 0.0, 0.0))
        return Camera("PINHOLE", width, height, (self.fx * sx, self.fy * sy, cx, cy))


@dataclass(frozen=True)
class Frame:
    """What a dataset knows about one image without reading its pixels.

    Attributes:
        name: unique within the dataset's split; appears in result files. What is no text in the name of a
            file, as from archives in another encoding, is escaped by backslashes.
        camera: intrinsics of the stored image.
        world_from_cam: ground-truth pose (4, 4) float64, or None: the normal case for queries.
        timestamp: seconds, or None.
        sequence: identifier of the video the frame belongs to, or None for a single photograph.
        orientation: how the stored pixels must be turned to be upright, as the tag of EXIF tells it (1 to
            8; 1 for upright). Camera and pose belong to the stored pixels.
        room: which of several scenes in one world the frame shows (`dataset=rooms`), or None.
    """

    name: str
    camera: Camera
    world_from_cam: Float64Array | None = None
    timestamp: float | None = None
    sequence: str | None = None
    orientation: int = 1
    room: str | None = None

    def __post_init__(self) -> None:
        if not self.name.isascii():
            text = self.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            object.__setattr__(self, "name", text)


@dataclass(frozen=True)
class Query(Frame):
    """A frame with its pixels.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        depth: (height, width) float32 metres along the optical axis, 0 where unknown, or None.
        prior: what is known of the pose beforehand, from odometry or a tracker, or None.
    """

    image: ImageArray = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8), repr=False)
    depth: DepthArray | None = field(default=None, repr=False)
    prior: PosePrior | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = (self.camera.height, self.camera.width, 3)
        if self.image.shape != expected or self.image.dtype != np.uint8:
            raise InputError(
                f"{self.name}: the image must be uint8 RGB of shape {expected} (as the camera says), "
                f"got {self.image.dtype} {self.image.shape}."
            )
        if self.depth is not None and self.depth.shape != expected[:2]:
            raise InputError(
                f"{self.name}: depth is {self.depth.shape}, the image is {expected[:2]}. "
                "Depth must be registered to the colour image."
            )

    def without_ground_truth(self) -> Query:
        """The same query as an estimator may see it."""
        return self if self.world_from_cam is None else replace(self, world_from_cam=None)


@dataclass(frozen=True)
class Evidence:
    """Base of what an estimator hands to a solver.

    Attributes:
        signals: what the estimator knows about the worth of its evidence beside the evidence itself, as
            named numbers of which larger is better, such as `retrieval` (share of the best reference
            images that agree) or `margin` (mean lead of the best match over the second). Any names; the
            calibration of a map learns what each of them says about the pose.
        reason: why there is nothing, in words, where the evidence is empty; solvers pass it on.
        camera: the intrinsics that the evidence was made with, where the estimator did not believe the
            query's: solver and refiners take them, and the answer shows them. None where they hold.
    """

    kind_name: ClassVar[str] = "Evidence"
    signals: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    reason: str = field(default="", kw_only=True)
    camera: Camera | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Correspondences(Evidence):
    """2D-3D matches.

    Attributes:
        points2d: (N, 2) pixels.
        points3d: (N, 3) world, metres.
        weights: (N,) non-negative confidence per match, or None for equal.
        variances: (N,) variance of each 3D point along any axis in m^2, or None if unknown.
        covariances: (N, 3, 3) of each 3D point in the world, m^2, where more than `variances` is known of
            it, or None; the pose is fitted to them in the end.
        pixel_noise: standard deviation of `points2d` in pixels that goes with `covariances`; (N,) where
            that of each is known.
        points_cam: (N, 3) the same points in camera axes from measured depth, metres; NaN rows
            where there is none. None for RGB.
        kind: "dense" when the noise sits in the 3D points (scene coordinates), "sparse" when it
            sits in the pixels (keypoint matches). Solvers choose their residual by it.
        grid_shape: (rows, columns) when the N points are a row-major grid over the image.
        redundancy: how many correspondences are worth one independent one, because their errors are
            shared; solvers multiply their covariance by it. At least 1; of this query, as a place may
            be known better from one side than from another.
    """

    kind_name: ClassVar[str] = "Correspondences"
    points2d: FloatArray
    points3d: FloatArray
    weights: FloatArray | None = None
    variances: FloatArray | None = None
    points_cam: FloatArray | None = None
    kind: Literal["dense", "sparse"] = "dense"
    grid_shape: tuple[int, int] | None = None
    redundancy: float = 1.0
    covariances: Float64Array | None = None
    pixel_noise: float | FloatArray = 0.5

    def __post_init__(self) -> None:
        n, noise = len(self.points2d), self.pixel_noise
        if not self.redundancy >= 1:
            raise InputError(f"redundancy must be at least 1, got {self.redundancy}.")
        for label, array, shape in (
            ("points2d", self.points2d, (n, 2)),
            ("points3d", self.points3d, (n, 3)),
            ("weights", self.weights, (n,)),
            ("variances", self.variances, (n,)),
            ("covariances", self.covariances, (n, 3, 3)),
            ("points_cam", self.points_cam, (n, 3)),
            ("pixel_noise", noise if isinstance(noise, np.ndarray) else None, (n,)),
        ):
            if array is not None and array.shape != shape:
                raise InputError(f"{label} must have shape {shape}, got {array.shape}.")
        if self.grid_shape is not None and self.grid_shape[0] * self.grid_shape[1] != n:
            raise InputError(f"grid_shape {self.grid_shape} does not hold {n} points.")


@dataclass(frozen=True)
class RelativePoses(Evidence):
    """Poses of the query relative to reference images.

    Attributes:
        world_from_ref: (N, 4, 4) poses of the references.
        ref_from_cam: (N, 4, 4) estimated pose of the query in each reference frame.
        confidences: (N,) in 0..1, or None.
        scale_known: whether the translations of `ref_from_cam` are metric; otherwise directions.
        names: names of the references.
        covariances: (N, 6, 6) of `ref_from_cam` in the tangent of the module docstring (which is that
            of the query's pose in the world too), or None if unknown.
        correlation: of the errors of different references, 0 (independent) to 1 (shared, or unknown).
    """

    kind_name: ClassVar[str] = "RelativePoses"
    world_from_ref: Float64Array
    ref_from_cam: Float64Array
    confidences: FloatArray | None = None
    scale_known: bool = True
    names: tuple[str, ...] = ()
    covariances: Float64Array | None = None
    correlation: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.world_from_ref)
        if not 0 <= self.correlation <= 1:
            raise InputError(f"correlation must be between 0 and 1, got {self.correlation}.")
        for label, array in (
            ("world_from_ref", self.world_from_ref),
            ("ref_from_cam", self.ref_from_cam),
        ):
            if array.shape != (n, 4, 4):
                raise InputError(f"{label} must have shape {(n, 4, 4)}, got {array.shape}.")
        if self.confidences is not None and self.confidences.shape != (n,):
            raise InputError(f"confidences must have shape {(n,)}, got {self.confidences.shape}.")
        if self.covariances is not None and self.covariances.shape != (n, 6, 6):
            raise InputError(
                f"covariances must have shape {(n, 6, 6)}, got {self.covariances.shape}."
            )


@dataclass(frozen=True)
class PosePrior(Evidence):
    """An absolute pose with its uncertainty.

    Attributes:
        world_from_cam: (4, 4).
        covariance: (6, 6) in the tangent of the module docstring, or None if unknown.
    """

    kind_name: ClassVar[str] = "PosePrior"
    world_from_cam: Float64Array
    covariance: Float64Array | None = None


EVIDENCE_KINDS: Mapping[str, type[Evidence]] = {
    kind.kind_name: kind for kind in (Correspondences, RelativePoses, PosePrior)
}


class Status(str, enum.Enum):
    """Outcome of localizing one query."""

    LOCALIZED = "localized"
    NOT_LOCALIZED = "not_localized"


@dataclass(frozen=True)
class ScenePoints:
    """Points of a map, for viewers.

    Attributes:
        points: (N, 3) in the map's world frame.
        colors: (N, 3) uint8 RGB, or None where the map knows none.
    """

    points: FloatArray
    colors: ImageArray | None = None


@dataclass(frozen=True)
class Localization:
    """Where the camera was, or an honest "not localized".

    Attributes:
        status: whether a pose was found.
        reason: why not, in words; "" when localized.
        world_from_cam: (4, 4) float64, or None when not localized.
        covariance: (6, 6) in the tangent of the module docstring, or None if unknown.
        num_inliers: number of correspondences that support the pose.
        inliers: (N,) mask over the evidence's correspondences, or None.
        score: 0..1, larger is surer; comparable between queries of one map. The probability to be
            right where the map is calibrated, and 0 where the solver found no pose to be believed.
        seconds: wall time by stage name.
        stages: pose after each stage that produced one, in order: (stage name, (4, 4)).
        camera: the intrinsics where they were estimated with the pose; None where the query's hold.
        support: what speaks for the pose, as named numbers of which larger is better; see
            `reloc_core.calibration.support`.
        name: of the query.
        timestamp: of the query in seconds, or None.
        note: what the query brought and no stage of the pipeline looks at, in words; "" for nothing.
    """

    status: Status
    reason: str = ""
    world_from_cam: Float64Array | None = None
    covariance: Float64Array | None = None
    num_inliers: int = 0
    inliers: BoolArray | None = None
    score: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[tuple[str, Float64Array], ...] = ()
    camera: Camera | None = None
    support: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    timestamp: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.status is Status.LOCALIZED:
            if self.world_from_cam is None or not np.all(np.isfinite(self.world_from_cam)):
                raise InputError("A localized query needs a finite world_from_cam.")
        elif not self.reason:
            raise InputError("A query that is not localized needs a reason.")

    @property
    def localized(self) -> bool:
        """Whether `world_from_cam` is a pose."""
        return self.status is Status.LOCALIZED

    def camera_of(self, frame: Frame) -> Camera:
        """The intrinsics that the pose holds for: the estimated ones, or else those of the frame."""
        return self.camera or frame.camera

    @classmethod
    def failure(cls, reason: str, **details: Any) -> Localization:
        """A "not localized" result with its reason."""
        return cls(Status.NOT_LOCALIZED, reason=reason, **details)

"""What clients send and get, typed: the schemas of the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import models_json_schema

from reloc_core.geometry import check_pose
from reloc_core.serving.service import CameraOption, Frame
from reloc_core.types import Float64Array, PosePrior


class EstimatedCamera(BaseModel):
    """Intrinsics that were estimated with the pose."""

    model: str = Field(description="COLMAP's camera model")
    width: int
    height: int
    params: list[float] = Field(
        description="in COLMAP's order; pixel (0, 0) is the top-left centre"
    )
    focal_sigma: float


class Answer(BaseModel):
    """A pose, or why there is none."""

    map: str
    unit: str = Field(description="of lengths: metre, or scene unit")
    name: str = Field(description="as the request gave it")
    timestamp: float | None = Field(description="seconds, as the request gave them")
    status: Literal["localized", "not_localized"]
    reason: str = Field(description="why there is no pose; empty when there is one")
    note: str = Field(description="what the request brought and the map's method does not use")
    world_from_cam: list[list[float]] | None = Field(
        description="4x4; x right, y down, z forward in the camera"
    )
    covariance: list[list[float]] | None = Field(
        description="6x6; rotation in radians, then translation, in the axes of the camera"
    )
    score: float = Field(description="0 to 1: how likely the pose is right")
    inliers: int
    camera: EstimatedCamera | None = Field(description="where it was estimated with the pose")
    seconds: dict[str, float] = Field(description="waited, total, and by stage")


class MapEntry(BaseModel):
    """A map that is served."""

    component: str = Field(description="the estimator that made it")
    unit: str
    bytes: int


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "closing"]
    version: str
    maps: list[str]


class Refusal(BaseModel):
    """Why a request is refused."""

    error: str


Row4 = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
Row6 = Annotated[list[FiniteFloat], Field(min_length=6, max_length=6)]


class Prior(BaseModel):
    """What is known of a pose beforehand; an answer's pose and covariance can be one."""

    model_config = ConfigDict(extra="forbid")

    world_from_cam: Annotated[list[Row4], Field(min_length=4, max_length=4)] = Field(
        description="4x4; x right, y down, z forward in the camera"
    )
    covariance: Annotated[list[Row6], Field(min_length=6, max_length=6)] | None = Field(
        default=None,
        description="6x6; rotation in radians, then translation, in the axes of the camera; 5 degrees "
        "and half a unit of the map where it is missing",
    )

    @model_validator(mode="after")
    def _make_sense(self) -> Prior:
        if problem := check_pose(np.array(self.world_from_cam)):
            raise ValueError(problem)
        if self.covariance is not None:
            given = np.array(self.covariance)
            if np.abs(given - given.T).max() > 1e-6 * np.abs(given).max():
                raise ValueError("the covariance is not symmetric")
            if not np.linalg.eigvalsh(given).min() > 0:
                raise ValueError("the covariance is not positive definite")
        return self

    def evidence(self) -> PosePrior:
        """For a query."""
        known = self.covariance
        covariance = prior_covariance(5, 0.5) if known is None else np.array(known)
        return PosePrior(np.array(self.world_from_cam), covariance)


def prior_covariance(degrees: float, length: float) -> Float64Array:
    """(6, 6) of standard deviations that are the same along all axes."""
    return np.asarray(np.diag([np.radians(degrees)] * 3 + [length] * 3) ** 2)


class ImageFacts(BaseModel):
    """What is said of an image beside its pixels."""

    model_config = ConfigDict(extra="forbid")

    depth: Base64Bytes | None = Field(
        default=None,
        description="a PNG of 16 bits in millimetres, registered to the image, in base64",
    )
    prior: Prior | None = None
    name: str = Field(default="", max_length=200, description="comes back in the answer")
    timestamp: float | None = Field(default=None, allow_inf_nan=False, description="seconds")
    focal: float | None = Field(default=None, gt=0, lt=1e6, description="focal length in pixels")
    camera: Literal["map"] | None = Field(
        default=None, description="map: the camera of the mapping images"
    )

    @model_validator(mode="after")
    def _one_camera(self) -> ImageFacts:
        if self.camera is not None and self.focal is not None:
            raise ValueError("give either camera or focal")
        return self

    def frame(
        self, image: bytes, camera: CameraOption = None, sequence: str | None = None
    ) -> Frame:
        """The frame that this is said of; with a camera where it names none."""
        return Frame(
            image,
            self.camera or self.focal or camera,
            self.name,
            sequence,
            self.timestamp,
            None if self.prior is None else self.prior.evidence(),
            self.depth,
        )


class BatchImage(ImageFacts):
    """One image of a batch."""

    image: Base64Bytes = Field(description="a JPEG or PNG file in base64")


class CameraMessage(ImageFacts):
    """What holds from the next image of a camera on; all but focal and camera of that image alone."""


class Batch(BaseModel):
    """Images that are localized one after another."""

    model_config = ConfigDict(extra="forbid")

    map: str | None = Field(default=None, description="needed with several maps")
    images: list[BatchImage] = Field(min_length=1, max_length=64)


def problem_of(error: ValidationError) -> str:
    """The first problem in words, with its place."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def schemas_by_hand() -> dict[str, Any]:
    """Schemas of what is read by hand, and hence unknown to FastAPI."""
    models = Batch, CameraMessage, Prior
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    return dict(found["$defs"])

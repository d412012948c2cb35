"""What clients get, typed: the schemas of the OpenAPI description."""

from __future__ import annotations

from typing import Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field


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


class BatchImage(BaseModel):
    """One image of a batch."""

    model_config = ConfigDict(extra="forbid")

    image: Base64Bytes = Field(description="a JPEG or PNG file in base64")
    depth: Base64Bytes | None = Field(
        None, description="a PNG of 16 bits in millimetres, registered to the image, in base64"
    )
    name: str = Field("", max_length=200, description="comes back in the answer")
    timestamp: float | None = Field(None, allow_inf_nan=False, description="seconds")
    focal: float | None = Field(None, gt=0, lt=1e6, description="focal length in pixels")
    camera: Literal["map"] | None = Field(None, description="map: the camera of the mapping images")


class Batch(BaseModel):
    """Images that are localized one after another."""

    model_config = ConfigDict(extra="forbid")

    map: str | None = Field(None, description="needed with several maps")
    images: list[BatchImage] = Field(min_length=1, max_length=64)

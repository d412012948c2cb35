"""Cameras of file formats whose pixel origin is the outer corner of the first pixel (COLMAP's)."""

from __future__ import annotations

from collections.abc import Sequence

from reloc_core.errors import DataError, InputError
from reloc_core.types import CAMERA_MODELS, Camera

_CENTER = {"f": (1, 2), "fx": (2, 3)}
"""Where cx and cy stand among a model's parameters, by the name of its first one."""


def camera_from_corner(
    model: str, width: int, height: int, params: Sequence[float], source: str
) -> Camera:
    """A camera whose principal point is given in the corner convention.

    Args:
        model: name of a COLMAP camera model.
        width: in pixels.
        height: in pixels.
        params: in COLMAP's order and pixel convention.
        source: for messages.

    Raises:
        DataError: unknown or unsupported model, or bad values.
    """
    if model not in CAMERA_MODELS:
        raise DataError(
            f"{source}: camera model {model} is not supported (supported: "
            f"{', '.join(CAMERA_MODELS)}). Undistort the images with COLMAP first."
        )
    values = [float(p) for p in params]
    if len(values) != len(CAMERA_MODELS[model]):
        raise DataError(
            f"{source}: {model} takes {len(CAMERA_MODELS[model])} parameters, found {len(values)}."
        )
    for i in _CENTER[CAMERA_MODELS[model][0]]:
        values[i] -= 0.5
    try:
        return Camera(model, width, height, tuple(values))
    except InputError as error:
        raise DataError(f"{source}: {error}") from None


def fit_camera(camera: Camera, width: int, height: int) -> Camera:
    """The camera of an image that was resized to `width` x `height`.

    Raises:
        InputError: the shape differs, so the image was cropped or turned.
    """
    if (camera.width, camera.height) == (width, height):
        return camera
    if abs(width / camera.width / (height / camera.height) - 1) > 0.01:
        raise InputError(
            f"The image is {width}x{height}, the camera is for {camera.width}x{camera.height}, which "
            "is another shape: it was cropped or turned, so its intrinsics are unknown."
        )
    return camera.scaled(width, height)


def corner_params(camera: Camera) -> list[float]:
    """The camera's parameters with the principal point in the corner convention."""
    values = list(camera.params)
    for i in _CENTER[CAMERA_MODELS[camera.model][0]]:
        values[i] += 0.5
    return values

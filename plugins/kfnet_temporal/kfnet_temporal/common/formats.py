"""Files of the published code: label maps, scene transform, lists, coordinate and flow maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reloc_core.errors import DataError
from reloc_core.types import BoolArray, Float64Array, FloatArray


def read_label(path: Path | str, height: int, width: int) -> tuple[Float64Array, BoolArray]:
    """A label map `.bin` at full or 1/8 resolution, which its size tells.

    Args:
        path: raw little-endian float32, H x W x 4: X, Y, Z in metres and a mask.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        coordinates (h, w, 3), NaN where invalid, and the mask (h, w).

    Raises:
        DataError: missing, or of neither resolution.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The label map {path} does not exist. Check label_list.txt.")
    data = np.fromfile(path, "<f4")
    for h, w in ((height, width), (height // 8, width // 8)):
        if data.size == h * w * 4 and path.stat().st_size == data.nbytes:
            values = data.reshape(h, w, 4).astype(np.float64)
            mask = values[..., 3] >= 0.5
            points = np.where(mask[..., None], values[..., :3], np.nan)
            return points, mask
    raise DataError(
        f"{path} has {path.stat().st_size} bytes; a label map of a {width}x{height} image has "
        f"{height * width * 16}, or {height // 8 * (width // 8) * 16} at 1/8 resolution."
    )


def scene_transform(points: FloatArray) -> Float64Array:
    """normalised_from_world (4, 4): the principal axes of scene points about their mean, unscaled.

    Args:
        points: (N, 3) metres, rows with NaN are left out.

    Raises:
        DataError: fewer than three points.
    """
    points = np.asarray(points, np.float64)
    points = points[np.isfinite(points).all(1)]
    if len(points) < 3:
        raise DataError("The scene transform needs at least three labelled points.")
    mean = points.mean(0)
    _, axes = np.linalg.eigh(np.cov((points - mean).T))
    axes = axes[:, ::-1].copy()
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1
    result = np.eye(4)
    result[:3, :3] = axes.T
    result[:3, 3] = -axes.T @ mean
    return result


def read_transform(path: Path | str) -> Float64Array:
    """`transform.txt`: normalised_from_world, orthogonal but possibly a reflection.

    Raises:
        DataError: missing, or no such matrix.
    """
    path = Path(path)
    try:
        matrix = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable 4x4 matrix ({error}).") from error
    if matrix.shape != (4, 4) or not np.allclose(
        matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-3
    ):
        raise DataError(f"{path} must hold a 4x4 matrix whose upper left 3x3 part is orthogonal.")
    return np.asarray(matrix, np.float64)


def read_lists(folder: Path | str) -> list[tuple[Path, Path]]:
    """Images and label maps of `image_list.txt` and `label_list.txt`; relative paths from `folder`.

    Raises:
        DataError: a list is missing, or they differ in length.
    """
    folder = Path(folder)
    columns = []
    for name in ("image_list.txt", "label_list.txt"):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} does not exist.")
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        columns.append([folder / line for line in lines])
    if len(columns[0]) != len(columns[1]):
        raise DataError(
            f"{folder}: image_list.txt names {len(columns[0])} files, label_list.txt "
            f"{len(columns[1])}; they must agree line by line."
        )
    return list(zip(*columns, strict=True))


def coordinate_map(points: FloatArray, std: FloatArray) -> np.ndarray:
    """What the published evaluation writes: (h, w, 4) float32, coordinates and 1 / std.

    Args:
        points: (h, w, 3) metres.
        std: (h, w) metres; the confidence is 0 where it is infinite.
    """
    return np.concatenate([points, 1 / np.asarray(std)[..., None]], -1).astype(np.float32)


def flow_map(flow: FloatArray, std: FloatArray) -> np.ndarray:
    """What the published evaluation writes: (h, w, 3) float32, flow in cells x first, and 1 / std."""
    return np.concatenate([flow, 1 / np.asarray(std)[..., None]], -1).astype(np.float32)

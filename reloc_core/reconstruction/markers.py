"""Scale and axes from printed markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from reloc_core.errors import ConfigError, DataError, did_you_mean
from reloc_core.geometry import unproject
from reloc_core.io.images import read_image
from reloc_core.reconstruction.world import Posed, World
from reloc_core.types import Float64Array

_UNLIKE = 0.1  # median relative deviation of the sides of markers that are meant to be alike


def from_markers(images: Sequence[Posed], folder: Path, side: float, dictionary: str) -> World:
    """Corners of markers, triangulated: their sides give the scale, the lowest number the axes.

    Args:
        images: registered.
        folder: of their files.
        side: of a marker in metres.
        dictionary: of OpenCV, without its "DICT_".

    Raises:
        ConfigError: OpenCV knows no such dictionary.
        DataError: no marker is seen from two places, or their sides differ.
    """
    code = getattr(cv2.aruco, f"DICT_{dictionary}", None)
    if code is None:
        known = [name[5:] for name in dir(cv2.aruco) if name.startswith("DICT_")]
        raise ConfigError(
            f"OpenCV knows no markers '{dictionary}'.{did_you_mean(dictionary, known)}"
        )
    parameters = cv2.aruco.DetectorParameters()
    # Lines along the sides: corners sought one by one come out a sixth of a pixel inside small markers.
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_APRILTAG
    detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(code), parameters)
    rays: dict[int, list[tuple[Float64Array, Float64Array]]] = {}
    for image in images:
        grey = cv2.cvtColor(read_image(folder / image.name), cv2.COLOR_RGB2GRAY)
        corners, numbers, _ = detector.detectMarkers(grey)
        for four, number in zip(corners, [] if numbers is None else numbers.ravel(), strict=False):
            seen = unproject(image.camera, four.reshape(4, 2).astype(np.float64))
            directions = seen @ image.world_from_cam[:3, :3].T
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            rays.setdefault(int(number), []).append((image.world_from_cam[:3, 3], directions))
    placed: dict[int, Float64Array] = {}
    for key, views in sorted(rays.items()):
        meeting = _intersect(views)
        if meeting is not None:
            placed[key] = meeting
    if not placed:
        raise DataError(
            f"scale.marker: no marker {dictionary} is seen by two registered images from different places "
            f"({sum(map(len, rays.values()))} sightings of {len(rays)} markers)."
        )
    sides = np.array([np.linalg.norm(np.roll(c, -1, 0) - c, axis=1) for c in placed.values()])
    middle = float(np.median(sides))
    spread = float(np.median(np.abs(sides / middle - 1)))
    if spread > _UNLIKE:
        raise DataError(
            f"scale.marker: the sides of the {len(placed)} markers seen differ by {100 * spread:.0f} % in "
            "the median. Are they printed in several sizes, or one number twice?"
        )
    scale = side / middle
    first, square = next(iter(placed.items()))
    # OpenCV's order: upper left, upper right, lower right, lower left.
    x = square[1] + square[2] - square[0] - square[3]
    x = x / np.linalg.norm(x)
    y = square[0] + square[1] - square[2] - square[3]
    y = y - (y @ x) * x
    y = y / np.linalg.norm(y)
    rotation = np.stack([x, y, np.cross(x, y)])
    return World(
        scale, rotation, -scale * rotation @ square.mean(0), "metre",
        f"{len(placed)} markers of {side:g} m, whose sides differ by {100 * spread:.2g} % in the median; "
        f"axes of marker {first}",
        {"markers": sorted(placed), "side_deviation": spread},
    )  # fmt: skip


def _intersect(views: Sequence[tuple[Float64Array, Float64Array]]) -> Float64Array | None:
    """(4, 3) points nearest to the rays of all views; None without parallax."""
    if len(views) < 2:
        return None
    corners = []
    for k in range(4):
        left, right = np.zeros((3, 3)), np.zeros(3)
        for centre, directions in views:
            across = np.eye(3) - np.outer(directions[k], directions[k])
            left += across
            right += across @ centre
        if np.linalg.eigvalsh(left)[0] < 1e-3:
            return None
        corners.append(np.linalg.solve(left, right))
    return np.stack(corners)

"""Videos: of queries with what the estimator saw and the way so far; of a map that is being made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from reloc_core.errors import DataError
from reloc_core.types import Float64Array, Frame, ImageArray, Localization, Query, ScenePoints

VIDEO_FILE = "video.mp4"
_WIDTH, _HEIGHT = 480, 360
_MARGIN = 30
_TRUTH, _ESTIMATE, _LOST = (60, 160, 60), (40, 90, 220), (190, 190, 190)
_DEFAULT_RATE = 10.0
_MOST_POINTS = 5_000  # of a picture of a mapping
_BEHIND, _PALE = (24, 24, 28), (200, 200, 200)


class RunVideo:
    """Writes an mp4, one picture per query; a context manager.

    Left the image, in the middle up to two pictures of the estimator, right the true and the estimated
    way from above.

    Args:
        path: file to write.
        frames: of the dataset, in order; their poses set the scale of the map.

    Raises:
        DataError: no encoder for mp4 files.
    """

    def __init__(self, path: Path, frames: Sequence[Frame]) -> None:
        self.path = path
        truths = _positions(frames)
        self._project = _projection(truths, _directions(truths)[:2])
        self._truth: list[Float64Array | None] = []
        self._found: list[Float64Array | None] = []
        self._writer = _writer(path, 3 * _WIDTH, _rate(frames))

    def __enter__(self) -> RunVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._writer.release()

    def add(
        self, query: Query, localization: Localization, pictures: Mapping[str, ImageArray]
    ) -> None:
        """Add a query that was just localized."""
        truth, found = query.world_from_cam, localization.world_from_cam
        self._truth.append(None if truth is None else self._project(truth[:3, 3]))
        lost = found is None or not localization.localized
        self._found.append(None if lost or found is None else self._project(found[:3, 3]))
        panels = [_fitted(query.image, _WIDTH, _HEIGHT, query.name)]
        half = [_fitted(p, _WIDTH, _HEIGHT // 2, title) for title, p in list(pictures.items())[:2]]
        while len(half) < 2:
            half.append(np.zeros((_HEIGHT // 2, _WIDTH, 3), np.uint8))
        panels += [np.concatenate(half), self._map(lost)]
        self._writer.write(np.ascontiguousarray(np.concatenate(panels, 1)[..., ::-1]))

    def _map(self, lost: bool) -> ImageArray:
        canvas = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
        for way, colour in ((self._truth, _TRUTH), (self._found, _ESTIMATE)):
            for a, b in pairwise(way):
                if a is not None and b is not None:
                    cv2.line(canvas, _pixel(a), _pixel(b), colour, 1, cv2.LINE_AA)
            if way and way[-1] is not None:
                cv2.circle(canvas, _pixel(way[-1]), 4, colour, -1, cv2.LINE_AA)
        for row, (name, colour) in enumerate((("ground truth", _TRUTH), ("estimate", _ESTIMATE))):
            _write(canvas, name, (8, 16 + 16 * row), colour)
        if lost:
            _write(canvas, "not localized", (8, _HEIGHT - 10), _LOST)
        return canvas


class MappingVideo:
    """An mp4 of the points of a map while it is made: from above on the left, from the side on the right.

    The scale is that of the last points, so pictures are kept and written at the end.

    Args:
        path: file to write.
        frames: that are mapped; their positions are drawn, and say what is above.
    """

    def __init__(self, path: Path, frames: Sequence[Frame]) -> None:
        self.path = path
        self._cameras = _positions(frames)
        self._pictures: list[tuple[str, ScenePoints]] = []

    def add(self, title: str, shown: ScenePoints) -> None:
        """Add a picture; some of the points are enough."""
        points = np.asarray(shown.points, np.float64)
        kept = np.flatnonzero(np.isfinite(points).all(-1))
        kept = kept[:: -(-len(kept) // _MOST_POINTS) or 1]
        colors = None if shown.colors is None else shown.colors[kept]
        self._pictures.append((title, ScenePoints(points[kept], colors)))

    def write(self) -> bool:
        """Write the file; False where there is no picture to show.

        Raises:
            DataError: no encoder for mp4 files.
        """
        if not self._pictures:
            return False
        last: Float64Array = np.asarray(self._pictures[-1][1].points, np.float64)
        near = last
        if len(last):  # a few wrong points must not make all others small
            low, high = np.percentile(last, [2, 98], axis=0)
            near = last[np.all((low <= last) & (last <= high), axis=1)]
        extent = np.concatenate([self._cameras, near])
        along, across, up = _directions(self._cameras)
        views = {
            "from above": _projection(extent, np.stack([along, across])),
            "from the side": _projection(extent, np.stack([along, up])),
        }
        writer = _writer(self.path, 2 * _WIDTH, _DEFAULT_RATE)
        try:
            for title, shown in self._pictures:
                panels = [
                    self._panel(project, f"{title}, {name}", shown)
                    for name, project in views.items()
                ]
                writer.write(np.ascontiguousarray(np.concatenate(panels, 1)[..., ::-1]))
        finally:
            writer.release()
        return True

    def _panel(
        self, project: Callable[[Float64Array], Float64Array], title: str, shown: ScenePoints
    ) -> ImageArray:
        canvas = np.full((_HEIGHT, _WIDTH, 3), _BEHIND, np.uint8)
        colors = np.full((1, 3), _PALE, np.uint8) if shown.colors is None else shown.colors
        _dots(canvas, project(np.asarray(shown.points)), colors, 2)
        _dots(canvas, project(self._cameras), np.array([_ESTIMATE], np.uint8), 3)
        _write(canvas, title, (8, 16), _PALE)
        return canvas


def _dots(canvas: ImageArray, places: Float64Array, colors: ImageArray, side: int) -> None:
    """Squares of `side` pixels at places (N, 2), as far as they are on the canvas."""
    corners = np.clip(np.nan_to_num(places), -10_000, 10_000).round().astype(int)
    inside = np.all((corners >= 0) & (corners <= np.array([_WIDTH, _HEIGHT]) - side), axis=1)
    x, y = corners[inside].T
    drawn = np.broadcast_to(colors, (len(places), 3))[inside]
    for row in range(side):
        for column in range(side):
            canvas[y + row, x + column] = drawn


def _writer(path: Path, width: int, rate: float) -> cv2.VideoWriter:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, _HEIGHT))
    if not writer.isOpened():
        raise DataError(f"{path} cannot be written: this OpenCV has no encoder for mp4 files.")
    return writer


def _positions(frames: Sequence[Frame]) -> Float64Array:
    """Where the cameras of posed frames are, (N, 3); the origin where there are none."""
    found = [f.world_from_cam[:3, 3] for f in frames if f.world_from_cam is not None]
    return np.array(found or [np.zeros(3)])


def _directions(positions: Float64Array) -> Float64Array:
    """Unit vectors as rows (3, 3), by falling spread of the positions; seen from above the last is up."""
    directions: Float64Array = np.linalg.svd(np.cov(positions.T, bias=True))[2]
    return directions


def _projection(extent: Float64Array, axes: Float64Array) -> Callable[[Float64Array], Float64Array]:
    """World positions (..., 3) to pixels (..., 2) along two axes; the extent fills the canvas."""
    mean = extent.mean(0)
    flat = (extent - mean) @ axes.T
    low, high = flat.min(0), flat.max(0)
    room = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    scale = float((room / np.maximum(high - low, 1e-6)).min())
    middle = (low + high) / 2

    def project(position: Float64Array) -> Float64Array:
        flat = (position - mean) @ axes.T - middle
        return np.asarray(flat * scale + np.array([_WIDTH, _HEIGHT]) / 2)

    return project


def _pixel(place: Float64Array) -> tuple[int, int]:
    x, y = np.clip(np.nan_to_num(place), -10_000, 10_000).round().astype(int)
    return int(x), int(y)


def _fitted(image: ImageArray, width: int, height: int, title: str) -> ImageArray:
    """The whole image on a canvas, with a title."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    canvas = np.zeros((height, width, 3), np.uint8)
    x, y = (width - size[0]) // 2, (height - size[1]) // 2
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    canvas[y : y + size[1], x : x + size[0]] = cv2.resize(image, size, interpolation=how)
    cv2.rectangle(canvas, (0, 0), (width, 20), (0, 0, 0), -1)
    _write(canvas, title, (6, 14), (255, 255, 255))
    return canvas


def _write(canvas: ImageArray, text: str, place: tuple[int, int], colour: tuple[int, ...]) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def _rate(frames: Sequence[Frame]) -> float:
    """Frames per second by the time stamps."""
    stamps = [f.timestamp for f in frames if f.timestamp is not None]
    steps = np.diff(stamps)
    steps = steps[steps > 0]
    return float(np.clip(1 / np.median(steps), 1, 60)) if len(steps) else _DEFAULT_RATE

"""A relocalization as a recording of rerun: the map, the cameras, and every query on a time line.

Entities of a recording, all in the map's world frame:

    world/map/points       points of the map, where the method has some
    world/map/cameras      where the mapping images were taken
    world/seen             points that support the estimates so far, in the colours of the images
    world/estimate         the camera with its image; covariance is its 95 % ellipsoid
    world/truth            the true camera, where it is known
    world/path/{estimate,truth}   the ways of both so far
    query/image, query/points     the image with its inliers, coloured by reprojection error
    plots/...              errors, score, inliers, standard deviation and time over the frames
    log                    why queries were not localized
    origin                 what is subtracted from all positions, where coordinates are too large for the
                           viewer's single precision, as in map projections

Timelines are `frame` (index of the query) and, where the queries carry one, `time` in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from reloc_core.evaluation.results import QueryResult
from reloc_core.geometry import inverse, project, transform
from reloc_core.types import (
    BoolArray,
    Camera,
    Correspondences,
    Evidence,
    Float64Array,
    FloatArray,
    ImageArray,
    Localization,
    Query,
    ScenePoints,
)

APPLICATION = "reloc"
CHI2_95 = 7.815
"""95 % point of chi-square with three degrees of freedom: the ellipsoid that is drawn."""

_ESTIMATE, _TRUTH, _MAP = (46, 125, 210), (60, 170, 90), (150, 150, 150)
_GOOD, _BAD = np.array([70, 200, 90]), np.array([235, 60, 50])
_LARGE = 1e4
"""Coordinates from which single precision no longer shows millimetres."""


def plots(unit: str) -> dict[str, str]:
    """Titles of the curves and their entities; lengths are in the map's unit."""
    short = "m" if unit == "metre" else unit
    return {
        f"position error ({short})": "plots/position_error",
        "rotation error (deg)": "plots/rotation_error_deg",
        "score": "plots/score",
        "inliers": "plots/inliers",
        f"standard deviation ({short})": "plots/position_std",
        "milliseconds": "plots/milliseconds",
    }


class SceneRecording:
    """Writes to a file, to a running viewer, or to one that it opens.

    Args:
        file: `.rrd` file to write; None for a viewer.
        connect: address of a running viewer, as `rerun+http://127.0.0.1:9876/proxy`; None for one
            that is opened. Ignored with a file.
        image_width: images are shrunk to this many pixels.
        magnify: factor on the size of the covariance ellipsoids, which are often millimetres.
        errors_px: reprojection error from which an inlier is drawn red.
        unit: of the map, for titles.
    """

    def __init__(
        self,
        file: Path | None = None,
        connect: str | None = None,
        image_width: int = 480,
        magnify: float = 1.0,
        errors_px: float = 5.0,
        unit: str = "metre",
    ) -> None:
        self._width, self._magnify, self._errors_px = image_width, magnify, errors_px
        self._size = 0.1
        self._last: dict[str, Float64Array] = {}
        self._origin: Float64Array | None = None
        self._stream = rr.RecordingStream(APPLICATION)
        if file is not None:
            self._stream.save(file, default_blueprint=blueprint(unit))
        elif connect is not None:
            self._stream.connect_grpc(connect, default_blueprint=blueprint(unit))
        else:
            self._stream.spawn(default_blueprint=blueprint(unit))

    def close(self) -> None:
        """Hand over everything that is still in memory."""
        self._stream.flush()
        self._stream.disconnect()

    def show_map(self, points: ScenePoints | None, cameras: list[Float64Array]) -> None:
        """Show the map's points and the poses (4, 4) that it was built from."""
        self._size = camera_size(cameras)
        cameras = [self._local(pose) for pose in cameras]
        self._stream.log("world", up_axis(cameras), static=True)
        if points is not None and len(points.points):
            colors = _MAP if points.colors is None else points.colors
            self._stream.log(
                "world/map/points",
                rr.Points3D(self._shifted(points.points), colors=colors),
                static=True,
            )
        if cameras:
            outlines = [frustum(pose, self._size / 2) for pose in _even(cameras, 400)]
            self._stream.log(
                "world/map/cameras", rr.LineStrips3D(outlines, colors=_MAP), static=True
            )

    def show(
        self,
        number: int,
        result: QueryResult,
        query: Query | None = None,
        evidence: Evidence | None = None,
        localization: Localization | None = None,
    ) -> None:
        """Show one query.

        Args:
            number: its place on the time line.
            result: pose, covariance and errors.
            query: with its pixels; None shows the pose alone.
            evidence: what the solver was given, for the points.
            localization: the outcome, for the inliers.
        """
        self._stream.set_time("frame", sequence=number)
        if result.timestamp is not None:
            self._stream.set_time("time", duration=result.timestamp)
        camera = result.camera or (query.camera if query is not None else None)
        if query is not None:
            self._stream.log("query/image", _jpeg(query.image, self._width))
        self._camera("estimate", result.world_from_cam, camera, _ESTIMATE)
        self._camera("truth", result.truth, camera, _TRUTH)
        if result.world_from_cam is not None:
            if query is not None and camera is not None:
                self._picture_in_space(query, camera)
            self._ellipsoid(result.covariance)
        else:
            self._stream.log("log", rr.TextLog(f"{result.name}: {result.reason}", level="WARN"))
        self._points(query, evidence, localization, result.world_from_cam)
        self._plots(result)

    def _shifted(self, points: FloatArray) -> FloatArray:
        """Points (N, 3) relative to the origin, which the first position decides."""
        if self._origin is None:
            first = np.asarray(points, np.float64)[0]
            self._origin = np.round(first) if np.abs(first).max() > _LARGE else np.zeros(3)
            if self._origin.any():
                text = "All positions are relative to {:.0f}, {:.0f}, {:.0f}.".format(*self._origin)
                self._stream.log("origin", rr.TextDocument(text), static=True)
        return np.asarray(points - self._origin)

    def _local(self, world_from_cam: Float64Array) -> Float64Array:
        """A pose relative to the origin."""
        local = np.array(world_from_cam, np.float64)
        local[:3, 3] = self._shifted(local[None, :3, 3])[0]
        return local

    def _camera(
        self,
        name: str,
        pose: Float64Array | None,
        camera: Camera | None,
        color: tuple[int, int, int],
    ) -> None:
        """A camera and the last piece of its way, or nothing where it is unknown."""
        entity = f"world/{name}"
        before = self._last.pop(name, None)
        if pose is None:
            self._stream.log(entity, rr.Clear(recursive=True))
            return
        pose = self._local(pose)
        self._stream.log(
            entity,
            rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]),
            rr.LineStrips3D([frustum(np.eye(4), self._size, camera)], colors=color),
        )
        if before is not None:
            piece = np.stack([before[:3, 3], pose[:3, 3]])
            self._stream.log(f"world/path/{name}", rr.LineStrips3D([piece], colors=color))
        self._last[name] = pose

    def _picture_in_space(self, query: Query, camera: Camera) -> None:
        """The image, small, on the image plane of the estimate."""
        small = camera.scaled(160, max(1, round(160 * camera.height / camera.width)))
        self._stream.log(
            "world/estimate/picture",
            rr.Pinhole(
                focal_length=[small.fx, small.fy],
                principal_point=[small.cx + 0.5, small.cy + 0.5],
                width=small.width,
                height=small.height,
                image_plane_distance=self._size,
            ),
            _jpeg(query.image, 160),
        )

    def _ellipsoid(self, covariance: Float64Array | None) -> None:
        entity = "world/estimate/covariance"
        if covariance is None or not np.isfinite(covariance).all():
            self._stream.log(entity, rr.Clear(recursive=False))
            return
        half_sizes, rotation = ellipsoid(covariance)
        self._stream.log(
            entity,
            rr.Transform3D(mat3x3=rotation),
            rr.Ellipsoids3D(
                half_sizes=[half_sizes * self._magnify], centers=[[0, 0, 0]], colors=_ESTIMATE
            ),
        )

    def _points(
        self,
        query: Query | None,
        evidence: Evidence | None,
        localization: Localization | None,
        pose: Float64Array | None,
    ) -> None:
        """Inliers in the image and in space."""
        if query is None:
            return
        if pose is None or not isinstance(evidence, Correspondences) or not len(evidence.points2d):
            self._stream.log("query/points", rr.Clear(recursive=False))
            return
        camera = query.camera if localization is None else localization.camera_of(query)
        support, errors = supporting(camera, evidence, localization, pose)
        chosen = np.array(_even(list(np.flatnonzero(support)), 1000), int)
        pixels = np.asarray(evidence.points2d, np.float64)[chosen]
        share = np.clip(errors[chosen] / self._errors_px, 0, 1)[:, None]
        scale = min(self._width / query.camera.width, 1.0)
        self._stream.log(
            "query/points",
            rr.Points2D(
                (pixels + 0.5) * scale,
                colors=np.uint8(_GOOD * (1 - share) + _BAD * share),
                radii=rr.Radius.ui_points(2.5),
            ),
        )
        seen = chosen[:: max(1, len(chosen) // 200)]
        column, row = np.rint(np.asarray(evidence.points2d)[seen]).astype(int).T
        height, width = query.image.shape[:2]
        colors = query.image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        points = self._shifted(np.asarray(evidence.points3d, np.float64)[seen])
        self._stream.log("world/seen", rr.Points3D(points, colors=colors))

    def _plots(self, result: QueryResult) -> None:
        values: dict[str, float | None] = {
            "plots/position_error": result.translation_error_m,
            "plots/rotation_error_deg": result.rotation_error_deg,
            "plots/score": result.score,
            "plots/inliers": float(result.num_inliers),
            "plots/milliseconds": 1e3 * result.total_seconds,
        }
        if result.covariance is not None:
            values["plots/position_std"] = float(np.sqrt(np.trace(result.covariance[3:, 3:])))
        for entity, value in values.items():
            if value is not None and np.isfinite(value):
                self._stream.log(entity, rr.Scalars(value))


def blueprint(unit: str = "metre") -> rrb.Blueprint:
    """What the viewer shows at first: space on the left, image and curves on the right."""
    whole = rrb.VisibleTimeRange(
        "frame",
        start=rrb.TimeRangeBoundary.infinite(),
        end=rrb.TimeRangeBoundary.cursor_relative(),
    )
    so_far: Any = rrb.VisibleTimeRanges([whole])
    ways = ("world/path/estimate", "world/path/truth", "world/seen")
    curves = [
        rrb.TimeSeriesView(origin=entity, name=title) for title, entity in plots(unit).items()
    ]
    return rrb.Blueprint(
        rrb.Horizontal(
            rrb.Spatial3DView(
                origin="world", name="Map and cameras", overrides=dict.fromkeys(ways, so_far)
            ),
            rrb.Vertical(
                rrb.Spatial2DView(origin="query", name="Query and inliers"),
                rrb.Tabs(*curves, name="Numbers"),
                rrb.TextLogView(origin="log", name="Not localized"),
                row_shares=[5, 3, 2],
            ),
            column_shares=[3, 2],
        )
    )


def up_axis(cameras: list[Float64Array]) -> rr.ViewCoordinates:
    """The axis of the world nearest to the cameras' mean up direction."""
    up = -np.mean([pose[:3, 1] for pose in cameras], axis=0) if cameras else np.array([0, -1, 0])
    axis = int(np.argmax(np.abs(up)))
    name = f"RIGHT_HAND_{'XYZ'[axis]}_{'UP' if up[axis] > 0 else 'DOWN'}"
    coordinates: rr.ViewCoordinates = getattr(rr.ViewCoordinates, name)
    return coordinates


def camera_size(cameras: list[Float64Array]) -> float:
    """Length of drawn cameras: a twentieth of the extent of the mapped path."""
    if len(cameras) < 2:
        return 0.1
    extent = np.ptp(np.stack([pose[:3, 3] for pose in cameras]), axis=0).max()
    return float(extent) / 20 or 0.1


def frustum(
    world_from_cam: Float64Array, length: float, camera: Camera | None = None
) -> Float64Array:
    """One line (11, 3) along the edges of a camera's viewing pyramid."""
    x, y = 0.6, 0.45
    if camera is not None:
        x, y = camera.width / camera.fx / 2, camera.height / camera.fy / 2
    corners = np.array([[-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]]) * length
    o, (a, b, c, d) = np.zeros(3), corners
    return transform(world_from_cam, np.stack([a, b, o, a, d, o, c, d, c, b, c]))


def ellipsoid(covariance: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Half axes (3,) and their directions (3, 3) in camera axes of the 95 % region of the position."""
    values, vectors = np.linalg.eigh(covariance[3:, 3:])
    if np.linalg.det(vectors) < 0:
        vectors[:, 0] *= -1
    return np.sqrt(np.maximum(values, 0) * CHI2_95), vectors


def supporting(
    camera: Camera,
    evidence: Correspondences,
    localization: Localization | None,
    world_from_cam: Float64Array,
) -> tuple[BoolArray, FloatArray]:
    """Which correspondences support a pose, and their reprojection errors in pixels."""
    pixels, _ = project(camera, transform(inverse(world_from_cam), evidence.points3d))
    errors = np.linalg.norm(pixels - np.asarray(evidence.points2d, np.float64), axis=1)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    mask = localization.inliers if localization is not None else None
    if mask is not None and len(mask) == len(errors):
        return np.asarray(mask, bool), errors
    return errors < 10.0, errors


def _jpeg(image: ImageArray, width: int) -> rr.EncodedImage:
    """The image as JPEG of at most `width` pixels."""
    scale = min(width / image.shape[1], 1.0)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if scale < 1:
        size = (round(image.shape[1] * scale), max(1, round(image.shape[0] * scale)))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return rr.EncodedImage(contents=data.tobytes(), media_type="image/jpeg")


def _even(items: list[Any], count: int) -> list[Any]:
    """An even choice of at most `count` items."""
    if len(items) <= count:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]

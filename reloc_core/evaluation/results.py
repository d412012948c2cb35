"""What is kept of every query, and the files written from it.

    localizations.jsonl   everything, one JSON object a line; read back by `read_localizations`
    poses.txt             localized queries in the format of ACE: world-to-camera, 11 columns
    poses_tum.txt         localized queries as TUM trajectory: camera-to-world, x y z w quaternions

docs/report.md describes the columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.calibration.config import RIGHT_DEG, RIGHT_DEPTHS
from reloc_core.errors import DataError
from reloc_core.evaluation.metrics import (
    RELATIVE_SUCCESS,
    RELATIVE_THRESHOLDS,
    SUCCESS,
    THRESHOLDS,
    Metrics,
    RelativeMetrics,
    finite_or_none,
    nees,
    pose_errors,
    relative_metrics,
    summarize,
    upper_quantile,
)
from reloc_core.evaluation.units import METRE
from reloc_core.interfaces import Dataset
from reloc_core.io.files import atomic_write
from reloc_core.io.poses import PoseRecord, write_pose_log, write_tum
from reloc_core.mapped import camera_from_dict
from reloc_core.maps import dataset_identity
from reloc_core.types import Camera, Float64Array, Frame, Localization, Status

LOCALIZATIONS_FILE = "localizations.jsonl"
POSES_FILE = "poses.txt"
POSES_TUM_FILE = "poses_tum.txt"


@dataclass(frozen=True)
class QueryResult:
    """What an evaluation keeps of one query.

    Attributes:
        name: the frame's name.
        status: localized or not.
        reason: why not; "" when localized.
        world_from_cam: (4, 4) estimate, or None.
        covariance: (6, 6) in the convention of `reloc_core.types`, or None.
        score: 0..1.
        num_inliers: correspondences that support the pose.
        seconds: wall time by stage name.
        total_seconds: wall time of the whole call, without reading the image.
        read_seconds: wall time of reading the image, which overlaps the query before it.
        wait_seconds: the part of it for which localization stood still.
        stages: pose after each stage: (stage name, (4, 4)).
        truth: (4, 4) ground truth, or None.
        translation_error_m: inf when not localized, None without ground truth.
        rotation_error_deg: inf when not localized, None without ground truth.
        timestamp: seconds, or None.
        sequence: identifier of the video, or None.
        readable: whether the image could be read.
        camera: the intrinsics where they were estimated with the pose, else None.
    """

    name: str
    status: Status
    reason: str = ""
    world_from_cam: Float64Array | None = None
    covariance: Float64Array | None = None
    score: float = 0.0
    num_inliers: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0
    stages: tuple[tuple[str, Float64Array], ...] = ()
    truth: Float64Array | None = None
    translation_error_m: float | None = None
    rotation_error_deg: float | None = None
    timestamp: float | None = None
    sequence: str | None = None
    readable: bool = True
    camera: Camera | None = None

    @property
    def localized(self) -> bool:
        """Whether `world_from_cam` is a pose."""
        return self.status is Status.LOCALIZED

    def as_dict(self) -> dict[str, Any]:
        """For one line of `localizations.jsonl`; infinite errors become null."""
        return {
            "name": self.name,
            "status": self.status.value,
            "reason": self.reason,
            "world_from_cam": _matrix(self.world_from_cam),
            "covariance": _matrix(self.covariance),
            "score": finite_or_none(self.score),
            "inliers": self.num_inliers,
            "seconds": {
                "total": round(self.total_seconds, 6),
                **{k: round(v, 6) for k, v in self.seconds.items()},
            },
            "read_seconds": round(self.read_seconds, 6),
            "wait_seconds": round(self.wait_seconds, 6),
            "stages": [{"stage": s, "world_from_cam": _matrix(p)} for s, p in self.stages],
            "ground_truth": _matrix(self.truth),
            "translation_error_m": finite_or_none(self.translation_error_m, 9),
            "rotation_error_deg": finite_or_none(self.rotation_error_deg, 9),
            "timestamp": self.timestamp,
            "sequence": self.sequence,
            "readable": self.readable,
            "camera": None if self.camera is None else asdict(self.camera),
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> QueryResult:
        """The inverse of `as_dict`."""
        status = Status(line["status"])
        truth = _array(line["ground_truth"], (4, 4))
        failed = math.inf if truth is not None and status is not Status.LOCALIZED else None
        errors = (line["translation_error_m"], line["rotation_error_deg"])
        seconds = {str(k): float(v) for k, v in line["seconds"].items()}
        return cls(
            name=str(line["name"]),
            status=status,
            reason=str(line["reason"]),
            world_from_cam=_array(line["world_from_cam"], (4, 4)),
            covariance=_array(line["covariance"], (6, 6)),
            score=float(line["score"] or 0.0),
            num_inliers=int(line["inliers"]),
            total_seconds=seconds.pop("total", 0.0),
            seconds=seconds,
            read_seconds=float(line["read_seconds"]),
            wait_seconds=float(line.get("wait_seconds", 0.0)),
            stages=tuple(
                (str(stage["stage"]), np.asarray(stage["world_from_cam"], np.float64))
                for stage in line["stages"]
            ),
            truth=truth,
            translation_error_m=failed if errors[0] is None else float(errors[0]),
            rotation_error_deg=failed if errors[1] is None else float(errors[1]),
            timestamp=line["timestamp"],
            sequence=line["sequence"],
            readable=bool(line["readable"]),
            camera=_camera(line.get("camera")),
        )


def _camera(values: Mapping[str, Any] | None) -> Camera | None:
    if values is None:
        return None
    return camera_from_dict(values)


def query_result(
    frame: Frame,
    localization: Localization,
    total_seconds: float = 0.0,
    read_seconds: float = 0.0,
    readable: bool = True,
    wait_seconds: float = 0.0,
) -> QueryResult:
    """Judge a localization by the frame's ground truth, if it has one.

    Args:
        frame: the query's frame with its ground truth.
        localization: the outcome.
        total_seconds: wall time of the whole call.
        read_seconds: wall time of reading the image.
        readable: whether the image could be read.
        wait_seconds: wall time for which localization waited for the image.
    """
    truth, estimate = frame.world_from_cam, localization.world_from_cam
    errors: tuple[float, float] | tuple[None, None] = (None, None)
    if truth is not None:
        known = localization.localized and estimate is not None
        errors = pose_errors(estimate, truth) if known and estimate is not None else (math.inf,) * 2
    return QueryResult(
        name=frame.name,
        status=localization.status,
        reason=localization.reason,
        world_from_cam=estimate if localization.localized else None,
        covariance=localization.covariance,
        score=localization.score,
        num_inliers=localization.num_inliers,
        seconds=dict(localization.seconds),
        total_seconds=total_seconds,
        read_seconds=read_seconds,
        wait_seconds=wait_seconds,
        stages=localization.stages,
        truth=truth,
        translation_error_m=errors[0],
        rotation_error_deg=errors[1],
        timestamp=frame.timestamp,
        sequence=frame.sequence,
        readable=readable,
        camera=localization.camera,
    )


def error_array(results: Iterable[QueryResult]) -> Float64Array:
    """(N, 2) translation and rotation errors: inf where failed, NaN without ground truth."""
    nan = math.nan
    rows = [
        (
            nan if r.translation_error_m is None else r.translation_error_m,
            nan if r.rotation_error_deg is None else r.rotation_error_deg,
        )
        for r in results
    ]
    return np.asarray(rows, np.float64).reshape(-1, 2)


def nees_array(results: Iterable[QueryResult]) -> Float64Array:
    """(N,) normalised estimation errors squared; NaN without pose, covariance or ground truth."""
    return np.asarray(
        [
            nees(r.world_from_cam, r.covariance, r.truth)
            if r.world_from_cam is not None and r.covariance is not None and r.truth is not None
            else math.nan
            for r in results
        ]
    )


def summarize_results(
    results: Sequence[QueryResult], depth: float | None = None, unit: str = METRE
) -> Metrics:
    """Metrics over query results.

    Args:
        results: of all queries.
        depth: of the scene, by which the score calls a pose right; None if unknown.
        unit: of the poses; in an arbitrary one a query succeeds within a share of the depth.
    """
    limit = THRESHOLDS[SUCCESS]
    if unit != METRE and depth:
        share, degrees = RELATIVE_THRESHOLDS[RELATIVE_SUCCESS]
        limit = (share * depth, degrees)
    errors = error_array(results)
    right = (errors[:, 0] <= RIGHT_DEPTHS * depth) & (errors[:, 1] <= RIGHT_DEG) if depth else None
    return summarize(
        errors[:, 0],
        errors[:, 1],
        localized=[r.localized for r in results],
        scores=[r.score for r in results],
        nees_values=nees_array(results),
        right=right,
        limit=limit,
    )


def relative_results(results: Sequence[QueryResult], depth: float | None) -> RelativeMetrics | None:
    """Errors over the scene's depth; None where it is unknown."""
    if depth is None or not depth > 0:
        return None
    errors = error_array(results)
    return relative_metrics(errors[:, 0], errors[:, 1], depth)


def timing(results: Sequence[QueryResult]) -> dict[str, Any]:
    """Median and 95th percentile of seconds: per query, per stage, and of reading images; all waiting.

    Unreadable images were never localized and are left out. Both follow the quantile rule of
    `reloc_core.evaluation.metrics`.
    """
    read = [r for r in results if r.readable]
    names = dict.fromkeys(name for r in read for name in r.seconds)
    return {
        "per_query": _median_p95([r.total_seconds for r in read]),
        "stages": {n: _median_p95([r.seconds[n] for r in read if n in r.seconds]) for n in names},
        "read_image": _median_p95([r.read_seconds for r in read]),
        "waited_for_images": round(sum(r.wait_seconds for r in read), 6),
    }


def result_content(
    results: Sequence[QueryResult], dataset: Dataset, depth: float | None = None
) -> dict[str, Any]:
    """The evaluation's part of `result.json`.

    Args:
        results: one per frame of the dataset.
        dataset: what was queried.
        depth: of the scene in the unit of the poses, or None where it is unknown.

    Returns:
        `status` ("ok"; "partial" when some images could not be read, "failed" when none could),
        `metrics` (with `relative`, the errors over the depth, where that is known), `seconds`
        (`per_query`, `stages`, `read_image`, `waited_for_images`), `dataset` (name, frames, fingerprint,
        unit) and `failures` (name and reason of every query without a pose).
    """
    unreadable = sum(not r.readable for r in results)
    status = "ok" if not unreadable else "partial" if unreadable < len(results) else "failed"
    relative = relative_results(results, depth)
    return {
        "status": status,
        "metrics": {
            **summarize_results(results, depth, dataset.unit).as_dict(),
            "relative": None if relative is None else relative.as_dict(),
        },
        "seconds": timing(results),
        "dataset": {**dataset_identity(dataset), "unit": dataset.unit},
        "failures": [{"name": r.name, "reason": r.reason} for r in results if not r.localized],
    }


def write_localizations(path: Path, results: Iterable[QueryResult]) -> None:
    """Write `localizations.jsonl`, atomically."""
    with atomic_write(path) as file:
        for result in results:
            file.write(json.dumps(result.as_dict(), allow_nan=False) + "\n")


def read_localizations(path: Path) -> list[QueryResult]:
    """Read `localizations.jsonl`.

    Raises:
        DataError: missing, or a line is damaged (names its number).
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read. Run 'reloc evaluate' to make it.") from error
    results = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            results.append(QueryResult.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}, line {number} is damaged ({type(error).__name__}: {error})."
            ) from error
    return results


def write_poses(path: Path, results: Sequence[QueryResult], unit: str = "metre") -> None:
    """Write `poses.txt`, the pose log of ACE: world-to-camera, one line per localized query.

    Comments at the top count and list the queries that have no line. Errors are nan without ground
    truth.
    """
    failed = [r for r in results if not r.localized]
    summary = f"{len(results) - len(failed)} of {len(results)} queries localized"
    if failed:
        summary += "; without a pose:"
    records = [
        PoseRecord(
            r.name,
            r.world_from_cam,
            math.nan if r.rotation_error_deg is None else r.rotation_error_deg,
            math.nan if r.translation_error_m is None else r.translation_error_m,
            r.num_inliers,
        )
        for r in results
        if r.world_from_cam is not None
    ]
    listed = (f"  {_one_line(r.name)}: {_one_line(r.reason)}" for r in failed)
    write_pose_log(path, records, unit, "\n".join((summary, *listed)))


def write_poses_tum(path: Path, results: Sequence[QueryResult], unit: str = "metre") -> None:
    """Write `poses_tum.txt`, a TUM trajectory of the localized queries, camera-to-world.

    The first column is the timestamp in seconds where every query has one, else the query's index.
    """
    timed = all(r.timestamp is not None for r in results)
    found = [
        (float(index) if r.timestamp is None or not timed else r.timestamp, r.world_from_cam)
        for index, r in enumerate(results)
        if r.world_from_cam is not None
    ]
    poses = np.asarray([pose for _, pose in found], np.float64).reshape(-1, 4, 4)
    write_tum(path, [stamp for stamp, _ in found], poses, unit)


def write_result_files(
    directory: Path, results: Sequence[QueryResult], unit: str = "metre"
) -> None:
    """Write `localizations.jsonl`, `poses.txt` and `poses_tum.txt` into an existing directory."""
    write_localizations(directory / LOCALIZATIONS_FILE, results)
    write_poses(directory / POSES_FILE, results, unit)
    write_poses_tum(directory / POSES_TUM_FILE, results, unit)


def _median_p95(seconds: Sequence[float]) -> dict[str, float | None]:
    return {
        "median": finite_or_none(upper_quantile(seconds, 0.5)),
        "p95": finite_or_none(upper_quantile(seconds, 0.95)),
    }


def _matrix(matrix: Float64Array | None) -> list[list[float]] | None:
    if matrix is None or not np.all(np.isfinite(matrix)):
        return None
    return [[float(f"{v:.12g}") for v in row] for row in matrix]


def _array(rows: Any, shape: tuple[int, int]) -> Float64Array | None:
    if rows is None:
        return None
    array = np.asarray(rows, np.float64)
    if array.shape != shape:
        raise ValueError(f"a matrix has shape {array.shape}, expected {shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError("a matrix is not finite")
    return array


def _one_line(text: str) -> str:
    return " ".join(text.split())

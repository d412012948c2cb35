"""Whether a query's camera can be right, by its matches with all references.

With a wrong one, all references agree on a pose that is off: nothing that comes after could tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from gnn_relpose.matched.scene import Scene
from reloc_core.geometry import project
from reloc_core.solvers import AbsolutePoseOptions, PoseEstimate, estimate_absolute_pose
from reloc_core.solvers.camera_doubt import with_camera_doubt
from reloc_core.types import Camera, Correspondences, Float64Array, RelativePoses

_TOLERATED = 0.02  # of the focal length: less moves a pose by less than the cells' own errors
_THRESHOLD = 0.015  # of ray coordinates: matches are good to half a cell, about 0.008
_SIGMAS = 3.0
_FEWEST = 40  # matches; fewer tell nothing of a focal length


@dataclass(frozen=True)
class Believed:
    """What the matches of a query make of its camera.

    Attributes:
        camera: with their focal length where they contradict the given one.
        spread: (6, 6) of the pose, by what else of the camera they contradict.
        doubt: logarithm of by how much that is more than what the matches let the pose be otherwise.
    """

    camera: Camera
    spread: Float64Array = field(default_factory=lambda: np.zeros((6, 6)))
    doubt: float = 0.0

    def in_evidence(self, given: RelativePoses) -> RelativePoses:
        """Relative poses whose errors have what a wrong camera makes of all of them alike."""
        if not self.doubt or given.covariances is None:
            return given
        return replace(given, covariances=given.covariances + self.spread, correlation=1.0)


def believed_camera(
    camera: Camera, scene: Scene, references: np.ndarray, seen: np.ndarray, stats: np.ndarray
) -> Believed:
    """The camera of a query as far as its matches do not contradict it.

    Args:
        camera: as given.
        scene: what the references are of.
        references: (N,) images of the scene.
        seen: (N, K, 2) rays of their cells in the query, by `camera`.
        stats: (N, K, 3) of these matches, see `soft_matches`.

    Returns:
        `camera` itself, without doubt, where the matches agree with it, say nothing or cannot tell.
    """
    inverse_depth, rays = scene.inverse_depth[references], scene.rays[references]
    usable = (inverse_depth > 0) & (stats[..., 2] > 0)
    usable &= np.isfinite(rays).all(-1) & np.isfinite(seen).all(-1)
    row, cell = np.nonzero(usable)
    if len(row) < _FEWEST:
        return Believed(camera)
    depth = 1 / inverse_depth[row, cell].astype(np.float64)
    points_ref = np.append(rays[row, cell], np.ones((len(row), 1)), axis=1) * depth[:, None]
    poses = scene.poses[references][row]
    points = np.einsum("nij,nj->ni", poses[:, :3, :3], points_ref) + poses[:, :3, 3]
    pixels, inside = project(camera, np.append(seen[row, cell], np.ones((len(row), 1)), axis=1))
    options = AbsolutePoseOptions(residual="reprojection", threshold=_THRESHOLD * camera.fx)
    asked = pixels[inside], points[inside], camera
    found = estimate_absolute_pose(*asked, options=options)
    if found.success and found.camera is None and abs(found.focal_shift) < _TOLERATED:
        return _doubted(found, *asked, len(references))
    if not found.success or found.camera is None:  # else the given one was known to be uncertain
        free = estimate_absolute_pose(*asked, options=replace(options, estimate_focal=True))
        if free.success and free.camera is not None and free.focal_std is not None:
            found = free
    if not found.success or found.camera is None or found.focal_std is None:
        return _doubted(found, *asked, len(references))
    unsure = _SIGMAS * found.focal_std / found.camera.fx
    differs = abs(math.log(found.camera.fx / camera.fx)) > max(_TOLERATED, unsure)
    believed = _doubted(found, *asked, len(references))
    return believed if differs else replace(believed, camera=camera)


def _doubted(
    found: PoseEstimate,
    pixels: Float64Array,
    points: Float64Array,
    camera: Camera,
    redundancy: int,
) -> Believed:
    """The camera of a pose that was found, and what else of it the matches contradict.

    Cells lie on a grid and references are wrong together: their errors are those of dense coordinates.
    """
    matches = Correspondences(pixels, points, kind="dense", redundancy=float(redundancy))
    doubted = with_camera_doubt(found, matches, camera, ray=False)
    believed = found.camera or camera
    if not doubted.camera_doubt:
        return Believed(believed)
    return Believed(believed, doubted.covariance - found.covariance, doubted.camera_doubt)

"""Whether a query's focal length can be right, by its matches with all references.

With a wrong one, all references agree on a pose that is off along the viewing direction: nothing that comes
after could tell.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gnn_relpose.matched.scene import Scene
from reloc_core.geometry import project
from reloc_core.solvers import AbsolutePoseOptions, estimate_absolute_pose
from reloc_core.types import Camera

_TOLERATED = 0.02  # of the focal length: less moves a pose by less than the cells' own errors
_THRESHOLD = 0.015  # of ray coordinates: matches are good to half a cell, about 0.008
_SIGMAS = 3.0
_FEWEST = 40  # matches; fewer tell nothing of a focal length


def believed_camera(
    camera: Camera, scene: Scene, references: np.ndarray, seen: np.ndarray, stats: np.ndarray
) -> Camera:
    """The camera of a query, with the focal length of its matches where they contradict the given one.

    Args:
        camera: as given.
        scene: what the references are of.
        references: (N,) images of the scene.
        seen: (N, K, 2) rays of their cells in the query, by `camera`.
        stats: (N, K, 3) of these matches, see `soft_matches`.

    Returns:
        `camera` itself where the matches agree with it, say nothing or cannot tell.
    """
    inverse_depth, rays = scene.inverse_depth[references], scene.rays[references]
    usable = (inverse_depth > 0) & (stats[..., 2] > 0)
    usable &= np.isfinite(rays).all(-1) & np.isfinite(seen).all(-1)
    row, cell = np.nonzero(usable)
    if len(row) < _FEWEST:
        return camera
    depth = 1 / inverse_depth[row, cell].astype(np.float64)
    points_ref = np.append(rays[row, cell], np.ones((len(row), 1)), axis=1) * depth[:, None]
    poses = scene.poses[references][row]
    points = np.einsum("nij,nj->ni", poses[:, :3, :3], points_ref) + poses[:, :3, 3]
    pixels, inside = project(camera, np.append(seen[row, cell], np.ones((len(row), 1)), axis=1))
    options = AbsolutePoseOptions(residual="reprojection", threshold=_THRESHOLD * camera.fx)
    asked = pixels[inside], points[inside], camera
    found = estimate_absolute_pose(*asked, options=options)
    if found.success and found.camera is None and abs(found.focal_shift) < _TOLERATED:
        return camera
    if not found.success or found.camera is None:  # else the given one was known to be uncertain
        found = estimate_absolute_pose(*asked, options=replace(options, estimate_focal=True))
    if not found.success or found.camera is None or found.focal_std is None:
        return camera
    unsure = _SIGMAS * found.focal_std / found.camera.fx
    differs = abs(math.log(found.camera.fx / camera.fx)) > max(_TOLERATED, unsure)
    return found.camera if differs else camera

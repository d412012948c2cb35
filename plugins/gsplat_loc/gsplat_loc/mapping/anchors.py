"""Anchors: triangulated key points of the mapping images, steadied by the depth that the field shows.

A Gaussian's centre need not lie on the surface, and its blended descriptor mixes with its neighbours'.
Where the detector fires in several images, though, the rays of the known poses say where the point is;
where they are nearly parallel the rendered depth helps. The mean of the descriptors is what it looks like
(compare the landmarks of ULF-Loc and STDLoc).

Beside each other, rays and rendered depth also tell how wrong the field's surface is: what a pose that is
aligned with a rendering inherits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from gsplat_loc.config import AnchorConfig
from gsplat_loc.field.fieldmap import Anchors
from gsplat_loc.field.gaussians import Gaussians
from gsplat_loc.field.render import Placement, lookup, snapshot, surface
from gsplat_loc.mapping.survey import Survey
from reloc_core.geometry import unproject
from reloc_core.interfaces import Run
from reloc_core.mapping import Observations, Tracks, pinhole_camera
from reloc_core.mapping.tracks import finish_tracks
from reloc_core.types import Float64Array

_MIN_ALPHA = 0.5
_EDGE = 0.15
_MAD = 1.4826
_OBSERVERS = 8
_ERROR_SIDE = 480  # px, shorter side of the image that the field's error is given for


@dataclass(frozen=True)
class Anchored:
    """What comes of a survey and a field.

    Attributes:
        anchors: to match with.
        depth_noise: standard deviation of the rendered depth, relative.
        error_px: standard deviation of the field's displacement between mapping images that see the
            same, per axis, in pixels of an image whose shorter side has 480; 0 where it is unknown.
    """

    anchors: Anchors
    depth_noise: float
    error_px: float


def anchored(
    survey: Survey,
    gaussians: Gaussians,
    at: Placement,
    short_side: int,
    options: AnchorConfig,
    run: Run,
) -> Anchored:
    """Anchors of a trained field.

    Args:
        survey: matched key points.
        gaussians: the field.
        at: how it is rendered.
        short_side: of the renderings.
        options: limits.
        run: progress, device.
    """
    tracks, rays = survey.points.tracks, survey.points.observations
    depths = rendered_depths(survey, gaussians, at, short_side, run)
    noise, error = field_errors(tracks, rays, depths, survey.plan.resolution)
    noise = max(noise, options.depth_noise)
    if noise < options.max_depth_noise:
        rays = replace(rays, depths=depths, depth_noise=noise)
    labels = np.full(len(rays), -1)
    labels[tracks.rows] = tracks.labels
    final = finish_tracks(
        rays, labels, tracks.points, min_views=survey.min_views,
        max_error_px=options.max_error_px, min_parallax_deg=options.min_parallax_deg,
    )  # fmt: skip
    anchors = _described(final, survey, at.origin, options.count)
    run.log("anchored", anchors=len(anchors), depth_noise=round(noise, 4), error_px=round(error, 3))
    return Anchored(anchors, noise, error)


def rendered_depths(
    survey: Survey, gaussians: Gaussians, at: Placement, short_side: int, run: Run
) -> Float64Array:
    """Distances (M,) along the key points' rays to the field's surface; NaN where it cannot be trusted."""
    features = survey.points.features
    found = np.full(len(features), np.nan)
    with run.progress("Rendering depth at key points", len(features.cameras)) as progress:
        for number, (camera, pose) in enumerate(
            zip(features.cameras, features.world_from_cam, strict=True)
        ):
            rows = features.of_image(number)
            target = pinhole_camera(camera, short_side)
            drawn = snapshot(gaussians, target, pose, at)
            direction = unproject(camera, features.pixels[rows])
            depth = lookup(target, direction, drawn.depth, surface(drawn, _MIN_ALPHA, _EDGE))
            length = depth * np.linalg.norm(direction, axis=1)
            found[rows] = np.where(depth > 0, length, np.nan)
            progress.advance()
    return found


def field_errors(
    tracks: Tracks, rays: Observations, depths: Float64Array, resolution: int
) -> tuple[float, float]:
    """How wrong the field's surface is, against the triangulated points.

    Args:
        tracks: points and who observes them.
        rays: of the key points.
        depths: (M,) rendered distances along them.
        resolution: shorter side of the detector's images, whose pixels the rays' errors are in.

    Returns:
        relative standard deviation of the depth along rays (of the half of the points that are known
        best), and the displacement described at `Anchored.error_px`.
    """
    rows, labels = tracks.rows, tracks.labels
    known = np.isfinite(depths[rows])
    offset = tracks.points[labels] - rays.origins(rows)
    distance = np.linalg.norm(offset, axis=1)
    # Along the ray the points themselves are uncertain by their parallax.
    along = np.einsum("ni,nij,nj->n", rays.rays[rows], tracks.covariances[labels], rays.rays[rows])
    doubt = np.sqrt(np.maximum(along, 0)) / np.maximum(distance, 1e-12)
    chosen = known & (doubt <= np.median(doubt[known])) if known.any() else known
    if int(chosen.sum()) < 20:
        return float("inf"), 0.0
    relative = depths[rows][chosen] / distance[chosen] - 1
    noise = _MAD * float(np.median(np.abs(relative)))
    # The surface under one key point, seen from the next image of the same track.
    same = labels[1:] == labels[:-1]
    first, second = rows[:-1][same], rows[1:][same]
    lifted = rays.origins(first) + depths[first, None] * rays.rays[first]
    usable = np.isfinite(depths[first])
    error = rays.errors(lifted[usable], second[usable])
    # Median of a Rayleigh distribution: 1.1774 standard deviations of each axis.
    spread = float(np.median(error)) / 1.1774 * _ERROR_SIDE / resolution
    return noise, spread


def _described(tracks: Tracks, survey: Survey, origin: Float64Array, count: int) -> Anchors:
    """The best tracks by views and agreement, with their descriptors."""
    features = survey.points.features
    views = tracks.views
    sums = torch.zeros(len(tracks), features.descriptors.shape[1])
    sums.index_add_(
        0, torch.from_numpy(tracks.labels), torch.from_numpy(features.descriptors[tracks.rows])
    )
    agreement = (sums.norm(dim=1) / torch.from_numpy(np.maximum(views, 1)).float()).numpy()
    chosen = _best(tracks.points, views * agreement**2, count)
    colors = replace(survey.points, tracks=tracks).colors[chosen]
    return Anchors(
        torch.from_numpy((tracks.points[chosen] - origin).astype(np.float32)),
        F.normalize(sums[torch.from_numpy(chosen)], dim=1),
        torch.from_numpy(views[chosen].astype(np.int32)),
        torch.from_numpy(agreement[chosen].astype(np.float32)),
        torch.from_numpy(colors),
        torch.from_numpy(_observers(tracks, features.images)[chosen]),
    )


def _observers(tracks: Tracks, images: np.ndarray) -> np.ndarray:
    """(L, 8) int32 images that observe each point, evenly chosen where there are more; -1 pads."""
    table = np.full((len(tracks), _OBSERVERS), -1, np.int32)
    views = tracks.views
    place = np.arange(len(tracks.labels)) - np.repeat(np.cumsum(views) - views, views)
    # Every view its column; where there are more than columns, later ones overwrite evenly.
    column = np.where(
        views[tracks.labels] <= _OBSERVERS, place,
        place * _OBSERVERS // np.maximum(views[tracks.labels], 1),
    )  # fmt: skip
    table[tracks.labels, column] = images[tracks.rows]
    return table


def _best(points: Float64Array, score: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` points, the best of each neighbourhood before any second best."""
    if len(points) <= most:
        return np.arange(len(points))
    size = np.ptp(points, axis=0).max() / 32
    cell = np.floor((points - points.min(0)) / size).astype(np.int64) @ [1, 64, 4096]
    order = np.lexsort((-score, cell))
    begins = np.flatnonzero(np.concatenate([[True], np.diff(cell[order]) != 0]))
    place = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    rank = np.empty(len(points), int)
    rank[order] = place
    return np.sort(np.lexsort((-score, rank))[:most])

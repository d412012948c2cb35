"""What the key points of the mapping images say about a scene, before anything expensive begins.

They are matched and triangulated once. The points start a field where nothing better is there; with the
field's depth they become anchors; and their number tells in time whether the images suffice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from gsplat_loc.config import AnchorConfig
from reloc_core.errors import DataError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping import Reconstruction, ReconstructionOptions, evenly, reconstruct

_LOG = logging.getLogger(__name__)
_FEW = 100  # images below which each counts: more of its pixels, and every pair that may overlap
_SURE_VIEWS = 3  # images that observe a point that can be trusted by itself
_SURE_POINTS = 300  # such points in the median image make the others superfluous
_POOR_POINTS = 30  # in an image: fewer hardly tie it to the others
_POOR_SHARE = 0.2  # of the images with so few points is worth a warning


@dataclass(frozen=True)
class Plan:
    """How the images are described and matched; 0 in the configuration leaves it to their number.

    Attributes:
        resolution: shorter side of the images that the detector sees.
        keypoints: per image.
        near: partners of an image by similarity.
        max_angle_deg: largest angle between viewing directions of matched images.
    """

    resolution: int
    keypoints: int
    near: int
    max_angle_deg: float


def plan(dataset: Dataset, frames: np.ndarray, options: AnchorConfig) -> Plan:
    """Few images are looked at closer."""
    if len(frames) >= _FEW:
        return Plan(options.resolution or 480, options.keypoints or 768, 2, 50.0)
    cameras = [dataset.frames[int(i)].camera for i in frames]
    side = int(np.median([min(camera.width, camera.height) for camera in cameras]))
    resolution = options.resolution or min(max(side, 480), 768)
    return Plan(resolution, options.keypoints or 2048, 12, 60.0)


@dataclass(frozen=True)
class Survey:
    """Matched key points of the mapping images.

    Attributes:
        plan: how they were found.
        points: triangulated from two images and more.
        min_views: images that an anchor needs: 3 where such points abound, else 2.
    """

    plan: Plan
    points: Reconstruction
    min_views: int


def survey(dataset: Dataset, frames: np.ndarray, options: AnchorConfig, run: Run) -> Survey:
    """Describe, match and triangulate evenly spread images.

    Raises:
        DataError: the images do not overlap at all.
    """
    chosen = frames[evenly(len(frames), options.images)]
    if len(chosen) < len(frames):
        run.note(
            f"{len(chosen)} of {len(frames)} mapping images give anchors (estimator.anchors.images)."
        )
    how = plan(dataset, chosen, options)
    detector = KeypointDetector(how.resolution).to(run.runtime.device)
    found = reconstruct(
        dataset, chosen, detector, run,
        ReconstructionOptions(
            keypoints=how.keypoints, near=how.near, max_angle_deg=how.max_angle_deg,
            min_similarity=options.min_similarity, max_error_px=options.max_error_px,
            min_views=2, min_parallax_deg=options.min_parallax_deg,
        ),
    )  # fmt: skip
    tracks = found.tracks
    image = found.observations.images[tracks.rows]
    many = tracks.views[tracks.labels] >= _SURE_VIEWS
    sure = np.bincount(image[many], minlength=len(chosen))
    every = np.bincount(image, minlength=len(chosen))
    views = options.min_views or (3 if float(np.median(sure)) >= _SURE_POINTS else 2)
    run.log(
        "surveyed", images=len(chosen), resolution=how.resolution, keypoints=how.keypoints,
        points=len(tracks), views_per_point=round(float(tracks.views.mean()), 2) if len(tracks) else 0,
        points_per_image=float(np.median(every)), min_views=views,
    )  # fmt: skip
    _judge(dataset.name, every, len(tracks))
    return Survey(how, found, views)


def _judge(name: str, per_image: np.ndarray, points: int) -> None:
    """Say it where the images hardly hang together.

    Raises:
        DataError: no point was seen twice.
    """
    if not points:
        raise DataError(
            f"No point of {name} was found in two of its {len(per_image)} images: they do not overlap, or "
            "poses or focal lengths are wrong. 'reloc data check' tells which."
        )
    poor = int((per_image < _POOR_POINTS).sum())
    if poor > _POOR_SHARE * len(per_image):
        _LOG.warning(
            "%s: %d points in all, %.0f in the median image; %d of %d images have fewer than %d. Queries "
            "near those will hardly be localized: add images between them.",
            name, points, float(np.median(per_image)), poor, len(per_image), _POOR_POINTS,
        )  # fmt: skip

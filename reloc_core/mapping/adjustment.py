"""Poses of odometry quality made better: bundle adjustment with the points that the images share.

Images are matched under the given poses with a wide tolerance, the points that follow are adjusted together
with the poses (pycolmap; Triggs et al., Bundle Adjustment, 2000), and both steps are done once more with a
narrow one. Intrinsics are not touched. Images tell no scale, so the result is moved back, as a whole, to
where the given poses were.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from reloc_core.errors import DataError
from reloc_core.geometry import nearest_rotation, rotation_angle_deg
from reloc_core.interfaces import Dataset, Run
from reloc_core.io.colmap import sparse_model
from reloc_core.mapping.features import Detector, Features, describe
from reloc_core.mapping.reconstruction import ReconstructionOptions, match_images
from reloc_core.mapping.tracks import Tracks
from reloc_core.mapping.triangulation import triangulate
from reloc_core.types import Float64Array, Frame

_TOLERANCES_PX = (12.0, 4.0)  # of the rounds: what given poses may be off, and adjusted ones
_LEAST = 20  # points that an image must see for its pose to be adjusted
_LOSS_PX = 1.0
_ITERATIONS = 50


@dataclass(frozen=True)
class Adjusted:
    """Poses after bundle adjustment.

    Attributes:
        world_from_cam: (N, 4, 4), in the world of the given poses.
        adjusted: (N,) whether an image saw enough points; the others keep the pose that they had.
        points: number of points in the last round.
        before_px: median reprojection error of the first round's points under the given poses, in pixels
            of the detector's image.
        after_px: the same of the last round's under the adjusted ones.
        moved: median distance between given and adjusted centres, in units of the poses.
        turned_deg: median angle between given and adjusted poses.
    """

    world_from_cam: Float64Array
    adjusted: np.ndarray
    points: int
    before_px: float
    after_px: float
    moved: float
    turned_deg: float


def adjust_poses(dataset: Dataset, detector: Detector, run: Run, keypoints: int = 2048) -> Adjusted:
    """Adjust the poses of a dataset's images.

    Args:
        dataset: posed; neighbours off by some degrees and a few percent of the scene's depth at most.
        detector: of key points.
        run: progress, threads.
        keypoints: of an image.

    Raises:
        DataError: an image has no pose, or the images share too little.
    """
    frames = np.arange(len(dataset))
    features = describe(dataset, frames, detector, keypoints, run, resumable=False)
    given, errors = features.world_from_cam, []
    for tolerance in _TOLERANCES_PX:
        options = ReconstructionOptions(
            keypoints=keypoints, near=4, spread=12, max_epipolar_px=tolerance, max_error_px=tolerance,
            min_views=3, min_parallax_deg=1.0,
        )  # fmt: skip
        tracks = match_images(features, run, options, resumable=False).tracks(options, run)
        errors.append(float(np.median(tracks.errors)) if len(tracks) else np.nan)
        enough = _seen(features, tracks) >= _LEAST
        if enough.sum() < 3:
            raise DataError(
                f"Only {int(enough.sum())} of {len(frames)} images of {dataset.name} share points with "
                "others under their poses: they overlap too little, or the poses are farther off than an "
                "adjustment can mend. 'reloc data reconstruct' finds poses from images alone."
            )
        with run.progress("Adjusting poses", 1) as progress:
            found = _aligned(_bundle(features, tracks, run.runtime.threads), given, enough)
            poses = np.where(enough[:, None, None], found, given)
            features = replace(features, world_from_cam=poses)
            progress.advance(1, points=str(len(tracks)))
    again = triangulate(features.observations(), tracks.rows, tracks.labels, len(tracks)).positions
    errors.append(
        float(np.median(features.observations().errors(again[tracks.labels], tracks.rows)))
    )
    moved = np.linalg.norm(poses[enough, :3, 3] - given[enough, :3, 3], axis=1)
    turned = rotation_angle_deg(poses[enough, :3, :3], given[enough, :3, :3])
    return Adjusted(poses, enough, len(tracks), errors[0], errors[-1], float(np.median(moved)),
                    float(np.median(turned)))  # fmt: skip


def _seen(features: Features, tracks: Tracks) -> np.ndarray:
    """(N,) points that each image sees."""
    return np.bincount(features.images[tracks.rows], minlength=len(features.frames))


def _bundle(features: Features, tracks: Tracks, threads: int) -> Float64Array:
    """(N, 4, 4) poses that explain the tracks best, up to a similarity."""
    import pycolmap  # takes a while

    images = features.images[tracks.rows]
    order = np.lexsort((tracks.labels, images))
    number = np.empty(len(order), np.int64)  # of each view within its image
    starts = np.searchsorted(images[order], np.arange(len(features.frames) + 1))
    number[order] = np.arange(len(order)) - starts[images[order]]
    pixels = [
        features.pixels[tracks.rows[order[a:b]]] for a, b in itertools.pairwise(starts.tolist())
    ]
    frames = [
        Frame(f"{i}", camera, pose)
        for i, (camera, pose) in enumerate(
            zip(features.cameras, features.world_from_cam, strict=True)
        )
    ]
    model = sparse_model(frames, pixels)
    views = np.searchsorted(tracks.labels, np.arange(len(tracks) + 1))
    for point, (a, b) in zip(tracks.points, itertools.pairwise(views.tolist()), strict=True):
        elements = [pycolmap.TrackElement(int(images[k]) + 1, int(number[k])) for k in range(a, b)]
        model.add_point3D(point, pycolmap.Track(elements), np.zeros(3, np.uint8))
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = _LOSS_PX
    options.ceres.solver_options.max_num_iterations = _ITERATIONS
    options.ceres.solver_options.num_threads = threads
    pycolmap.bundle_adjustment(model, options)
    result = np.tile(np.eye(4), (len(frames), 1, 1))
    for i in range(len(frames)):
        result[i, :3] = model.image(i + 1).cam_from_world().inverse().matrix()
    return result


def _aligned(found: Float64Array, given: Float64Array, chosen: np.ndarray) -> Float64Array:
    """Poses moved, as a whole, by the similarity that brings the chosen ones nearest to the given ones.

    The poses' turns decide about the turn: centres alone (Umeyama) do not where all lie on a line.
    """
    a, b = found[chosen], given[chosen]
    turn = nearest_rotation(np.einsum("nij,nkj->ik", b[:, :3, :3], a[:, :3, :3]))
    middle, target = a[:, :3, 3].mean(0), b[:, :3, 3].mean(0)
    from_middle = (a[:, :3, 3] - middle) @ turn.T
    scale = (from_middle * (b[:, :3, 3] - target)).sum() / max((from_middle**2).sum(), 1e-300)
    result = found.copy()
    result[:, :3, :3] = turn @ found[:, :3, :3]
    result[:, :3, 3] = scale * (found[:, :3, 3] - middle) @ turn.T + target
    return np.asarray(result, np.float64)

"""The estimator `sfm_matching`: find similar mapped images, match keypoints, hand their points on."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from torch import Tensor

from reloc_core import (
    Correspondences,
    DataError,
    Dataset,
    Estimator,
    Localization,
    MapError,
    Query,
    Run,
    Runtime,
    ScenePoints,
)
from reloc_core.features.keypoints import KeypointDetector, Keypoints
from reloc_core.features.vlad import visual_words, vlad
from reloc_core.geometry import unproject
from reloc_core.maps import Map
from reloc_core.types import Float64Array, ImageArray
from sfm_matching.config import MatchingConfig, check
from sfm_matching.triangulation import Rays, choose_partners, match, match_images, triangulate

_CHECKPOINT_EVERY = 50  # images
_MIN_POINTS = 50
_SHARED = 3.0  # matches worth an independent one: chosen on left-out blocks of a mapped video


class MatchingEstimator(Estimator):
    """See the module docstring.

    Args:
        config: options.
    """

    produces = Correspondences

    def __init__(self, config: MatchingConfig) -> None:
        check(config)
        self.config = config
        self.detector: KeypointDetector | None = None
        self.words = torch.zeros(0, 64)
        self.looks = torch.zeros(0, 0)
        self.descriptors: list[Tensor] = []
        self.points: list[Float64Array] = []

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`; RGB and poses suffice.

        Raises:
            DataError: too few images, or too little that matches between them.
        """
        options = self.config
        if len(dataset) < options.min_views:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; triangulation needs at least "
                f"{options.min_views}, from different places."
            )
        kept = min(options.images, len(dataset))
        frames = np.arange(kept) * len(dataset) // kept
        pixels, descriptors = self._describe(dataset, frames, run)
        poses = np.stack([_pose(dataset, int(i)) for i in frames])
        rays = self._rays(dataset, frames, poses, pixels)
        words = visual_words(descriptors.flatten(0, 1), np.random.default_rng(run.runtime.seed))
        looks = torch.stack([vlad(d, words) for d in descriptors])
        pairs = choose_partners(looks, poses, options.partners, options.max_angle_deg)
        with run.progress("Matching images", len(pairs)) as progress:
            first, second = match_images(
                descriptors,
                rays,
                pairs,
                options.min_similarity,
                options.max_epipolar_px,
                progress.advance,
            )
        numbers, points = triangulate(
            rays, first, second, options.max_error_px, options.min_views, options.min_parallax_deg
        )
        if len(numbers) < _MIN_POINTS:
            raise DataError(
                f"Only {len(numbers)} keypoints of {dataset.name} could be triangulated: its images "
                "overlap too little, or their poses or focal length are wrong. 'reloc data check' "
                "tells which."
            )
        tensors = {
            "descriptors": descriptors.flatten(0, 1)[torch.from_numpy(numbers)].half(),
            "points": torch.from_numpy(points),
            "counts": torch.from_numpy(np.bincount(numbers // rays.count, minlength=kept)),
            "looks": looks.half(),
            "words": words,
        }
        run.map.save("images", tensors, {"resolution": options.resolution})
        run.map.details.update(images=kept, pairs=len(pairs), points=len(points))
        # The rounded values that are stored, so that this estimator and a loaded one agree.
        self._use(tensors)

    def _describe(
        self, dataset: Dataset, frames: np.ndarray, run: Run
    ) -> tuple[np.ndarray, Tensor]:
        """Keypoints (N, count, 2), NaN where an image has fewer, and descriptors (N, count, 64)."""
        count, begin = self.config.keypoints, 0
        pixels = np.full((len(frames), count, 2), np.nan)
        descriptors = torch.zeros(len(frames), count, 64)
        if run.map.has_checkpoint:  # an interrupted run left this
            saved, metadata = run.map.load_checkpoint()
            begin = int(metadata["images"])
            pixels[:begin], descriptors[:begin] = saved["pixels"].numpy(), saved["descriptors"]
        self.detector = KeypointDetector(self.config.resolution)
        with run.progress("Describing images", len(frames)) as progress:
            progress.advance(begin)
            for row in range(begin, len(frames)):
                found = self.detector.detect([dataset[int(frames[row])].image], count)[0]
                pixels[row, : len(found)] = found.pixels
                descriptors[row, : len(found)] = found.descriptors
                done = row + 1
                if done % _CHECKPOINT_EVERY == 0:
                    kept = {
                        "pixels": torch.from_numpy(pixels[:done]),
                        "descriptors": descriptors[:done],
                    }
                    run.map.save_checkpoint(kept, {"images": done})
                progress.advance()
        return pixels, descriptors

    def _rays(
        self, dataset: Dataset, frames: np.ndarray, poses: Float64Array, pixels: np.ndarray
    ) -> Rays:
        cameras = [dataset.frames[int(i)].camera for i in frames]
        directions = np.stack(
            [
                unproject(camera, found) @ pose[:3, :3].T
                for camera, found, pose in zip(cameras, pixels, poses, strict=True)
            ]
        )
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        # Thresholds are meant at the resolution of the detector.
        focals = [c.fx * self.config.resolution / min(c.width, c.height) for c in cameras]
        return Rays(
            directions.reshape(-1, 3), poses[:, :3, 3], pixels.shape[1], float(np.median(focals))
        )

    # ---------------------------------------------------------------------------------- maps

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map was made at another resolution.
        """
        tensors, metadata = scene_map.tensors("images")
        if metadata.get("resolution") != self.config.resolution:
            raise MapError(
                f"{scene_map.path} was made at estimator.resolution={metadata.get('resolution')}. "
                "Leave the option out, or train again."
            )
        self.detector = KeypointDetector(self.config.resolution)
        self._use(tensors)

    def _use(self, tensors: Mapping[str, Tensor]) -> None:
        counts = tensors["counts"].tolist()
        self.words, self.looks = tensors["words"], tensors["looks"].float()
        self.descriptors = list(tensors["descriptors"].float().split(counts))
        self.points = [p.numpy() for p in tensors["points"].split(counts)]

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the triangulated key points."""
        return ScenePoints(np.concatenate(self.points)) if self.detector is not None else None

    # -------------------------------------------------------------------------- localization

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: every match with every retrieved image."""
        if self.detector is None:
            raise MapError("sfm_matching has no map yet: call load or fit first.")
        found = self.detector.detect([query.image], self.config.query_keypoints)[0]
        pixels, points, weights = [np.zeros((0, 2))], [np.zeros((0, 3))], [np.zeros(0)]
        for image in self.retrieve(found):
            ours, theirs, similarity = match(
                found.descriptors, self.descriptors[image], self.config.min_similarity
            )
            pixels.append(found.pixels[ours])
            points.append(self.points[image][theirs])
            weights.append(similarity.astype(np.float64))
        points2d = np.concatenate(pixels)
        different = len(np.unique(points2d, axis=0))
        return Correspondences(
            points2d=points2d,
            points3d=np.concatenate(points),
            weights=np.concatenate(weights) ** 2,
            kind="sparse",
            # A keypoint that matches in five images was still seen only once.
            redundancy=_SHARED * max(1.0, len(points2d) / max(different, 1)),
        )

    def retrieve(self, found: Keypoints) -> list[int]:
        """Map images that look most like a query, best first; none for an image without keypoints."""
        if not len(found):
            return []
        similarity = self.looks @ vlad(found.descriptors, self.words)
        best = similarity.topk(min(self.config.retrieved, len(similarity))).indices
        return [int(i) for i in best]

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """The matched keypoints, inliers of the pose in green."""
        evidence = self.estimate(query)
        picture = query.image.copy()
        inliers = localization.inliers
        if inliers is None or len(inliers) != len(evidence.points2d):
            inliers = np.zeros(len(evidence.points2d), bool)
        for pixel, good in sorted(zip(evidence.points2d, inliers, strict=True), key=lambda p: p[1]):
            center = (round(float(pixel[0])), round(float(pixel[1])))
            cv2.circle(picture, center, 3, (40, 220, 60) if good else (230, 60, 50), 1, cv2.LINE_AA)
        return {"matched keypoints (green: inliers)": picture}


def _pose(dataset: Dataset, index: int) -> Float64Array:
    pose = dataset.frames[index].world_from_cam
    if pose is None:
        raise DataError(f"{dataset.frames[index].name} has no pose; mapping needs one.")
    return pose

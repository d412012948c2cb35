"""The estimator `sfm_matching`: find similar mapped images, match keypoints, hand their points on."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch

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
from reloc_core.features.vlad import image_looks, vlad
from reloc_core.mapping import (
    Cover,
    ReconstructionOptions,
    describe,
    evenly,
    match_images,
    mutual_matches,
    require_points,
    star_points,
    tell_used,
)
from reloc_core.maps import Map
from reloc_core.types import ImageArray
from sfm_matching.config import MatchingConfig, check

_MIN_POINTS = 50
_SHARED = 3.0  # matches worth an independent one: chosen on left-out blocks of a mapped video


class MatchingEstimator(Estimator):
    """See the module docstring.

    Args:
        config: options.
    """

    produces = Correspondences
    memorizes = False
    shares = True

    def __init__(self, config: MatchingConfig) -> None:
        check(config)
        self.config = config
        self.detector = KeypointDetector(config.resolution)
        self.tensors: Mapping[str, torch.Tensor] | None = None

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`; RGB and poses suffice.

        Every keypoint of the map gets a point of its own, from itself and its direct matches. Matches
        are never joined into longer tracks, so a wrong one cannot merge two scene points.

        Raises:
            DataError: too few images, or too little that matches between them.
        """
        options = self.config
        if len(dataset) < options.min_views:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; triangulation needs at least "
                f"{options.min_views}, from different places."
            )
        frames = evenly(len(dataset), options.images)
        tell_used(dataset, frames, run, "estimator.images")
        features = describe(dataset, frames, self.detector, options.keypoints, run)
        rng = np.random.default_rng(run.runtime.seed)
        looks, words = image_looks(features.descriptors, features.counts, rng)
        near = options.partners // 3
        wanted = ReconstructionOptions.of(options, near=near, spread=options.partners - near)
        matches = match_images(features, run, wanted, looks.numpy())
        rows, points = star_points(
            matches.observations, matches.first, matches.second, max_error_px=2.5,
            min_views=options.min_views, min_parallax_deg=options.min_parallax_deg,
        )  # fmt: skip
        require_points(len(rows), _MIN_POINTS, dataset, len(frames))
        partners = np.bincount(
            np.concatenate([matches.first, matches.second]), minlength=len(features)
        )
        cover = Cover.of_observations(features.images[rows], 1 + partners[rows], len(frames))
        cover.warn(run)
        # Rounded as they are stored, so that this estimator and a loaded one agree.
        self.tensors = {
            "descriptors": torch.from_numpy(features.descriptors[rows]).half(),
            "points": torch.from_numpy(points.positions),
            "colors": torch.from_numpy(features.colors[rows]),
            "counts": torch.from_numpy(np.bincount(features.images[rows], minlength=len(frames))),
            "looks": looks.half(),
            "words": words,
        }
        run.map.save("images", self.tensors, {"resolution": options.resolution})
        run.map.details.update(
            images=len(frames), pairs=len(matches.pairs), points=len(rows), cover=vars(cover)
        )
        self._use()

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map was made at another resolution.
        """
        self.tensors, metadata = scene_map.tensors("images")
        if metadata.get("resolution") != self.config.resolution:
            raise MapError(
                f"{scene_map.path} was made at estimator.resolution={metadata.get('resolution')}. "
                "Leave the option out, or train again."
            )
        self._use()

    def _use(self) -> None:
        assert self.tensors is not None
        counts = self.tensors["counts"].tolist()
        self.looks = self.tensors["looks"].float()
        self.descriptors = [d.numpy() for d in self.tensors["descriptors"].float().split(counts)]
        self.points = [p.numpy() for p in self.tensors["points"].split(counts)]

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the triangulated key points."""
        if self.tensors is None:
            return None
        colors = self.tensors.get("colors")  # maps of earlier versions have none
        return ScenePoints(
            self.tensors["points"].numpy(), None if colors is None else colors.numpy()
        )

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: every match with every retrieved image."""
        if self.tensors is None:
            raise MapError("sfm_matching has no map yet: call load or fit first.")
        found = self.detector.detect([query.image], self.config.query_keypoints)[0]
        descriptors = found.descriptors.numpy()
        pixels, points, weights, supported = (
            [np.zeros((0, 2))],
            [np.zeros((0, 3))],
            [np.zeros(0)],
            0,
        )
        images = self.retrieve(found)
        for image in images:
            ours, theirs, similarity = mutual_matches(
                descriptors, self.descriptors[image], self.config.min_similarity
            )
            pixels.append(found.pixels[ours])
            points.append(self.points[image][theirs])
            weights.append(similarity.astype(np.float64) ** 2)
            supported += len(ours) >= _MIN_POINTS
        points2d, strength = np.concatenate(pixels), np.concatenate(weights)
        different = len(np.unique(points2d, axis=0))
        return Correspondences(
            points2d=points2d,
            points3d=np.concatenate(points),
            weights=strength,
            kind="sparse",
            # A keypoint that matches in five images was still seen only once.
            redundancy=_SHARED * max(1.0, len(points2d) / max(different, 1)),
            signals={
                "retrieval": supported / max(len(images), 1),
                "similarity": float(strength.mean()) if len(strength) else 0.0,
            },
        )

    def retrieve(self, found: Keypoints) -> list[int]:
        """Map images that look most like a query, best first; none for an image without keypoints."""
        if not len(found) or self.tensors is None:
            return []
        similarity = self.looks @ vlad(found.descriptors, self.tensors["words"])
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

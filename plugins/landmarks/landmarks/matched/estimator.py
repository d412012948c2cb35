"""Key points matched with triangulated scene points, twice.

Mapping describes the images (resumable), matches them, and triangulates landmarks with the known poses;
RGB and poses suffice. A query is matched with the landmarks of the mapped images that look most like it;
the pose that follows predicts where every landmark should appear, and the key points are matched again
near there. That pose only guides: the one that counts is the solver's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from landmarks.config import LandmarkConfig
from landmarks.matched.plan import Plan, choose_thresholds, make_plan
from landmarks.matched.scene import LandmarkMap
from landmarks.shared.extension import Sightings
from landmarks.shared.matches import Matches, by_looks, by_place
from landmarks.shared.selection import keep_best
from landmarks.shared.views import looks_of
from reloc_core.errors import MapError
from reloc_core.features.keypoints import KeypointDetector, Keypoints
from reloc_core.features.sift import SiftDetector
from reloc_core.features.vlad import image_looks
from reloc_core.interfaces import Dataset, Run, Runtime
from reloc_core.mapping import (
    Cover,
    Features,
    Observations,
    ReconstructionOptions,
    Tracks,
    describe,
    expected_in_view,
    match_images,
    require_points,
    spread_frames,
    tell_used,
)
from reloc_core.maps import Map
from reloc_core.solvers import PoseEstimate, estimate_absolute_pose
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Correspondences, Float64Array, Query, ScenePoints

_MIN_LANDMARKS = 50
_GUIDES = 12  # inliers of a pose that is believed enough to look where it says
_SLACK = 0.05  # of cosines
_SUPPORT = 8  # inliers that an image must share with a query to support it
_WORDS = 16
_PIXEL_NOISE = 0.5  # px of the described image, where the key points do not tell
_KNOWN_FOCAL = 0.02


class MatchedLandmarks:
    """See the module docstring; the methods are those of `Estimator`."""

    def __init__(self, config: LandmarkConfig) -> None:
        self.config = config
        self.detector: KeypointDetector | SiftDetector | None = None
        self.plan: Plan | None = None
        self.scene: LandmarkMap | None = None

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run, photographs: bool, why: str) -> None:
        """Map.

        Args:
            dataset: at least two images.
            run: see `Estimator.fit`.
            photographs: rather than frames of a film.
            why: they are mapped by matching.

        Raises:
            DataError: too little that matches between the images.
        """
        wanted = self.config.triangulation
        used = [dataset.frames[i] for i in spread_frames(dataset, wanted.max_images)]
        plan = make_plan(self.config, used, photographs)
        run.note(f"Mapping {len(used)} images of {dataset.name} by matching ({why}): {plan}.")
        self._begin(plan, run.runtime)
        features = self._described(dataset, run)
        count = len(features.frames)
        rng = numpy_rng(run.runtime.seed, "visual words")
        looks, words = image_looks(features.descriptors, features.counts, rng, _WORDS)
        options = self._options()
        matches = match_images(features, run, options, looks.numpy(), run.runtime.threads)

        def build(views: int, angle: float) -> Tracks:
            return matches.tracks(replace(options, min_views=views, min_parallax_deg=angle), run)

        tracks, views, angle = choose_thresholds(
            self.config, build, features.images, count, photographs
        )
        cover = Cover.of(tracks, features.images, count)
        run.note(
            f"{len(tracks)} landmarks from at least {views} views and {angle:g} degrees; on average "
            f"{cover.views:.1f} views each, {cover.median:.0f} in an image (median)."
        )
        require_points(len(tracks), _MIN_LANDMARKS, dataset, count)
        cover.warn(run)
        observations = matches.observations
        tracks = tracks.subset(best_known(tracks, observations, plan.landmarks))
        self._save(
            LandmarkMap.of(tracks, features, observations, looks, words), run,
            images=count, pairs=len(matches.pairs), landmarks=len(tracks), min_views=views,
            min_parallax_deg=angle, cover=vars(cover), plan=vars(plan),
        )  # fmt: skip

    def extend(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.extend`: landmarks stay where they are, and new ones come with the images."""
        if self.plan is None or self.scene is None:
            raise MapError("landmarks has no map yet: call load first.")
        before = run.map.details
        try:
            views, angle = int(before["min_views"]), float(before["min_parallax_deg"])
            images, landmarks = int(before["images"]), int(before["landmarks"])
        except (KeyError, TypeError, ValueError) as error:
            raise MapError(f"The map does not say how it was made ({error}).") from error
        features = self._described(dataset, run)
        looks = looks_of(features, self.scene.words)
        again = Sightings.of(
            features, self.scene.keys, self.scene.in_view, self.plan.window_similarity
        )
        options = replace(self._options(), min_views=views, min_parallax_deg=angle)
        matches = match_images(features, run, options, looks.numpy(), run.runtime.threads)
        observations, tracks = matches.observations, again.others(matches).tracks(options, run)
        tracks = tracks.subset(best_known(tracks, observations, self.plan.landmarks))
        run.note(again.told(len(features.frames), len(tracks)))
        self._save(
            self.scene.extended(tracks, features, observations, looks, again), run,
            images=images + len(features.frames), landmarks=landmarks + len(tracks),
        )  # fmt: skip

    def _described(self, dataset: Dataset, run: Run) -> Features:
        assert self.detector is not None
        assert self.plan is not None
        frames = spread_frames(dataset, self.config.triangulation.max_images)
        tell_used(dataset, frames, run, "estimator.triangulation.max_images")
        return describe(
            dataset,
            frames,
            self.detector,
            self.plan.mapping,
            run,
            batch=self.config.keypoints.batch,
        )

    def _options(self) -> ReconstructionOptions:
        assert self.plan is not None
        plan = self.plan
        return ReconstructionOptions.of(
            self.config.triangulation, near=plan.near, spread=plan.spread, ratio=plan.ratio,
            min_similarity=plan.min_similarity, reach=0.0,
        )  # fmt: skip

    def _save(self, scene: LandmarkMap, run: Run, **details: Any) -> None:
        assert self.plan is not None
        run.map.save("landmarks", scene.tensors(), vars(self.plan))
        # As it is stored, so that the fitted estimator and the loaded map agree.
        self.scene = LandmarkMap.from_tensors(scene.tensors())
        run.map.details.update(details)

    def _begin(self, plan: Plan, runtime: Runtime) -> None:
        self.plan = plan
        if plan.kind == "sift":
            self.detector = SiftDetector(plan.resolution)
        else:
            fast = runtime.device == "cpu"
            self.detector = KeypointDetector(plan.resolution, fast).to(runtime.device)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map is for other key points or another resolution.
        """
        tensors, metadata = scene_map.tensors("landmarks")
        try:
            plan = Plan(**metadata)
            self.scene = LandmarkMap.from_tensors(tensors)
        except (KeyError, TypeError) as error:
            raise MapError(f"{scene_map.path} lacks {error}. Train it again.") from error
        keypoints, matching = self.config.keypoints, self.config.matching
        for option, asked, made in (
            ("kind", None if keypoints.kind == "auto" else keypoints.kind, plan.kind),
            ("resolution", keypoints.resolution, plan.resolution),
        ):
            if asked is not None and asked != made:
                raise MapError(
                    f"{scene_map.path} was made with {option} {made}, not {asked}. "
                    "Leave the option out, or train again."
                )
        changes = {
            "query": keypoints.query,
            "min_similarity": matching.min_similarity,
            "window_similarity": matching.window_similarity,
        }
        plan = Plan(**{**metadata, **{k: v for k, v in changes.items() if v is not None}})
        self._begin(plan, runtime)

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the landmarks."""
        return None if self.scene is None else ScenePoints(self.scene.points, self.scene.colors)

    # -------------------------------------------------------------------------- localization

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: at most one landmark per key point."""
        if self.detector is None or self.scene is None or self.plan is None:
            raise MapError("landmarks has no map yet: call load or fit first.")
        found = self.detector.detect([query.image], self.plan.query)[0]
        if not len(found):
            return Correspondences(
                np.zeros((0, 2)),
                np.zeros((0, 3)),
                kind="sparse",
                reason="the image has no key points",
            )
        descriptors = found.descriptors.cpu()
        seen = expected_in_view(query.prior, query.camera, self.scene.points)
        if seen is None:
            candidates = self.scene.candidates(descriptors, self.config.matching.retrieved)
        else:
            candidates = np.flatnonzero(seen)
        matches, best = by_looks(
            descriptors.numpy(), self.scene.keys, candidates, self.plan.min_similarity
        )
        # A pose that is a little off finds support for itself among dense landmarks: what is near must
        # also look nearly as much like the key point as anything does.
        least = np.maximum(best - _SLACK, self.plan.window_similarity)
        looks, first, agreeing, pose = matches, len(matches), 0, None
        # The window is meant in pixels of the image that the detector saw.
        pixel = max(min(query.image.shape[:2]) / self.plan.resolution, 1e-3)
        for window in self.config.matching.windows_px:
            guess = self._guess(query, found, matches)
            if guess is None:
                break
            pose, agreeing = guess, guess.num_inliers
            visible, places = self.scene.in_view(guess.camera or query.camera, guess.world_from_cam)
            again = by_place(
                found.pixels, descriptors.numpy(), self.scene.keys, visible, places,
                window * pixel, least,
            )  # fmt: skip
            if len(again) < pose.num_inliers / 2:
                break
            matches, agreeing = again.completed(looks), len(again)
        return self._evidence(query, found, matches, first, agreeing, pose, pixel)

    def _guess(self, query: Query, found: Keypoints, matches: Matches) -> PoseEstimate | None:
        """The pose that guides, if there is one."""
        assert self.scene is not None
        estimate = estimate_absolute_pose(
            found.pixels[matches.keypoints],
            self.scene.points[matches.landmarks],
            query.camera,
            weights=matches.similarity.astype(np.float64) ** 2,
            options={
                "residual": "reprojection",
                # Landmarks err together: without it they would seem to know the focal length better.
                "redundancy": self.config.matching.redundancy,
                "estimate_focal": query.camera.focal_sigma > _KNOWN_FOCAL,
            },
        )
        return estimate if estimate.success and estimate.num_inliers >= _GUIDES else None

    def _evidence(
        self,
        query: Query,
        found: Keypoints,
        matches: Matches,
        first: int,
        agreeing: int,
        pose: PoseEstimate | None,
        pixel: float,
    ) -> Correspondences:
        assert self.scene is not None
        options = self.config.matching
        pixels, points = found.pixels[matches.keypoints], self.scene.points[matches.landmarks]
        noise = found.noise
        variances, covariances, redundancy = None, None, options.redundancy
        signals = {
            "similarity": float(matches.similarity.mean()) if len(matches) else 0.0,
            "matches": float(np.log1p(len(matches))),
        }
        if pose is not None and len(matches):
            where = pose.world_from_cam
            covariances = self.scene.covariances_of(matches.landmarks)
            variances = self.scene.lateral_variances(matches.landmarks, covariances, where)
            distance = np.linalg.norm(points - where[:3, 3], axis=1)
            # Errors that landmarks share do not average out over many of them. They are known relative to
            # those of the mapping images' key points, which are about as well located as the query's.
            relative = variances * ((pose.camera or query.camera).fx / distance) ** 2
            redundancy *= 1 + options.shared * float(np.median(relative)) * agreeing
            signals |= self._signals(matches, first, agreeing, pose, where, distance)
        return Correspondences(
            points2d=pixels,
            points3d=points,
            weights=matches.similarity.astype(np.float64) ** 2,
            variances=variances,
            covariances=covariances,
            pixel_noise=_PIXEL_NOISE * pixel if noise is None else noise[matches.keypoints],
            kind="sparse",
            redundancy=redundancy,
            signals=signals,
        )

    def _signals(
        self,
        matches: Matches,
        first: int,
        agreeing: int,
        pose: PoseEstimate,
        where: Float64Array,
        distance: Float64Array,
    ) -> dict[str, float]:
        """What tells a sure pose from a doubtful one, larger is better."""
        assert self.scene is not None
        used = np.zeros(len(self.scene.points), bool)
        used[matches.landmarks] = True
        support = sum(int(used[seen].sum()) >= _SUPPORT for seen in self.scene.seen)
        rays = self.scene.rays_from(where, matches.landmarks)
        cosine = np.einsum("ni,ni->n", rays, self.scene.directions[matches.landmarks])
        scale = np.abs(np.log2(distance / self.scene.distances[matches.landmarks]))
        return {
            "agreement": pose.num_inliers / max(first, 1),
            "visible": agreeing / max(matches.possible, 1),
            "images": float(np.log1p(support)),
            "viewpoint": float(cosine.mean()),
            "scale": -float(scale.mean()),
        }


def best_known(tracks: Tracks, observations: Observations, most: int) -> np.ndarray:
    """Indices of at most `most` tracks such that every image keeps those whose place is best known.

    By relative uncertainty: landmarks from a narrow baseline are biased in depth together, and queries
    from elsewhere suffer from it.

    Args:
        tracks: to choose from.
        observations: what they were made of.
        most: at most so many.
    """
    longest = np.sqrt(np.linalg.eigvalsh(tracks.covariances)[:, 2])
    return keep_best(tracks, observations.images, longest / tracks.distances(observations), most)

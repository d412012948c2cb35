"""The estimator `scr_landmarks`: scene coordinates of XFeat key points by a position decoder.

It maps in three steps: describe the images (resumable), triangulate landmarks from matched key points
and the known poses, train the landmarks' keys. RGB and poses suffice; depth is not used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.errors import DataError, MapError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.features.vlad import visual_words, vlad
from reloc_core.geometry import unproject
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.types import Correspondences, Float64Array, Query, ScenePoints
from scr_glace.decoder import PositionDecoder, train_keys
from scr_glace.landmark_config import LandmarkConfig, check
from scr_glace.pairs import choose_pairs, farthest_points, pose_features
from scr_glace.randomness import Stream, numpy_rng
from scr_glace.tracks import Landmarks, Observations, build_landmarks, match_pairs

_CHECKPOINT_SECONDS = 10.0
_MIN_LANDMARKS = 50


class LandmarkEstimator(Estimator):
    """See the module docstring."""

    produces = Correspondences

    def __init__(self, config: LandmarkConfig) -> None:
        check(config)
        self.config = config
        self.detector: KeypointDetector | None = None
        self.decoder: PositionDecoder | None = None
        self.origin = np.zeros(3)

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or too little that matches between them.
        """
        options, seed = self.config, run.runtime.seed
        if len(dataset) < options.triangulation.min_views:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; a map needs at least "
                f"{options.triangulation.min_views}, from different places."
            )
        self.detector = KeypointDetector(options.keypoints.resolution).to(run.runtime.device)
        poses = np.stack([frame.world_from_cam for frame in dataset.frames])  # type: ignore[arg-type]
        frames = np.arange(len(dataset))
        if len(frames) > options.triangulation.max_images:
            frames = np.sort(
                farthest_points(pose_features(poses), options.triangulation.max_images)
            )
        poses = poses[frames]
        self.origin = poses[:, :3, 3].mean(0)
        pixels, descriptors = self._describe(dataset, frames, run)
        observations = self._observations(dataset, frames, poses, pixels)
        with torch.inference_mode():
            sample = descriptors.reshape(-1, descriptors.shape[-1])
            words = visual_words(sample, numpy_rng(seed, Stream.WORDS))
            looks = torch.stack([vlad(d, words) for d in descriptors])
        wanted = options.triangulation
        pairs = choose_pairs(poses, looks, wanted.near, wanted.spread, wanted.max_angle_deg)
        with run.progress("Matching images", len(pairs)) as progress:
            first, second = match_pairs(
                descriptors,
                observations,
                pairs,
                wanted.min_similarity,
                wanted.max_epipolar_px,
                progress,
            )
        with run.progress("Triangulating", 1) as progress:
            landmarks = build_landmarks(
                observations, first, second, wanted.min_views, wanted.max_error_px,
                wanted.min_parallax_deg,
            )  # fmt: skip
            progress.advance(1, landmarks=str(len(landmarks.points)))
        if len(landmarks.points) < _MIN_LANDMARKS:
            raise DataError(
                f"Only {len(landmarks.points)} scene points could be triangulated from "
                f"{len(frames)} images of {dataset.name}: they overlap too little or their poses or "
                "focal length are wrong. 'reloc data check' tells which."
            )
        self._train(landmarks, descriptors, run)
        self._save(run, images=len(frames), pairs=len(pairs), triangulated=len(landmarks.points))

    def _describe(
        self, dataset: Dataset, frames: np.ndarray, run: Run
    ) -> tuple[Float64Array, Tensor]:
        """Key points of all images, (N, count, 2) pixels and (N, count, C); NaN and 0 where fewer."""
        assert self.detector is not None
        count, batch = self.config.keypoints.mapping, self.config.keypoints.batch
        pixels = np.full((len(frames), count, 2), np.nan)
        descriptors = torch.zeros(len(frames), count, 64)
        done = 0
        if run.map.has_checkpoint:
            saved, state = run.map.load_checkpoint()
            done = int(state["done"])
            pixels[:done] = saved["pixels"].double().numpy()
            descriptors[:done] = saved["descriptors"]
        saved_at = time.monotonic()
        with (
            run.progress("Describing images", len(frames)) as progress,
            ThreadPoolExecutor(1, thread_name_prefix="read-images") as pool,
        ):
            progress.advance(done)
            starts = list(range(done, len(frames), batch))

            def read(start: int) -> list[Query]:
                return [dataset[int(i)] for i in frames[start : start + batch]]

            ahead = pool.submit(read, starts[0]) if starts else None
            for position, start in enumerate(starts):
                assert ahead is not None
                queries = ahead.result()
                if position + 1 < len(starts):
                    ahead = pool.submit(read, starts[position + 1])
                for offset, found in enumerate(
                    self.detector.detect([q.image for q in queries], count)
                ):
                    pixels[start + offset, : len(found)] = found.pixels
                    descriptors[start + offset, : len(found)] = found.descriptors
                progress.advance(len(queries))
                if time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                    self._checkpoint(run, pixels, descriptors, start + len(queries))
                    saved_at = time.monotonic()
        if done < len(frames):
            self._checkpoint(run, pixels, descriptors, len(frames))
        return pixels, descriptors

    @staticmethod
    def _checkpoint(run: Run, pixels: Float64Array, descriptors: Tensor, done: int) -> None:
        run.map.save_checkpoint(
            {"pixels": torch.from_numpy(pixels[:done]), "descriptors": descriptors[:done]},
            {"done": done},
        )

    def _observations(
        self, dataset: Dataset, frames: np.ndarray, poses: Float64Array, pixels: Float64Array
    ) -> Observations:
        rays = np.empty((len(frames), pixels.shape[1], 3))
        focals = np.empty(len(frames))
        for i, frame in enumerate(frames):
            camera = dataset.frames[int(frame)].camera
            directions = unproject(camera, pixels[i]) @ poses[i, :3, :3].T
            rays[i] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            # Thresholds are meant at the detector's resolution.
            scale = self.config.keypoints.resolution / min(camera.width, camera.height)
            focals[i] = camera.fx * scale
        return Observations(
            pixels.shape[1],
            rays.reshape(-1, 3),
            poses[:, :3, 3] - self.origin,
            float(np.median(focals)),
        )

    def _train(self, landmarks: Landmarks, descriptors: Tensor, run: Run) -> None:
        """Choose landmarks, make and train their keys."""
        options = self.config.decoder
        count = self.config.keypoints.mapping
        chosen = best_observed(landmarks, count, options.landmarks)
        renumber = np.full(len(landmarks.points), -1)
        renumber[chosen] = np.arange(len(chosen))
        used = renumber[landmarks.labels] >= 0
        labels = torch.from_numpy(renumber[landmarks.labels[used]])
        seen = descriptors.reshape(-1, descriptors.shape[-1])[
            torch.from_numpy(landmarks.observers[used])
        ]
        keys = torch.zeros(len(chosen), seen.shape[1]).index_add_(0, labels, seen)
        keys = F.normalize(keys, dim=1)
        with run.progress("Training", options.iterations) as progress:
            keys = train_keys(
                keys,
                seen,
                labels,
                options,
                run.runtime.seed,
                lambda loss: progress.advance(1, loss=loss),
            )
        positions = torch.from_numpy(landmarks.points[chosen]).float()
        radii = torch.from_numpy(landmarks.distances[chosen]).float() * options.mode_radius
        # Rounded as they are stored, so that the fitted estimator and the loaded map agree.
        self._use(keys.half().float(), positions, radii.half().float(), run.runtime)

    def _use(self, keys: Tensor, positions: Tensor, radii: Tensor, runtime: Runtime) -> None:
        keys, positions, radii = (t.to(runtime.device) for t in (keys, positions, radii))
        self.decoder = PositionDecoder(keys, positions, radii, self.config.decoder)

    # ---------------------------------------------------------------------------------- maps

    def _save(self, run: Run, **details: int) -> None:
        assert self.decoder is not None
        run.map.save(
            "landmarks",
            {
                "keys": self.decoder.keys.half(),
                "positions": self.decoder.positions,
                "radii": self.decoder.radii.half(),
                "origin": torch.from_numpy(self.origin.copy()),
            },
            {"resolution": self.config.keypoints.resolution, "encoder": "xfeat"},
        )
        run.map.details.update(landmarks=len(self.decoder.keys), **details)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map is for another encoder or resolution.
        """
        tensors, metadata = scene_map.tensors("landmarks")
        for option, ours in (
            ("encoder", "xfeat"),
            ("resolution", self.config.keypoints.resolution),
        ):
            if metadata.get(option) != ours:
                raise MapError(
                    f"{scene_map.path} was made with {option} {metadata.get(option)}, not {ours}. "
                    "Leave the option out, or train again."
                )
        try:
            keys, positions, radii = (
                tensors[name].float() for name in ("keys", "positions", "radii")
            )
            self.origin = tensors["origin"].double().numpy()
        except KeyError as error:
            raise MapError(f"{scene_map.path} lacks {error}. Train it again.") from error
        self.detector = KeypointDetector(self.config.keypoints.resolution).to(runtime.device)
        self._use(keys, positions, radii, runtime)

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the landmarks."""
        if self.decoder is None:
            return None
        return ScenePoints(self.decoder.positions.cpu().numpy() + self.origin)

    # -------------------------------------------------------------------------- localization

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per key point."""
        return self.estimate_batch([query])[0]

    def estimate_batch(self, queries: Sequence[Query]) -> list[Correspondences]:
        """See `Estimator.estimate_batch`."""
        if self.detector is None or self.decoder is None:
            raise MapError("scr_landmarks has no map yet: call load or fit first.")
        evidence = []
        for query in queries:
            # One at a time: results must not depend on what else is in the batch.
            found = self.detector.detect([query.image], self.config.keypoints.query)[0]
            points, confidence = self.decoder(found.descriptors.to(self.decoder.keys.device))
            evidence.append(
                Correspondences(
                    points2d=found.pixels,
                    points3d=points.cpu().double().numpy() + self.origin,
                    weights=confidence.square().cpu().double().numpy(),
                    kind="sparse",
                    redundancy=self.config.decoder.redundancy,
                )
            )
        return evidence


def best_observed(landmarks: Landmarks, keypoints: int, most: int) -> np.ndarray:
    """Indices of at most `most` landmarks such that every image keeps its best observed ones.

    A landmark's rank is its best place, by number of observations, within any image that sees it.
    """
    views = np.bincount(landmarks.labels, minlength=len(landmarks.points))
    if len(views) <= most:
        return np.arange(len(views))
    image = landmarks.observers // keypoints
    order = np.lexsort((-views[landmarks.labels], image))
    sorted_image = image[order]
    begins = np.flatnonzero(np.concatenate([[True], np.diff(sorted_image) > 0]))
    sizes = np.diff(np.concatenate([begins, [len(order)]]))
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    rank = np.full(len(views), np.iinfo(np.int64).max)
    np.minimum.at(rank, landmarks.labels[order], place)
    return np.sort(np.lexsort((-views, rank))[:most])

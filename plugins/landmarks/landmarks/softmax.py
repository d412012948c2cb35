"""Landmarks read by a softmax: scene coordinates of XFeat key points by a position decoder.

What videos and large sets are mapped by, where every landmark is seen many times. Mapping describes the
images (resumable), triangulates landmarks from matched key points and the known poses, and trains the
landmarks' keys to be told apart. RGB and poses suffice; depth is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.decoder import PositionDecoder, train_keys
from landmarks.places import PLACES, Places
from landmarks.selection import keep_best
from landmarks.softmax_config import SoftmaxConfig, check
from reloc_core.errors import DataError, MapError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.features.vlad import image_looks
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.mapping import (
    Features,
    Observations,
    ReconstructionOptions,
    Tracks,
    describe,
    expected_in_view,
    match_images,
    require_points,
    spread_frames,
)
from reloc_core.maps import Map
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Correspondences, Query, ScenePoints

_MIN_LANDMARKS = 50
_LANDMARKS, _PER_IMAGE = 16_384, 25


class SoftmaxLandmarks(Estimator):
    """See the module docstring."""

    produces = Correspondences
    uses_prior = True

    def __init__(self, config: SoftmaxConfig) -> None:
        check(config)
        self.config = config
        self.detector: KeypointDetector | None = None
        self.decoder: PositionDecoder | None = None
        self.places: Places | None = None
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
        self.detector = _detector(options, run.runtime)
        frames = spread_frames(dataset, options.triangulation.max_images)
        features = describe(
            dataset, frames, self.detector, options.keypoints.mapping, run,
            batch=options.keypoints.batch,
        )  # fmt: skip
        self.origin = features.world_from_cam[:, :3, 3].mean(0)
        rng = numpy_rng(seed, "visual words")
        looks, words = image_looks(features.descriptors, features.counts, rng)
        wanted = ReconstructionOptions.of(options.triangulation)
        matches = match_images(features, run, wanted, looks.numpy())
        tracks = matches.tracks(wanted, run)
        require_points(len(tracks), _MIN_LANDMARKS, dataset, len(frames))
        triangulated = len(tracks)
        most = self.config.decoder.landmarks or max(_LANDMARKS, _PER_IMAGE * len(frames))
        tracks = tracks.subset(keep_best(tracks, features.images, -tracks.views, most))
        self.places = Places.of(features, looks, words, tracks)
        self._train(tracks, features, matches.observations, run)
        self._save(run, images=len(frames), pairs=len(matches.pairs), triangulated=triangulated)

    def _train(
        self, tracks: Tracks, features: Features, observations: Observations, run: Run
    ) -> None:
        """Make and train the landmarks' keys."""
        options = self.config.decoder
        labels = torch.from_numpy(tracks.labels)
        seen = torch.from_numpy(features.descriptors[tracks.rows])
        keys = torch.zeros(len(tracks), seen.shape[1]).index_add_(0, labels, seen)
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
        positions = torch.from_numpy(tracks.points - self.origin).float()
        radii = torch.from_numpy(tracks.distances(observations)).float() * options.mode_radius
        # Rounded as they are stored, so that the fitted estimator and the loaded map agree.
        self._use(keys.half().float(), positions, radii.half().float(), run.runtime)

    def _use(self, keys: Tensor, positions: Tensor, radii: Tensor, runtime: Runtime) -> None:
        keys, positions, radii = (t.to(runtime.device) for t in (keys, positions, radii))
        self.decoder = PositionDecoder(keys, positions, radii, self.config.decoder)

    # ---------------------------------------------------------------------------------- maps

    def _save(self, run: Run, **details: int) -> None:
        assert self.decoder is not None
        assert self.places is not None
        run.map.save("places", self.places.tensors(), {})
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
            # Maps made before there were places compare a query with all landmarks.
            self.places = (
                Places.from_tensors(scene_map.tensors("places", expect=PLACES)[0], len(keys))
                if scene_map.has("places")
                else None
            )
        except KeyError as error:
            raise MapError(f"{scene_map.path} lacks {error}. Train it again.") from error
        self.detector = _detector(self.config, runtime)
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
            raise MapError("landmarks has no map yet: call load or fit first.")
        evidence = []
        for query in queries:
            # One at a time: results must not depend on what else is in the batch.
            found = self.detector.detect([query.image], self.config.keypoints.query)[0]
            among = self._among(query, found.descriptors)
            points, confidence = self.decoder(found.descriptors.to(self.decoder.keys.device), among)
            evidence.append(
                Correspondences(
                    points2d=found.pixels,
                    points3d=points.cpu().double().numpy() + self.origin,
                    weights=confidence.square().cpu().double().numpy(),
                    kind="sparse",
                    redundancy=self.config.decoder.redundancy,
                    signals={"confidence": float(confidence.mean()) if len(confidence) else 0.0},
                )
            )
        return evidence

    def _among(self, query: Query, descriptors: Tensor) -> Tensor | None:
        """The landmarks that a query may see, by its prior or else by its looks; None for all."""
        assert self.decoder is not None
        keys = self.decoder.keys
        if query.prior is not None:
            points = self.decoder.positions.cpu().double().numpy() + self.origin
            seen = expected_in_view(query.prior, query.camera, points)
            if seen is not None:
                return torch.from_numpy(np.flatnonzero(seen)).to(keys.device)
        if self.places is None:
            return None
        found = self.places.candidates(descriptors, self.config.decoder.candidates, len(keys))
        return found if found is None else found.to(keys.device)


def _detector(config: SoftmaxConfig, runtime: Runtime) -> KeypointDetector:
    fast = runtime.device == "cpu"
    return KeypointDetector(config.keypoints.resolution, fast).to(runtime.device)

"""Landmarks read by a softmax: scene coordinates of XFeat key points by a position decoder.

What videos and large sets are mapped by, where every landmark is seen many times. Mapping describes the
images (resumable), triangulates landmarks from matched key points and the known poses, and trains the
landmarks' keys to be told apart. RGB and poses suffice; depth is not used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.shared.bytes import from_bytes, to_bytes
from landmarks.shared.extension import Sightings
from landmarks.shared.selection import keep_best
from landmarks.shared.views import in_image, joined_colors, looks_of
from landmarks.softmax.config import SoftmaxConfig, check
from landmarks.softmax.decoder import PositionDecoder, train_keys
from landmarks.softmax.places import PLACES, Places
from reloc_core.errors import DataError, MapError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.features.vlad import visual_words
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.mapping import (
    Cover,
    Features,
    Observations,
    ReconstructionOptions,
    Tracks,
    describe,
    expected_in_view,
    match_images,
    mean_colors,
    require_points,
    spread_frames,
    tell_used,
)
from reloc_core.maps import Map
from reloc_core.training.streams import numpy_rng
from reloc_core.types import (
    Camera,
    Correspondences,
    Float64Array,
    ImageArray,
    Query,
    ScenePoints,
)

_MIN_LANDMARKS = 50
_LANDMARKS, _PER_IMAGE = 16_384, 25
_AGAIN = 0.6  # least cosine of a key point and the landmark that should appear there


class SoftmaxLandmarks(Estimator):
    """See the module docstring."""

    produces = Correspondences
    uses_prior = True
    extends = True

    def __init__(self, config: SoftmaxConfig) -> None:
        check(config)
        self.config = config
        self.detector: KeypointDetector | None = None
        self.decoder: PositionDecoder | None = None
        self.places: Places | None = None
        self.origin = np.zeros(3)
        self.colors: ImageArray | None = None  # (K, 3) of the landmarks; None in older maps

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or too little that matches between them.
        """
        wanted, seed = self.config.triangulation, run.runtime.seed
        if len(dataset) < wanted.min_views:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; a map needs at least "
                f"{wanted.min_views}, from different places."
            )
        self.detector = _detector(self.config, run.runtime, fast=run.runtime.device == "cpu")
        features = self._described(dataset, run)
        self.origin = features.world_from_cam[:, :3, 3].mean(0)
        rng = numpy_rng(seed, "visual words")
        words = visual_words(torch.from_numpy(features.descriptors), rng)
        looks = looks_of(features, words)
        options = ReconstructionOptions.of(wanted)
        matches = match_images(features, run, options, looks.numpy())
        tracks, count = matches.tracks(options, run), len(features.frames)
        triangulated = len(tracks)
        cover = Cover.of(tracks, features.images, count)
        run.note(
            f"{triangulated} landmarks; on average {cover.views:.1f} views each, {cover.median:.0f} in an "
            "image (median)."
        )
        require_points(triangulated, _MIN_LANDMARKS, dataset, count)
        cover.warn(run)
        tracks = self._kept(tracks, features)
        self.places = Places.of(features, looks, words, tracks.rows, tracks.labels)
        seen, labels = (
            torch.from_numpy(features.described(tracks.rows)),
            torch.from_numpy(tracks.labels),
        )
        keys = self._trained(mean_keys(labels, seen, len(tracks)), seen, labels, run)
        self._use(keys, *self._places_of(tracks, matches.observations), run.runtime)
        self.colors = mean_colors(tracks, features)
        plan = {
            "readout": "softmax",
            "kind": "xfeat",
            **vars(self.config.keypoints),
            **vars(wanted),
        }
        self._save(
            run, images=count, pairs=len(matches.pairs), triangulated=triangulated, cover=vars(cover),
            plan=plan,
        )  # fmt: skip

    def extend(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.extend`: landmarks stay where they are, and new ones come with the images."""
        if self.decoder is None or self.places is None:
            raise MapError(
                "The map is of an earlier version, which knows no places. Train it again."
            )
        keys, positions = self.decoder.keys.cpu(), self.decoder.positions.cpu()
        points = positions.double().numpy() + self.origin
        features = self._described(dataset, run)
        looks = looks_of(features, self.places.words)

        def in_view(camera: Camera, pose: Float64Array) -> tuple[np.ndarray, Float64Array]:
            return in_image(points, camera, pose)

        again = Sightings.of(features, keys.numpy(), in_view, _AGAIN)
        options = ReconstructionOptions.of(self.config.triangulation)
        matches = match_images(features, run, options, looks.numpy())
        tracks = again.others(matches).tracks(options, run)
        triangulated, tracks = len(tracks), self._kept(tracks, features)
        run.note(again.told(len(features.frames), len(tracks)))
        old = len(keys)
        rows = np.concatenate([again.rows, tracks.rows])
        labels = np.concatenate([again.labels, old + tracks.labels])
        here = Places.of(features, looks, self.places.words, rows, labels)
        self.places = self.places.joined(here)
        # The keys that are there stand for what they were trained on.
        seen = torch.cat([torch.from_numpy(features.described(rows)), keys])
        shown = torch.cat([torch.from_numpy(labels), torch.arange(old)])
        new = mean_keys(
            torch.from_numpy(tracks.labels), seen[len(again.rows) : len(rows)], len(tracks)
        )
        keys = self._trained(torch.cat([keys, new]), seen, shown, run)
        more, radii = self._places_of(tracks, matches.observations)
        radii = torch.cat([self.decoder.radii.cpu(), radii])
        self._use(keys, torch.cat([positions, more]), radii, run.runtime)
        self.colors = joined_colors(self.colors, mean_colors(tracks, features))
        added = {
            "images": len(features.frames), "pairs": len(matches.pairs), "triangulated": triangulated,
        }  # fmt: skip
        self._save(run, **{k: _number(run.map.details.get(k)) + n for k, n in added.items()})

    def _described(self, dataset: Dataset, run: Run) -> Features:
        detector = _detector(self.config, run.runtime, fast=False)
        options = self.config
        most = options.triangulation.max_images
        frames = spread_frames(dataset, most)
        tell_used(dataset, frames, run, f"a softmax takes at most {most}")
        return describe(
            dataset, frames, detector, options.keypoints.mapping, run,
            batch=options.keypoints.batch,
        )  # fmt: skip

    def _kept(self, tracks: Tracks, features: Features) -> Tracks:
        """The best observed landmarks of every image."""
        per_image = _PER_IMAGE * len(features.frames)
        most = self.config.decoder.landmarks or max(_LANDMARKS, per_image)
        return tracks.subset(keep_best(tracks, features.images, -tracks.views, most))

    def _trained(self, keys: Tensor, seen: Tensor, labels: Tensor, run: Run) -> Tensor:
        """Keys (K, C) that tell the landmarks apart whose descriptors (M, C) are seen."""
        options = self.config.decoder
        with run.progress("Training", options.iterations) as progress:
            keys = train_keys(
                keys,
                seen,
                labels,
                options,
                run.runtime.seed,
                lambda loss: progress.advance(1, loss=loss),
            )
        # Rounded as they are stored, so that the fitted estimator and the loaded map agree.
        return from_bytes(to_bytes(keys))

    def _places_of(self, tracks: Tracks, observations: Observations) -> tuple[Tensor, Tensor]:
        """Positions (K, 3) and radii (K,) of landmarks."""
        positions = torch.from_numpy(tracks.points - self.origin).float()
        radii = torch.from_numpy(tracks.distances(observations)).float()
        return positions, (radii * self.config.decoder.mode_radius).half().float()

    def _use(self, keys: Tensor, positions: Tensor, radii: Tensor, runtime: Runtime) -> None:
        keys, positions, radii = (t.to(runtime.device) for t in (keys, positions, radii))
        self.decoder = PositionDecoder(keys, positions, radii, self.config.decoder)

    # ---------------------------------------------------------------------------------- maps

    def _save(self, run: Run, **details: Any) -> None:
        assert self.decoder is not None
        assert self.places is not None
        run.map.save("places", self.places.tensors(), {})
        tensors = {
            "keys": to_bytes(self.decoder.keys),
            "positions": self.decoder.positions,
            "radii": self.decoder.radii.half(),
            "origin": torch.from_numpy(self.origin.copy()),
        }
        if self.colors is not None:
            tensors["colors"] = torch.from_numpy(self.colors)
        run.map.save(
            "landmarks",
            tensors,
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
            keys = from_bytes(tensors["keys"])
            positions, radii = tensors["positions"].float(), tensors["radii"].float()
            self.origin = tensors["origin"].double().numpy()
            self.colors = tensors["colors"].numpy() if "colors" in tensors else None
            # Maps made before there were places compare a query with all landmarks.
            self.places = (
                Places.from_tensors(scene_map.tensors("places", expect=PLACES)[0], len(keys))
                if scene_map.has("places")
                else None
            )
        except KeyError as error:
            raise MapError(f"{scene_map.path} lacks {error}. Train it again.") from error
        self.detector = _detector(self.config, runtime, fast=runtime.device == "cpu")
        self._use(keys, positions, radii, runtime)

    def scene_points(self) -> ScenePoints | None:
        """See `Estimator.scene_points`: the landmarks."""
        if self.decoder is None:
            return None
        return ScenePoints(self.decoder.positions.cpu().numpy() + self.origin, self.colors)

    # -------------------------------------------------------------------------- localization

    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per key point."""
        if self.detector is None or self.decoder is None:
            raise MapError("landmarks has no map yet: call load or fit first.")
        found = self.detector.detect([query.image], self.config.keypoints.query)[0]
        among = self._among(query, found.descriptors)
        points, confidence = self.decoder(found.descriptors.to(self.decoder.keys.device), among)
        return Correspondences(
            points2d=found.pixels,
            points3d=points.cpu().double().numpy() + self.origin,
            weights=confidence.cpu().double().numpy(),
            kind="sparse",
            redundancy=self.config.decoder.redundancy,
            signals={"confidence": float(confidence.mean()) if len(confidence) else 0.0},
        )

    def _among(self, query: Query, descriptors: Tensor) -> Tensor | None:
        """The landmarks that a query may see, by its looks and its prior; None for all."""
        assert self.decoder is not None
        keys = self.decoder.keys
        found = (
            None
            if self.places is None
            else self.places.candidates(descriptors, self.config.decoder.candidates, len(keys))
        )
        if query.prior is not None:
            points = self.decoder.positions.cpu().double().numpy() + self.origin
            seen = expected_in_view(query.prior, query.camera, points)
            if seen is not None:
                there = torch.from_numpy(seen)
                both = there.nonzero()[:, 0] if found is None else found[there[found]]
                # A view from which the prior and the looks tell different places is known by its looks.
                found = both if len(both) >= _MIN_LANDMARKS else found
        return found if found is None else found.to(keys.device)


def mean_keys(labels: Tensor, seen: Tensor, count: int) -> Tensor:
    """(count, C) unit means of the descriptors `seen` (M, C) that observe the landmarks `labels` (M,)."""
    return F.normalize(torch.zeros(count, seen.shape[1]).index_add_(0, labels, seen), dim=1)


def _number(value: object) -> int:
    """A count in a map's details, 0 where it is none."""
    return value if isinstance(value, int) else 0


def _detector(config: SoftmaxConfig, runtime: Runtime, fast: bool) -> KeypointDetector:
    """Mapping is not `fast`: what is rounded in the map, every query of it has."""
    return KeypointDetector(config.keypoints.resolution, fast).to(runtime.device)

"""The map: landmarks, which images saw them, how these images look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.shared.bytes import from_bytes, to_bytes
from landmarks.shared.extension import Sightings
from landmarks.shared.views import in_image, joined_colors
from reloc_core.features.vlad import vlad
from reloc_core.mapping import Features, Observations, Tracks, mean_colors
from reloc_core.types import Camera, Float64Array, FloatArray, ImageArray

_SAME_SIDE = 0.3  # cosine of the directions from which a landmark was mapped and is seen
_ENTRIES = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@dataclass(frozen=True)
class LandmarkMap:
    """L landmarks seen by N images.

    Attributes:
        keys: (L, C) float32 unit descriptors.
        points: (L, 3) float64 world.
        covariances: (L, 6) float32, upper triangle of the covariance of `points`, scene units squared.
        directions: (L, 3) float32 unit, from the mapping cameras to the landmark on average.
        distances: (L,) float32 from these cameras, on average.
        seen: landmarks of each image.
        looks: (N, D) float32 VLAD vectors of the images.
        words: (W, C) float32 visual words.
        colors: (L, 3) uint8 as the images show them; None in maps of earlier versions.
    """

    keys: FloatArray
    points: Float64Array
    covariances: FloatArray
    directions: FloatArray
    distances: FloatArray
    seen: list[np.ndarray]
    looks: Tensor
    words: Tensor
    colors: ImageArray | None = None

    @classmethod
    def of(
        cls,
        tracks: Tracks,
        features: Features,
        observations: Observations,
        looks: Tensor,
        words: Tensor,
    ) -> LandmarkMap:
        """The map of tracks."""
        labels = torch.from_numpy(tracks.labels)
        described = torch.from_numpy(features.descriptors[tracks.rows])
        keys = torch.zeros(len(tracks), described.shape[1]).index_add_(0, labels, described)
        rays = torch.from_numpy(observations.rays[tracks.rows]).float()
        directions = torch.zeros(len(tracks), 3).index_add_(0, labels, rays)
        images = features.images[tracks.rows]
        # The key points' own noise, as the tracks show it; a track's mean error is small by chance.
        noise = max(float(np.sqrt(np.mean(tracks.errors**2))), 0.3)
        covariances = noise**2 * np.stack([tracks.covariances[:, i, j] for i, j in _ENTRIES], 1)
        return cls(
            F.normalize(keys, dim=1).numpy(),
            tracks.points,
            covariances.astype(np.float32),
            F.normalize(directions, dim=1).numpy(),
            tracks.distances(observations).astype(np.float32),
            [np.sort(tracks.labels[images == i]) for i in range(len(features.frames))],
            looks,
            words,
            mean_colors(tracks, features),
        )

    def extended(
        self,
        tracks: Tracks,
        features: Features,
        observations: Observations,
        looks: Tensor,
        again: Sightings,
    ) -> LandmarkMap:
        """The map with further images.

        Args:
            tracks: of landmarks that are new.
            features: of the further images.
            observations: theirs.
            looks: (N', D) theirs, by the words of this map.
            again: what they see of this map.
        """
        added = LandmarkMap.of(tracks, features, observations, looks, self.words)
        old, rows = len(self.points), again.rows
        views = np.bincount(np.concatenate(self.seen), minlength=old).astype(np.float32)

        def mean(before: FloatArray, seen: FloatArray) -> FloatArray:
            total = before * views[:, None]
            np.add.at(total, again.labels, seen.astype(np.float32))
            return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1), 1e-12)[:, None])

        offset = np.linalg.norm(self.points[again.labels] - observations.origins(rows), axis=1)
        lengths = self.distances * views + np.bincount(again.labels, offset, old)
        distances = lengths / np.maximum(views + np.bincount(again.labels, minlength=old), 1)
        return LandmarkMap(
            np.concatenate([mean(self.keys, features.descriptors[rows]), added.keys]),
            np.concatenate([self.points, added.points]),
            np.concatenate([self.covariances, added.covariances]),
            np.concatenate([mean(self.directions, observations.rays[rows]), added.directions]),
            np.concatenate([distances.astype(np.float32), added.distances]),
            self.seen
            + [
                np.concatenate([np.sort(again.labels[again.images == i]), old + seen])
                for i, seen in enumerate(added.seen)
            ],
            torch.cat([self.looks, looks]),
            self.words,
            joined_colors(self.colors, added.colors),
        )

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        origin = self.points.mean(0)
        counts = [len(s) for s in self.seen]
        tensors = {
            "keys": to_bytes(torch.from_numpy(self.keys)),
            "positions": torch.from_numpy(self.points - origin).float(),
            "origin": torch.from_numpy(origin),
            "covariances": torch.from_numpy(self.covariances),
            "directions": torch.from_numpy(self.directions).half(),
            "distances": torch.from_numpy(self.distances),
            "seen": torch.from_numpy(np.concatenate(self.seen).astype(np.int32)),
            "seen_counts": torch.tensor(counts, dtype=torch.int32),
            "looks": to_bytes(self.looks),
            "words": self.words,
        }
        if self.colors is not None:
            tensors["colors"] = torch.from_numpy(self.colors)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LandmarkMap:
        """What was stored.

        Raises:
            KeyError: something is missing.
        """
        seen = tensors["seen"].long().split(tensors["seen_counts"].tolist())
        return cls(
            from_bytes(tensors["keys"]).numpy(),
            tensors["positions"].double().numpy() + tensors["origin"].double().numpy(),
            tensors["covariances"].numpy(),
            tensors["directions"].float().numpy(),
            tensors["distances"].numpy(),
            [s.numpy() for s in seen],
            from_bytes(tensors["looks"]),
            tensors["words"].float(),
            tensors["colors"].numpy() if "colors" in tensors else None,
        )

    def candidates(self, descriptors: Tensor, retrieved: int) -> np.ndarray:
        """Landmarks (K,) of the images that look most like a query, ascending.

        Args:
            descriptors: (M, C) of the query's key points, M > 0.
            retrieved: number of images.
        """
        if retrieved >= len(self.seen):
            return np.arange(len(self.points))
        similarity = self.looks @ vlad(descriptors, self.words)
        best = similarity.topk(retrieved).indices.tolist()
        return np.unique(np.concatenate([self.seen[i] for i in best]))

    def in_view(
        self, camera: Camera, world_from_cam: Float64Array
    ) -> tuple[np.ndarray, Float64Array]:
        """Landmarks (K,) that a camera should see, and their pixels (K, 2).

        Those that were mapped from quite another side are left out: they look different, or are hidden.
        """
        cosine = np.einsum("ni,ni->n", self.rays_from(world_from_cam), self.directions)
        return in_image(self.points, camera, world_from_cam, cosine > _SAME_SIDE)

    def rays_from(
        self, world_from_cam: Float64Array, chosen: np.ndarray | slice = slice(None)
    ) -> Float64Array:
        """Unit directions (K, 3) of landmarks from a camera."""
        rays = self.points[chosen] - world_from_cam[:3, 3]
        return rays / np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)

    def covariances_of(self, chosen: np.ndarray) -> Float64Array:
        """Covariances (K, 3, 3) of landmarks, scene units squared."""
        covariance = np.empty((len(chosen), 3, 3))
        for (i, j), values in zip(_ENTRIES, self.covariances[chosen].T, strict=True):
            covariance[:, i, j] = covariance[:, j, i] = values
        return covariance

    def lateral_variances(
        self, chosen: np.ndarray, covariances: Float64Array, world_from_cam: Float64Array
    ) -> Float64Array:
        """Variances (K,) of landmarks along an axis across the line of sight, scene units squared.

        A landmark that was triangulated from a narrow baseline is uncertain along the mapping rays; seen
        from the side, that is across.
        """
        rays = self.rays_from(world_from_cam, chosen)
        along = np.einsum("ni,nij,nj->n", rays, covariances, rays)
        return (np.trace(covariances, axis1=1, axis2=2) - along) / 2

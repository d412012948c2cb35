"""What images that are added to a map see of it, and what is new in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from landmarks.shared.matches import by_place
from reloc_core.mapping import Features
from reloc_core.mapping.reconstruction import Matches
from reloc_core.types import Camera, Float64Array, FloatArray

_WINDOW_PX = 4.0  # between a key point and where a landmark should appear

InView = Callable[[Camera, Float64Array], tuple[np.ndarray, Float64Array]]
"""Landmarks (K,) that a camera at a pose should see, and their pixels (K, 2)."""


@dataclass(frozen=True)
class Sightings:
    """Key points that show landmarks of the map.

    Attributes:
        rows: (M,) key points of the added images.
        labels: (M,) landmark of each.
        images: (M,) number of its image.
    """

    rows: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    @classmethod
    def of(
        cls, features: Features, keys: FloatArray, in_view: InView, min_similarity: float
    ) -> Sightings:
        """By place and looks.

        Args:
            features: of the added images, whose poses are known.
            keys: (L, C) of the landmarks.
            in_view: which of them a camera should see.
            min_similarity: least cosine of a key point and its landmark.
        """
        rows, labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for number, camera in enumerate(features.cameras):
            part = features.of_image(number)
            # The window is meant in pixels of the image that the detector saw.
            pixel = min(camera.width, camera.height) / features.resolution
            found = by_place(
                features.pixels[part], features.descriptors[part], keys,
                *in_view(camera, features.world_from_cam[number]), _WINDOW_PX * pixel,
                np.full(part.stop - part.start, min_similarity, np.float32),
            )  # fmt: skip
            rows.append(part.start + found.keypoints)
            labels.append(found.landmarks)
        chosen = np.concatenate(rows)
        return cls(chosen, np.concatenate(labels), features.images[chosen])

    def others(self, matches: Matches) -> Matches:
        """The matches of key points that show no landmark of the map yet."""
        new = ~(np.isin(matches.first, self.rows) | np.isin(matches.second, self.rows))
        return replace(matches, first=matches.first[new], second=matches.second[new])

    def told(self, images: int, added: int) -> str:
        """For the user.

        Args:
            images: number of the added ones.
            added: landmarks that are new.
        """
        return (
            f"{images} images see {len(np.unique(self.labels))} landmarks of the map again and add "
            f"{added} of their own."
        )

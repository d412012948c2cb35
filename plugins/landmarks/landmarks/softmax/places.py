"""Parts of a scene by how they look: which landmarks a query may see.

A query is compared with all landmarks of the places that look like it, instead of with all of the map:
that is several times less work, and in a large map other rooms cannot be mistaken for this one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landmarks.shared.bytes import from_bytes, to_bytes
from reloc_core.errors import MapError
from reloc_core.features.vlad import vlad
from reloc_core.mapping import Features, farthest_points, pose_features

_IMAGES = 8  # of a place, on average
PLACES: dict[str, tuple[str, ...]] = {
    "looks": ("places", "length"),
    "words": ("words", "channels"),
    "seen": ("all",),
    "seen_counts": ("places",),
}
"""Shapes of what is stored."""


@dataclass(frozen=True)
class Places:
    """P places.

    Attributes:
        looks: (P, D) float32 unit VLAD vectors.
        words: (W, C) float32 visual words.
        seen: landmarks (K,) int64 of each place, ascending.
    """

    looks: Tensor
    words: Tensor
    seen: list[Tensor]

    @classmethod
    def of(
        cls, features: Features, looks: Tensor, words: Tensor, rows: np.ndarray, labels: np.ndarray
    ) -> Places:
        """Group mapping images by their poses.

        Args:
            features: of N images.
            looks: (N, D) their VLAD vectors.
            words: (W, C) visual words.
            rows: (M,) key points that show landmarks, ...
            labels: (M,) ... and which.
        """
        poses = pose_features(features.world_from_cam)
        count = -(-len(poses) // _IMAGES)
        centres = poses[farthest_points(poses, count)]
        place = np.array([np.argmin(((centres - p) ** 2).sum(1)) for p in poses])
        sums = torch.zeros(count, looks.shape[1]).index_add_(0, torch.from_numpy(place), looks)
        where = place[features.images[rows]]
        order = np.argsort(where, kind="stable")
        ends = np.searchsorted(where[order], np.arange(1, count))
        seen = [torch.from_numpy(np.unique(p)) for p in np.split(labels[order], ends)]
        return cls(from_bytes(to_bytes(F.normalize(sums, dim=1))), words, seen)

    def joined(self, others: Places) -> Places:
        """These and others, by the same visual words."""
        return Places(torch.cat([self.looks, others.looks]), self.words, self.seen + others.seen)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored."""
        return {
            "looks": to_bytes(self.looks),
            "words": self.words,
            "seen": torch.cat(self.seen).int(),
            "seen_counts": torch.tensor([len(s) for s in self.seen], dtype=torch.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], landmarks: int) -> Places:
        """What was stored.

        Args:
            tensors: as `PLACES` describes them.
            landmarks: number of them in the map.

        Raises:
            MapError: they do not fit together.
        """
        seen, counts = tensors["seen"].long(), tensors["seen_counts"].long()
        looks, words = from_bytes(tensors["looks"]), tensors["words"].float()
        if (
            bool((counts < 0).any())
            or int(counts.sum()) != len(seen)
            or (len(seen) and not (0 <= int(seen.min()) <= int(seen.max()) < landmarks))
            or looks.shape[1] != words.numel()
        ):
            raise MapError("The map's places and landmarks do not fit together. Train it again.")
        return cls(looks, words, list(seen.split(counts.tolist())))

    def candidates(self, descriptors: Tensor, least: int, landmarks: int) -> Tensor | None:
        """Landmarks (K,), ascending, of the places most like a query; None for all.

        Args:
            descriptors: (M, C) of its key points.
            least: places are added until they have so many landmarks.
            landmarks: number of them in the map.
        """
        if not least or landmarks <= least or not len(descriptors):
            return None
        order = (self.looks @ vlad(descriptors.cpu(), self.words)).argsort(descending=True)
        chosen = torch.zeros(landmarks, dtype=torch.bool)
        for place in order.tolist():
            chosen[self.seen[place]] = True
            if int(chosen.sum()) >= least:
                break
        return chosen.nonzero()[:, 0]

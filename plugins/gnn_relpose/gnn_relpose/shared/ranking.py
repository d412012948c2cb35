"""Images of a scene ranked by how much they look like one of them, when asked."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from reloc_core.features.retrieval import RetrievalIndex

_BLOCK = 256  # images that are compared with all others at once


class Ranking:
    """The other images of a scene, those most alike first; `ranking[i]` are those of image i, (F - 1,).

    Each is found when it is asked for: the table of all grows with the square of the images.

    Args:
        descriptors: (F, D) unit vectors of the images.
    """

    def __init__(self, descriptors: Tensor) -> None:
        self._descriptors = descriptors
        self._index = RetrievalIndex(descriptors, "exact")

    def __len__(self) -> int:
        return len(self._descriptors)

    def __getitem__(self, image: int) -> np.ndarray:
        query = self._descriptors[image : image + 1].float()
        found: np.ndarray = self._index.search(query, len(self))[0][0]
        return found[found != image]

    def best(self) -> np.ndarray:
        """(F,) similarity of every image and the one most like it."""
        found = []
        for begin in range(0, len(self), _BLOCK):
            queries = self._descriptors[begin : begin + _BLOCK].float()
            others, similarity = self._index.search(queries, 2)
            rows = np.arange(len(others))
            own = others[:, 0] == begin + rows
            found.append(similarity[rows, own.astype(int)])
        return np.concatenate(found)

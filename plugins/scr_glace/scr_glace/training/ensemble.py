"""ACE's hierarchical split of camera centres."""

from __future__ import annotations

import numpy as np

from reloc_core.features.kmeans import kmeans
from reloc_core.types import FloatArray

_ATTEMPTS = 10


def hierarchical_split(centers: FloatArray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Labels (N,) of camera centres (N, 3): the largest cluster is split in two until there are enough.

    Label 0 is the largest cluster (ACE, ensembles of maps).
    """
    centers = np.asarray(centers, np.float64)
    labels = np.zeros(len(centers), np.int64)
    for new in range(1, clusters):
        members = np.flatnonzero(labels == np.bincount(labels).argmax())
        best, best_cost = None, np.inf
        for _ in range(_ATTEMPTS):
            means, halves = kmeans(centers[members], 2, rng)
            cost = ((centers[members] - means[halves]) ** 2).sum()
            if cost < best_cost:
                best, best_cost = halves, cost
        assert best is not None
        labels[members[best == 1]] = new
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    rank = np.empty(clusters, np.int64)
    rank[order] = np.arange(clusters)
    return rank[labels]

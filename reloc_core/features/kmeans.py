"""K-means with k-means++ initialisation."""

from __future__ import annotations

import numpy as np

from reloc_core.types import Float64Array, FloatArray


def kmeans(
    points: FloatArray, clusters: int, rng: np.random.Generator, iterations: int = 100
) -> tuple[Float64Array, np.ndarray]:
    """Cluster points.

    Args:
        points: (N, D).
        clusters: at most N.
        rng: of the initialisation (Arthur and Vassilvitskii, k-means++, 2007).
        iterations: upper bound of Lloyd steps.

    Returns:
        centres (clusters, D) float64 and labels (N,).
    """
    data = np.asarray(points, np.float64)
    centers = [data[rng.integers(len(data))]]
    nearest = np.full(len(data), np.inf)
    for _ in range(clusters - 1):
        nearest = np.minimum(nearest, ((data - centers[-1]) ** 2).sum(-1))
        total = nearest.sum()
        chance = nearest / total if total > 0 else np.full(len(data), 1 / len(data))
        centers.append(data[rng.choice(len(data), p=chance)])
    current = np.stack(centers)
    labels = np.full(len(data), -1)
    norms = (data**2).sum(-1, keepdims=True)
    for _ in range(iterations):
        distance = norms - 2 * data @ current.T + (current**2).sum(-1)
        updated = distance.argmin(-1)
        if np.array_equal(updated, labels):
            break
        labels = updated
        counts = np.bincount(labels, minlength=clusters)
        sums = np.stack([np.bincount(labels, column, clusters) for column in data.T], -1)
        filled = counts > 0
        current[filled] = sums[filled] / counts[filled, None]
        # An empty cluster takes the point that is worst served.
        for empty in np.flatnonzero(~filled):
            current[empty] = data[distance.min(-1).argmax()]
    return current, labels

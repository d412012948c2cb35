"""Which images are matched with which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from reloc_core.types import FloatArray, ImageArray

Pair = tuple[int, int]
_WORDS = 64
_MOST_DESCRIPTORS = 1500  # of an image, for its look


def exhaustive(count: int) -> set[Pair]:
    """All pairs."""
    return {(i, j) for i in range(count) for j in range(i + 1, count)}


def sequential(count: int, neighbours: int) -> set[Pair]:
    """Every frame with its next `neighbours`, and with some that are 2, 4, 8 times as far."""
    steps = {*range(1, neighbours + 1), *(neighbours * k for k in (2, 4, 8))}
    return {(i, i + step) for i in range(count) for step in steps if i + step < count}


def similar(looks: FloatArray, partners: int, asking: Iterable[int], apart: int = 0) -> set[Pair]:
    """Every asking image with those that look most alike.

    Args:
        looks: (N, D) unit vectors.
        partners: of each.
        asking: indices of the images that look for partners.
        apart: least difference of the indices: frames of a video have their neighbours anyway.
    """
    pairs = set()
    for i in asking:
        score = looks @ looks[i]
        near = np.abs(np.arange(len(looks)) - i) <= apart
        score[near] = -2.0
        for j in np.argsort(-score, kind="stable")[:partners].tolist():
            if score[j] > -2.0:
                pairs.add((min(i, j), max(i, j)))
    return pairs


def choose(
    kind: str,
    count: int,
    looks: FloatArray | None,
    neighbours: int,
    partners: int,
    new: Sequence[int] | None = None,
) -> list[Pair]:
    """Pairs of images, first < second, sorted.

    Args:
        kind: "exhaustive", "sequential" (with loops closed by looks) or "retrieval".
        count: of images.
        looks: see `similar`; needed unless exhaustive.
        neighbours: see `sequential`.
        partners: see `similar`.
        new: images that were added; pairs without one of them are left out.
    """
    if kind == "exhaustive":
        pairs = exhaustive(count)
    elif kind == "sequential":
        pairs = sequential(count, neighbours)
        if looks is not None:
            loops = min(partners, 5)
            pairs |= similar(looks, loops, range(count), neighbours)
            if new is not None:
                pairs |= similar(looks, partners, new)
    else:
        assert looks is not None
        pairs = similar(looks, partners, range(count) if new is None else new)
    if new is not None:
        added = set(new)
        pairs = {pair for pair in pairs if added & set(pair)}
    return sorted(pairs)


def looks_of(descriptors: Mapping[int, ImageArray], seed: int) -> FloatArray:
    """(N, D) VLAD of the SIFT descriptors (K, 128) uint8 of each image, in the mapping's order."""
    from reloc_core.features.vlad import image_looks

    some = [rows[:_MOST_DESCRIPTORS] for rows in descriptors.values()]
    kept = np.concatenate(some).astype(np.float32)
    kept /= np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-9)
    counts = np.array([len(rows) for rows in some])
    looks: FloatArray = image_looks(kept, counts, np.random.default_rng(seed), _WORDS)[0].numpy()
    return looks

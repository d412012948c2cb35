"""Which landmarks a map keeps."""

from __future__ import annotations

import numpy as np

from reloc_core.mapping import Tracks


def keep_best(tracks: Tracks, images: np.ndarray, doubt: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` tracks such that every image keeps its best ones.

    A track's rank is its best place, by doubt, within any image that sees it.

    Args:
        tracks: to choose from.
        images: image of every key point.
        doubt: (N,) of the tracks; less is better.
        most: at most so many.
    """
    if len(tracks) <= most:
        return np.arange(len(tracks))
    image = images[tracks.rows]
    order = np.lexsort((doubt[tracks.labels], image))
    begins = np.flatnonzero(np.concatenate([[True], np.diff(image[order]) > 0]))
    sizes = np.diff(np.concatenate([begins, [len(order)]]))
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    rank = np.full(len(tracks), np.iinfo(np.int64).max)
    np.minimum.at(rank, tracks.labels[order], place)
    return np.sort(np.lexsort((doubt, rank))[:most])

"""Which frames of a dataset follow each other."""

from __future__ import annotations

import numpy as np

from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset
from reloc_core.types import Frame


def continuous_runs(dataset: Dataset, max_gap: float) -> list[range]:
    """Ranges of at least two frames that follow each other in one sequence without a gap."""
    frames = dataset.frames
    runs, first = [], 0
    for i in range(1, len(frames) + 1):
        if i < len(frames) and follows(frames[i - 1], frames[i], max_gap):
            continue
        if i - first > 1:
            runs.append(range(first, i))
        first = i
    return runs


def windows(dataset: Dataset, length: int, max_gap: float) -> list[range]:
    """All ranges of consecutive frames of a length."""
    runs = continuous_runs(dataset, max_gap)
    return [range(i, i + length) for r in runs for i in range(r.start, r.stop - length + 1)]


def follows(before: Frame, frame: Frame, max_gap: float) -> bool:
    """Whether a frame continues the sequence of the one before."""
    if frame.sequence is None or frame.sequence != before.sequence:
        return False
    if frame.timestamp is None or before.timestamp is None:
        return True
    return 0 < frame.timestamp - before.timestamp <= max_gap


def choose_stretches(dataset: Dataset, frames: int, count: int, max_gap: float) -> list[range]:
    """Stretches of consecutive frames, spread over the dataset.

    Raises:
        DataError: there are no consecutive frames.
    """
    runs = continuous_runs(dataset, max_gap)
    if not runs:
        raise DataError(
            f"{dataset.name} has no consecutive frames: no two images belong to one sequence within "
            f"{max_gap} s (estimator.filter.max_gap). kfnet_temporal learns from video. Images in the "
            "order of a video become one with dataset.sequence=order (or name, or exif); folders in the "
            "ACE layout tell sequences by names like SEQUENCE-frame-NUMBER. Photographs that are no video "
            "need another estimator, such as estimator=landmarks; 'reloc plugin list' shows all."
        )
    length = max(2, frames // count)
    pieces = [
        range(start, min(start + length, run.stop))
        for run in runs
        for start in range(run.start, run.stop - 1, length)
    ]
    pieces = [p for p in pieces if len(p) >= min(length, 8)] or pieces
    keep = np.unique(np.linspace(0, len(pieces) - 1, min(count, len(pieces))).round().astype(int))
    return [pieces[i] for i in keep]


def beginnings(stretches: list[range], dataset: Dataset, share: float) -> list[range]:
    """The first parts of stretches that together are about a share of the dataset."""
    length = max(2, int(share * len(dataset) / len(stretches)))
    return [range(s.start, min(s.start + length, s.stop)) for s in stretches]

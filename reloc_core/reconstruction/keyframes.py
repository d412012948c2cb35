"""Key frames of a video: the sharpest frame of every stretch through which the picture moved.

How far a picture moves is measured by tracked corners (Lucas-Kanade): the median displacement, plus what
no rotation or zoom of the picture explains of it, which is parallax and counts more: only it
triangulates. Where tracking fails, the picture has changed altogether.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from reloc_core.datasets.sharpness import sharpness_of, small_grey
from reloc_core.types import BoolArray, Float64Array, ImageArray

_CORNERS = 200
_LEAST_TRACKED = 0.3  # of the corners; fewer is another picture
_PARALLAX_WEIGHT = 4.0
_AROUND = 15  # frames that a frame's sharpness is compared with, before and after it
_SHAKEN = 0.3  # of their median


@dataclass(frozen=True)
class Motion:
    """What a video's frames say about which to take.

    Attributes:
        times: (N,) seconds.
        moved: (N,) share of the width that the picture moved by since the frame before; 1 after a cut.
        sharpness: (N,) variance of the Laplacian.
        cuts: (N,) whether the frame shows something else than the one before.
    """

    times: Float64Array
    moved: Float64Array
    sharpness: Float64Array
    cuts: BoolArray

    def __len__(self) -> int:
        return len(self.times)


def moved_by(before: ImageArray, after: ImageArray) -> float | None:
    """Share of the width that a picture moved by, parallax counted more; None for another picture."""
    if before.shape != after.shape:
        return None
    found: Any = cv2.goodFeaturesToTrack(before, _CORNERS, 0.01, 5)
    if found is None:  # nothing to track
        return 0.0
    corners = np.asarray(found, np.float32)
    tracked, there, _ = cv2.calcOpticalFlowPyrLK(
        before, after, corners, corners.copy(), winSize=(15, 15)
    )
    moved = np.asarray(tracked, np.float32)
    back, again, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, moved.copy(), winSize=(15, 15))
    good = (np.ravel(there) == 1) & (np.ravel(again) == 1)
    good &= np.linalg.norm(np.asarray(back) - corners, axis=-1).ravel() < 1
    if good.sum() < max(_LEAST_TRACKED * len(corners), 8):
        return None
    start, end = corners.reshape(-1, 2)[good], moved.reshape(-1, 2)[good]
    flow = float(np.median(np.linalg.norm(end - start, axis=1)))
    # Shift, turn and zoom as complex numbers: end = a * start + b.
    flat = np.stack([start @ [1, 1j], np.ones(len(start))], 1)
    turn = np.linalg.lstsq(flat, end @ [1, 1j], rcond=None)[0]
    parallax = float(np.median(np.abs(end @ [1, 1j] - flat @ turn)))
    return float((flow + _PARALLAX_WEIGHT * parallax) / before.shape[1])


def measure(frames: Iterable[tuple[float, ImageArray]]) -> Motion:
    """Motion and sharpness of frames (seconds, RGB) in their order."""
    times: list[float] = []
    moved: list[float] = []
    sharpness: list[float] = []
    cuts: list[bool] = []
    before = None
    for time, image in frames:
        grey = small_grey(image)
        step = None if before is None else moved_by(before, grey)
        times.append(time)
        sharpness.append(sharpness_of(grey))
        cuts.append(step is None)
        moved.append(1.0 if step is None else step)
        before = grey
    return Motion(np.array(times), np.array(moved), np.array(sharpness), np.asarray(cuts, np.bool_))


def choose(motion: Motion, step: float, most: int) -> list[int]:
    """Indices of key frames: of every stretch of `step`, the sharpest frame.

    Where that gives more than `most`, stretches are longer. The first stretch after a cut starts anew, a
    picture that does not move gives one frame, and a shaken one none.
    """
    if not len(motion):
        return []
    way = np.minimum(motion.moved, step)
    way[motion.cuts] = 0.0
    way = np.cumsum(way)
    shot = np.cumsum(motion.cuts)
    for _ in range(60):
        bins = np.floor(way / step).astype(np.int64) + len(motion) * shot
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        if len(starts) <= most:
            break
        step *= 1.1
    ends = [*starts[1:].tolist(), len(motion)]
    best = [
        int(first + np.argmax(motion.sharpness[first:last]))
        for first, last in zip(starts.tolist(), ends, strict=True)
    ]
    return [i for i in best if not _shaken(motion.sharpness, i)][:most]


def _shaken(sharpness: Float64Array, i: int) -> bool:
    """Whether a frame is far less sharp than those around it. Tracking fails there as in a cut."""
    around = sharpness[max(i - _AROUND, 0) : i + _AROUND + 1]
    return bool(sharpness[i] < _SHAKEN * np.median(around))

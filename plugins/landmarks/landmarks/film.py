"""Whether images are photographs or frames of a film: by their number, sequences, and what they see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from reloc_core.features.keypoints import KeypointDetector
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping import describe, evenly, match_pairs
from reloc_core.types import Frame

_FEW_PHOTOS = 99  # mapping images up to which they are taken for photographs, not a film
_PAIRS = 12  # consecutive images that are looked at
_RESOLUTION, _KEYPOINTS = 480, 512
_ALIKE = 0.3  # share of an image's key points that the next one shows
_STEP = math.radians(2.0)  # angle by which they appear to move


def are_photographs(frames: Sequence[Frame], filmed: Callable[[], bool] = lambda: False) -> bool:
    """Whether images were taken one by one, far apart, rather than filmed.

    What is lost by taking photographs for a film: a softmax needs landmarks that many images see, and its
    few pixels. The other way round, only time.

    Args:
        frames: the mapping images.
        filmed: looks at many images that belong to no sequence; see `is_film`.
    """
    if len(frames) <= _FEW_PHOTOS:
        return True
    return all(f.sequence is None for f in frames) and not filmed()


def is_film(dataset: Dataset, run: Run) -> bool:
    """Whether most images look like the next one, from a baseline that is short against the depth.

    The angle between the rays of matched key points, with the poses known, is that of the baseline over
    the depth, whatever the unit and also where it is too small to triangulate.

    Raises:
        DataError: a frame without pose, or an image that cannot be read.
    """
    starts = evenly(len(dataset) - 1, _PAIRS)
    frames = np.unique(np.concatenate([starts, starts + 1]))
    runtime = run.runtime
    detector = KeypointDetector(_RESOLUTION, runtime.device == "cpu").to(runtime.device)
    features = describe(dataset, frames, detector, _KEYPOINTS, run, resumable=False)
    observations = features.observations()
    near = 0
    for start in np.searchsorted(frames, starts):
        first, second = match_pairs(
            features.descriptors, observations, pairs=np.array([[start, start + 1]])
        )
        if len(first) < max(_ALIKE * features.counts[start], 1):
            continue
        cosine = (observations.rays[first] * observations.rays[second]).sum(1)
        near += bool(np.median(cosine) > math.cos(_STEP))
    return 2 * near > len(starts)

"""The mapping images as the field is trained with them: small, undistorted, kept as far as they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from reloc_core.interfaces import Dataset
from reloc_core.mapping import View, make_view
from reloc_core.types import Float64Array


class Views(Sequence[View]):
    """Views of chosen frames of a dataset.

    Args:
        dataset: posed.
        frames: indices.
        short_side: see `reloc_core.mapping.make_view`.
        cache_mb: memory for views; beyond it images are read again.
    """

    def __init__(
        self, dataset: Dataset, frames: np.ndarray, short_side: int, cache_mb: int
    ) -> None:
        self.dataset, self.frames, self.short_side = dataset, frames, short_side
        self._free = cache_mb * 1e6
        self._kept: dict[int, View] = {}

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def poses(self) -> Float64Array:
        """(N, 4, 4)."""
        every = self.dataset.frames
        return np.stack([every[int(i)].world_from_cam for i in self.frames])  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> View:  # type: ignore[override]
        if index in self._kept:
            return self._kept[index]
        view = make_view(self.dataset[int(self.frames[index])], self.short_side)
        size = view.image.nbytes + (0 if view.depth is None else view.depth.nbytes)
        if self._free >= size:
            self._free -= size
            self._kept[index] = view
        return view


def posed(view: View) -> Float64Array:
    """The pose of a mapping image, which always has one."""
    assert view.world_from_cam is not None
    return view.world_from_cam


def half(view: View) -> View:
    """The same view at half the resolution."""
    target = view.camera.scaled(view.camera.width // 2, view.camera.height // 2)
    image = cv2.resize(view.image, (target.width, target.height), interpolation=cv2.INTER_AREA)
    mask = None if view.mask is None else view.mask[::2, ::2][: target.height, : target.width]
    depth = None if view.depth is None else view.depth[::2, ::2][: target.height, : target.width]
    return replace(view, camera=target, image=np.asarray(image, np.uint8), mask=mask, depth=depth)

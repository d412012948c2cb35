"""Mapping images turned upright, as queries are: features of both are recognised best that way."""

from __future__ import annotations

from dataclasses import replace

from reloc_core.datasets.derived import Derived
from reloc_core.interfaces import Dataset
from reloc_core.orientation import QUARTERS, Turn, upright
from reloc_core.types import Frame, Query


class Upright(Derived):
    """A dataset whose images, cameras and poses are turned as EXIF says.

    Args:
        dataset: with the stored pixels.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, map(_turned, dataset.frames))

    @classmethod
    def of(cls, dataset: Dataset) -> Dataset:
        """The dataset upright; itself where nothing is to be turned."""
        turned = any(frame.orientation in QUARTERS for frame in dataset.frames)
        return cls(dataset) if turned else dataset

    def __getitem__(self, index: int) -> Query:
        """Read an image and turn it."""
        return upright(self._dataset[index])[0]

    def without_depth(self) -> Dataset:
        """The same images without depth maps."""
        return Upright(self._dataset.without_depth())


def _turned(frame: Frame) -> Frame:
    turn = Turn(QUARTERS.get(frame.orientation, 0))
    pose = frame.world_from_cam
    return replace(
        frame,
        camera=turn.camera(frame.camera),
        world_from_cam=None if pose is None else turn.pose(pose),
        orientation=1,
    )

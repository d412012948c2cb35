"""Datasets made of another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reloc_core.interfaces import Dataset
from reloc_core.types import Frame


class Derived(Dataset):
    """A dataset that takes its queries from another one and says of itself what that one says.

    Args:
        dataset: where the queries come from.
        frames: metadata of this dataset's images.
    """

    def __init__(self, dataset: Dataset, frames: Iterable[Frame]) -> None:
        self._dataset, self._frames = dataset, tuple(frames)

    @property
    def name(self) -> str:
        """As the other dataset."""
        return self._dataset.name

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata of all images."""
        return self._frames

    @property
    def notes(self) -> Sequence[str]:
        """As the other dataset."""
        return self._dataset.notes

    @property
    def has_depth(self) -> bool:
        """As the other dataset."""
        return self._dataset.has_depth

    @property
    def unit(self) -> str:
        """As the other dataset."""
        return self._dataset.unit

"""Some frames of another dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reloc_core.datasets.derived import Derived
from reloc_core.interfaces import Dataset
from reloc_core.types import Query


class Subset(Derived):
    """Some frames of another dataset, in the given order.

    Args:
        dataset: where the frames come from.
        indices: which.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self._indices = [int(i) for i in indices]
        super().__init__(dataset, [dataset.frames[i] for i in self._indices])

    @classmethod
    def without(cls, dataset: Dataset, left_out: npt.NDArray[np.int64]) -> Dataset:
        """The dataset without some of its frames; itself where none is left out."""
        if not len(left_out):
            return dataset
        kept = np.setdiff1d(np.arange(len(dataset)), left_out)
        return cls(dataset, kept.tolist())

    @property
    def name(self) -> str:
        """Name of the whole dataset and the size of the subset."""
        return f"{self._dataset.name}[{len(self._indices)}]"

    def __getitem__(self, index: int) -> Query:
        """Read one of the chosen images."""
        return self._dataset[self._indices[index]]

    def without_depth(self) -> Dataset:
        """The same frames without depth maps, which are then not read."""
        return Subset(self._dataset.without_depth(), self._indices)

"""Stages of mapping in pieces: an interrupted run goes on, and several processes do a share each.

A stage is a list of items, images or pairs of them, whose results do not depend on each other. It is cut
at fixed places, and what comes of each piece is a file that is written once. So it does not matter who
made which piece: one process, one that goes on where another was killed, or many, on many machines
over one disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from reloc_core.interfaces import Run
from reloc_core.storage import load_tensors, save_tensors

Part: TypeAlias = Mapping[str, np.ndarray]


class ShareDone(Exception):
    """This process has done its share, and what comes next needs the others', or is not to be shared."""


class Pieces:
    """The pieces of one stage, on disk, or in memory where the run is not to be resumed.

    Args:
        run: whose map's scratch directory holds them, and of which this process does a share.
        stage: such as "described".
        count: items of the stage.
        size: items of a piece.
        of: what the results depend on; pieces of anything else are not taken for these.
        resumable: False to keep them in memory.

    Attributes:
        todo: items of each piece that is missing and this process's to make.
        done: items that need not be made any more.
        expected: of all items, those that are done when this process has finished.
    """

    def __init__(
        self, run: Run, stage: str, count: int, size: int, of: Sequence[object], resumable: bool
    ) -> None:
        self._run, self._stage = run, stage
        self._memory: dict[range, Part] | None = None if resumable else {}
        key = hashlib.sha256("\n".join(map(str, of)).encode()).hexdigest()[:12]
        ranges = [range(i, min(i + size, count)) for i in range(0, count, size)]
        self._files: dict[range, Path] = (
            {r: run.map.scratch / f"{stage}-{key}-{r.start:09d}.safetensors" for r in ranges}
            if resumable
            else dict.fromkeys(ranges, Path())
        )
        self._share = run.map.share if resumable else None
        missing = [r for r, file in self._files.items() if not (resumable and file.is_file())]
        self.done = count - sum(map(len, missing))
        first, step = (0, 1) if self._share is None else (self._share[0] - 1, self._share[1])
        own = ranges[first::step]
        self.todo = [r for r in missing if r in own]
        self.expected = self.done + sum(map(len, self.todo))

    def write(self, items: range, part: Part) -> None:
        """Keep what came of a piece."""
        if self._memory is not None:
            self._memory[items] = part
            return
        save_tensors(self._files[items], part, {})
        if not self._run.map.has_checkpoint:
            self._run.map.save_checkpoint({}, {"stage": self._stage})

    def finish(self, last: bool = False) -> None:
        """Stop here if this process does a share and has made what is its own.

        Args:
            last: this is the last stage that can be shared.

        Raises:
            ShareDone: pieces of others are missing, or this was the last stage.
        """
        if self._share is None:
            return
        missing = sum(len(r) for r, file in self._files.items() if not file.is_file())
        if missing:
            number, of = self._share
            raise ShareDone(
                f"Share {number} of {of} is {self._stage}. {missing} of {sum(map(len, self._files))} "
                "wait for the other shares: run those, then all of them again."
            )
        if last:
            raise ShareDone(f"All is {self._stage}. Run the same without share to finish the map.")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Part:
        """What came of a piece, by its number in order."""
        items = list(self._files)[number]
        if self._memory is not None:
            return self._memory[items]
        return load_tensors(self._files[items], "np")[0]

"""The text lists of KFNet: one path a line, in video order, in several parallel files.

image_list.txt    images
label_list.txt    scene-coordinate maps (`.bin`), one per image
sequence_list.txt sequence of each image: an addition here; KFNet wires the sequences into its code
transform.txt     4x4, from the world to the frame the networks predict in; orthogonal, but its
                  determinant may be -1, so it is not checked for being a rotation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloc_core.errors import DataError, InputError
from reloc_core.io.files import read_text, write_atomically
from reloc_core.io.poses import parse_numbers
from reloc_core.types import Float64Array

IMAGES, LABELS, SEQUENCES, TRANSFORM = (
    "image_list.txt", "label_list.txt", "sequence_list.txt", "transform.txt",
)  # fmt: skip


@dataclass(frozen=True)
class LabelLists:
    """Parallel lists of one KFNet input folder.

    Attributes:
        images: image paths in video order.
        labels: paths of label maps, or None.
        sequences: sequence of each image, or None: then all are one.
        normalized_from_world: (4, 4), or None.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    sequences: tuple[str, ...] | None = None
    normalized_from_world: Float64Array | None = None


def read_label_lists(folder: Path | str) -> LabelLists:
    """Read the lists of a KFNet input folder.

    Raises:
        DataError: no image list, lists of different lengths, or a bad transform.
    """
    root = Path(folder)
    images = _lines(root / IMAGES)
    if not images:
        raise DataError(f"{root / IMAGES} lists no images.")
    others = {}
    for name in (LABELS, SEQUENCES):
        if (root / name).is_file():
            others[name] = _lines(root / name)
            if len(others[name]) != len(images):
                raise DataError(
                    f"{root / name} has {len(others[name])} lines, {IMAGES} has {len(images)}."
                )
    transform = None
    if (root / TRANSFORM).is_file():
        numbers = parse_numbers(read_text(root / TRANSFORM), root / TRANSFORM)
        if len(numbers) != 16 or not np.all(np.isfinite(numbers)):
            raise DataError(f"{root / TRANSFORM} is no 4x4 matrix.")
        transform = np.array(numbers).reshape(4, 4)
    return LabelLists(images, others.get(LABELS), others.get(SEQUENCES), transform)


def write_label_lists(folder: Path | str, lists: LabelLists) -> None:
    """Write the lists into an existing folder.

    Raises:
        InputError: lists of different lengths, or an entry that is empty or spans lines.
    """
    root = Path(folder)
    columns: list[tuple[str, Sequence[str]]] = [(IMAGES, lists.images)]
    columns += [
        (n, c) for n, c in ((LABELS, lists.labels), (SEQUENCES, lists.sequences)) if c is not None
    ]
    for name, entries in columns:
        if len(entries) != len(lists.images):
            raise InputError(f"{name}: {len(entries)} entries for {len(lists.images)} images.")
        bad = next(
            (e for e in entries if not e.strip() or e != e.strip() or len(e.splitlines()) != 1),
            None,
        )
        if bad is not None:
            raise InputError(f"{name} cannot represent the entry {bad!r}.")
    for name, entries in columns:
        write_atomically(root / name, "".join(f"{entry}\n" for entry in entries))
    if lists.normalized_from_world is not None:
        rows = (" ".join(f"{v:.17g}" for v in row) for row in lists.normalized_from_world)
        write_atomically(root / TRANSFORM, "\n".join(rows) + "\n")


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())

"""Which images are frames of one video, where a format does not say."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reloc_core.errors import ConfigError, DataError
from reloc_core.io.files import natural_key
from reloc_core.io.images import exif_tags
from reloc_core.types import Frame

KINDS = ("", "order", "name", "exif")
_LAST_NUMBER = re.compile(r"^(.*?)[0-9]+[^0-9]*$", re.DOTALL)
_GAP_S = 60.0  # between photos of one sequence


def find_sequences(
    frames: Sequence[Frame], files: Sequence[Path], kind: str, title: str
) -> tuple[list[Frame], list[int]]:
    """Frames with their sequences, and their order.

    Args:
        frames: in the order of the dataset.
        files: their images.
        kind: "order": all are one sequence; "name": those whose names differ in their last number only,
            in its order; "exif": ordered by the time of capture, which becomes their timestamp, with a
            new sequence after a minute without a photo; "" leaves them as they are.
        title: of a sequence that has no other name.

    Returns:
        the frames in their order, and the index of each in `frames`.

    Raises:
        ConfigError: unknown kind.
        DataError: a name without a number, or an image without time of capture.
    """
    if kind not in KINDS:
        raise ConfigError(f"dataset.sequence must be order, name or exif, got '{kind}'.")
    order = list(range(len(frames)))
    if kind == "order":
        return [replace(f, sequence=title) for f in frames], order
    if kind == "name":
        found = [_LAST_NUMBER.match(f.name) for f in frames]
        lonely = next((f.name for f, m in zip(frames, found, strict=True) if m is None), None)
        if lonely is not None:
            raise DataError(f"dataset.sequence=name: the name {lonely} holds no number.")
        names = [m[1] or title for m in found if m is not None]
        order.sort(key=lambda i: (natural_key(names[i]), natural_key(frames[i].name)))
        return [replace(frames[i], sequence=names[i]) for i in order], order
    if kind == "exif":
        times = [time_of_capture(file, "dataset.sequence=exif") for file in files]
        order.sort(key=lambda i: (times[i], natural_key(frames[i].name)))
        result, number = [], 0
        for before, i in zip([order[0], *order], order, strict=False):
            number += times[i] - times[before] > _GAP_S
            result.append(replace(frames[i], sequence=f"{title}-{number}", timestamp=times[i]))
        return result, order
    return list(frames), order


def time_of_capture(path: Path, option: str = "times=exif") -> float:
    """Seconds by a photo's EXIF data.

    Args:
        path: of the photo.
        option: that asks for it, for the message.

    Raises:
        DataError: it does not tell.
    """
    tags = exif_tags(path)
    text, fraction = str(tags.get(0x9003, "")), str(tags.get(0x9291, "0")).strip()
    try:
        time = datetime.datetime.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S")
        # As UTC: cameras rarely know their zone, and differences are what counts.
        seconds = time.replace(tzinfo=datetime.timezone.utc).timestamp()
        return seconds + float(f"0.{fraction}" if fraction.isdecimal() else 0)
    except (ValueError, OverflowError):
        raise DataError(
            f"{option}: {path} has no time of capture in its EXIF data. Choose another way."
        ) from None

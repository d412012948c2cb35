"""The key frames of a video or a bag, written as images."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from reloc_core.datasets.stream import UNOPENED, frame_time, video_orientation
from reloc_core.errors import DataError
from reloc_core.io.bags import ImageBag
from reloc_core.io.images import with_orientation
from reloc_core.reconstruction.keyframes import Motion, choose, measure
from reloc_core.reconstruction.options import ReconstructOptions
from reloc_core.reconstruction.photos import Photo, Source
from reloc_core.reconstruction.worker import Remote
from reloc_core.types import Camera, ImageArray

_UNEVEN = 0.25  # of the median time between frames
Frames = Callable[[], Iterator[tuple[float, ImageArray]]]


@dataclass(frozen=True)
class _Stream:
    """Frames that can be read again and again.

    Attributes:
        stem: of the names of their images.
        frames: (seconds, RGB) from the first one on.
        announced: how many there may be.
        notes: what a user should know; complete when they have been read.
        camera: their calibration, if it is known.
        orientation: of the stored pixels, as EXIF tells it.
    """

    stem: str
    frames: Frames
    announced: int
    notes: list[str]
    camera: Camera | None = None
    orientation: int = 1


def of_video(
    options: ReconstructOptions, path: Path, folder: Path, present: Sequence[str], run: Remote
) -> Source:
    """Write the key frames of a video; arguments and errors as of `source.prepare`."""
    notes: list[str] = []

    def frames() -> Iterator[tuple[float, ImageArray]]:
        notes.clear()
        capture = cv2.VideoCapture(str(path))
        # Poses belong to the stored pixels.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        if not capture.isOpened():
            raise DataError(UNOPENED.format(path))
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        number, last = 0, -1.0
        try:
            while True:
                ok, frame = capture.read()
                if not ok:
                    break
                last = frame_time(capture, number, last)
                yield last, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
                number += 1
        finally:
            capture.release()
        if not number:
            raise DataError(f"{path} gave no frame; it is empty or damaged.")
        if number < announced - 1:
            notes.append(
                f"{path.name} ended after {number} of the {announced} frames it announces: it may be "
                "truncated"
            )

    announced, orientation = _header(path)
    stream = _Stream(path.stem, frames, announced, notes, orientation=orientation)
    return _key_frames(options, stream, folder, present, run)


def _header(path: Path) -> tuple[int, int]:
    """Number of frames that a video announces, and its orientation."""
    capture = cv2.VideoCapture(str(path))
    opened = capture.isOpened()
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if opened else 0
    orientation = video_orientation(capture) if opened else 1
    capture.release()
    return max(count, 0), orientation


def of_bag(
    options: ReconstructOptions, path: Path, folder: Path, present: Sequence[str], run: Remote
) -> Source:
    """Write the key frames of a bag; arguments and errors as of `source.prepare`."""
    bag = ImageBag(path, options.topic)

    def frames() -> Iterator[tuple[float, ImageArray]]:
        bag.notes.clear()
        for message in bag:
            yield message.timestamp, message.image

    stream = _Stream(path.stem, frames, len(bag), bag.notes, bag.camera)
    return _key_frames(options, stream, folder, present, run)


def _key_frames(
    options: ReconstructOptions,
    stream: _Stream,
    folder: Path,
    present: Sequence[str],
    run: Remote,
) -> Source:
    """Write the key frames of a stream that is read twice."""
    with run.progress("Looking for key frames", stream.announced) as bar:
        motion = measure(counted(stream.frames(), bar.advance))
    said = [*stream.notes, *_timing(motion)]
    chosen = choose(motion, options.motion, options.most)
    wanted = set(chosen)
    # What they are called depends on what they show.
    staging = folder.with_name(".frames")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    taken: list[tuple[int, float, tuple[int, int], float]] = []
    with run.progress("Writing key frames", len(chosen)) as bar:
        for number, (time, image) in enumerate(stream.frames()):
            if number not in wanted:
                continue
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
            data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
            content = with_orientation(data.tobytes(), stream.orientation)
            (staging / _numbered(number)).write_bytes(content)
            size = (image.shape[1], image.shape[0])
            taken.append((number, time, size, float(image.mean())))
            bar.advance()
            if len(taken) == len(chosen):
                break
    stem, there = _free_stem(re.sub(r"[^\w.-]", "_", stream.stem), staging, folder, set(present))
    photos = []
    for number, time, (width, height), bright in taken:
        if number in there:
            continue
        name = f"{stem}_{_numbered(number)}"
        (staging / _numbered(number)).replace(folder / name)
        sharp = float(motion.sharpness[number])
        lens = f"{stem} {width}x{height}"
        photos.append(Photo(name, width, height, lens, sharp, stream.orientation, time, "", bright))
    shutil.rmtree(staging, ignore_errors=True)
    said.append(f"{len(taken)} key frames of {len(motion)} frames")
    if there:
        said.append(f"{len(there)} key frames are there already")
    return Source(tuple(photos), True, tuple(said), stream.camera)


def _numbered(frame: int) -> str:
    return f"{frame:06d}.jpg"


def _free_stem(stem: str, staging: Path, folder: Path, present: set[str]) -> tuple[str, set[int]]:
    """What the frames in `staging` are called in `folder`, and which of them are there already.

    Images that are there have poses, so no other picture may take their names.
    """
    frames = sorted(staging.iterdir())
    for count in itertools.count(1):
        tried = stem if count == 1 else f"{stem}-{count}"
        same = [file for file in frames if f"{tried}_{file.name}" in present]
        if same and all(_equal(file, folder / f"{tried}_{file.name}") for file in same):
            return tried, {int(file.stem) for file in same}
        pattern = re.compile(re.escape(tried) + r"_[0-9]{6,}\.jpg")
        if not any(map(pattern.fullmatch, present)):
            return tried, set()
    raise AssertionError("there is always a free number")


def _equal(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def counted(
    frames: Iterator[tuple[float, ImageArray]], advance: Callable[[], None]
) -> Iterator[tuple[float, ImageArray]]:
    """Frames, and a step of progress after each."""
    for frame in frames:
        yield frame
        advance()


def _timing(motion: Motion) -> list[str]:
    """A remark where the frames are not evenly spaced in time."""
    steps = np.diff(motion.times)
    steps = steps[steps > 0]
    if len(steps) < 4:
        return []
    usual = float(np.median(steps))
    odd = int((np.abs(steps / usual - 1) > _UNEVEN).sum())
    if odd <= 0.02 * len(steps):
        return []
    return [
        f"the frame rate varies ({1 / steps.max():.3g} to {1 / steps.min():.3g} a second): times come "
        "from the frames, not from their numbers"
    ]

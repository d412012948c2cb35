"""The images that a reconstruction starts from: photos, or the key frames of a video, a bag or a folder."""

from __future__ import annotations

import contextlib
import glob
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from reloc_core.datasets.convert import place_image
from reloc_core.datasets.images import find_images, image_names
from reloc_core.datasets.stream import UNOPENED, VIDEO_SUFFIXES, frame_time, video_orientation
from reloc_core.errors import DataError
from reloc_core.io.bags import ImageBag, is_bag
from reloc_core.io.files import list_files
from reloc_core.io.headers import read_header
from reloc_core.io.images import exif_tags, read_image, with_orientation
from reloc_core.reconstruction.keyframes import (
    Motion,
    choose,
    measure,
    moved_by,
    sharpness_of,
    small_grey,
)
from reloc_core.reconstruction.options import ReconstructOptions
from reloc_core.reconstruction.worker import Remote
from reloc_core.types import Camera, ImageArray

FEWEST = 3
"""Images that a reconstruction needs."""
_VIDEO_LEAST = 60  # images of a folder that may be the frames of a video
_PROBES = 12
BLUR_FLOOR = 8.0
"""Variance of the Laplacian at 320 pixels below which a picture shows no detail at all."""
_DARK = 25.0  # mean grey
_SAME_GREY = 0.02  # mean difference of small grey pictures that show the same, over their contrast
_TINY = (64, 48)
_LAST_NUMBER = re.compile(r"^(.*?)([0-9]+)([^0-9]*)$", re.DOTALL)
_UNEVEN = 0.25  # of the median time between frames
Frames = Callable[[], Iterator[tuple[float, ImageArray]]]


@dataclass(frozen=True)
class Photo:
    """One image of the reconstruction.

    Attributes:
        name: below `images/`.
        width: of the stored pixels; 0 where it could not be read.
        height: of the stored pixels.
        lens: what images of one camera share.
        sharpness: variance of the Laplacian of the small grey picture.
        orientation: tag of EXIF.
        timestamp: seconds, of a frame.
        problem: why it takes no part; "" if it does.
        brightness: mean grey.
    """

    name: str
    width: int = 0
    height: int = 0
    lens: str = ""
    sharpness: float = 0.0
    orientation: int = 1
    timestamp: float | None = None
    problem: str = ""
    brightness: float = 255.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """What was found under `images=`.

    Attributes:
        photos: in their order.
        video: whether they are frames of one video.
        notes: what a user should know.
        camera: calibration that a bag holds.
    """

    photos: tuple[Photo, ...]
    video: bool
    notes: tuple[str, ...] = ()
    camera: Camera | None = None


def input_files(images: str) -> list[Path]:
    """The files that are there of `images=`.

    Raises:
        DataError: there are no images.
    """
    path = Path(images).expanduser()
    if is_bag(path):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
    elif _is_video(path):
        files = [_the_video(path)]
    else:
        files = _images(images)[0]
    return [file for file in files if file.is_file()]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _the_video(path: Path) -> Path:
    """The path of a video that exists.

    Raises:
        DataError: there is none, or the path is a pattern.
    """
    if not path.is_file():
        raise _one_video(path, _videos(path)) or DataError(f"The video {path} does not exist.")
    return path


def _images(images: str) -> tuple[list[Path], Path]:
    """As `find_images`.

    Raises:
        DataError: there are no images; says so if there are videos.
    """
    try:
        return find_images(images)
    except DataError as error:
        path = Path(images).expanduser()
        raise _one_video(path, _videos(path)) or error from None


def _videos(path: Path) -> list[Path]:
    """Videos in a folder, or that a pattern names."""
    if path.is_dir():
        found = [path / name for name in list_files(path)]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    return [file for file in found if _is_video(file)]


def _one_video(path: Path, videos: Sequence[Path]) -> DataError | None:
    if not videos:
        return None
    others = ", and add the others with add=true" if len(videos) > 1 else ""
    return DataError(
        f"{path} names {len(videos)} videos, no images: give one of them, images={videos[0]}{others}."
    )


def prepare(
    options: ReconstructOptions, folder: Path, present: Sequence[str], run: Remote
) -> Source:
    """Put the images into a folder.

    Args:
        options: say which.
        folder: gets the images.
        present: names that are taken: of the workspace that images are added to.
        run: hears of the progress.

    Raises:
        DataError: there are no images, fewer than three, or none that shows anything.
    """
    path = Path(options.images).expanduser()
    if is_bag(path):
        source = _bag(options, path, folder, present, run)
    elif _is_video(path):
        source = _video(options, path, folder, present, run)
    else:
        source = _folder(options, folder, present, run)
    if not present:
        _check_detail(options.images, source.photos)
    usable = sum(not photo.problem for photo in source.photos)
    if usable < FEWEST and not present:
        problems = [f"{p.name}: {p.problem}" for p in source.photos if p.problem]
        why = f" Not used: {problems[0]}." if problems else ""
        frames = "its key frames are" if source.video else "there are"
        noted = f" ({'; '.join(source.notes)})" if source.notes else ""
        raise DataError(
            f"A reconstruction needs at least {FEWEST} different images, better 20 or more from different "
            f"places; of {options.images} {frames} {usable}{noted}.{why}"
        )
    if not usable:
        raise DataError(f"{options.images} has no image that is new and can be read.")
    return source


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


def _check_detail(images: str, photos: Sequence[Photo]) -> None:
    """Refuse images that are all blurred or dark; those count, too, that look the same because of it.

    Raises:
        DataError: none shows any detail.
    """
    read = [photo for photo in photos if photo.width]
    if len(read) < FEWEST or any(photo.sharpness >= BLUR_FLOOR for photo in read):
        return
    dark = float(np.median([photo.brightness for photo in read])) < _DARK
    raise DataError(
        f"All {len(read)} images of {images} are {'dark' if dark else 'blurred'}: they show no detail to "
        f"match. {'Give the place' if dark else 'Hold the camera still, or give it'} more light."
    )


def _video(
    options: ReconstructOptions, path: Path, folder: Path, present: Sequence[str], run: Remote
) -> Source:
    _the_video(path)
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


def _bag(
    options: ReconstructOptions, path: Path, folder: Path, present: Sequence[str], run: Remote
) -> Source:
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
        motion = measure(_counted(stream.frames(), bar.advance))
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


def _counted(
    frames: Iterator[tuple[float, ImageArray]], advance: Callable[[], None]
) -> Iterator[tuple[float, ImageArray]]:
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


def _folder(
    options: ReconstructOptions, folder: Path, present: Sequence[str], run: Remote
) -> Source:
    files, base = _images(options.images)
    names = [plain_name(name) for name in image_names(files, base)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"Two of the images would be called {twice}; rename one.")
    notes: list[str] = []
    if videos := _videos(Path(options.images).expanduser()):
        notes.append(f"{videos[0].name} is left out: videos are given, or added, one at a time")
    video = options.video if options.video is not None else _looks_like_video(files)
    if video:
        with run.progress("Looking for key frames", len(files)) as bar:
            motion = measure(_counted(_read_all(files), bar.advance))
        chosen = choose(motion, options.motion, options.most)
        notes.append(
            f"{len(chosen)} key frames of {len(files)} images, taken for a video (video=false takes all)"
        )
        files, names = [files[i] for i in chosen], [names[i] for i in chosen]
    photos: list[Photo] = []
    seen: list[ImageArray] = []
    seen_names: list[str] = []
    taken = set(present)
    fresh = [(path, name) for path, name in zip(files, names, strict=True) if name not in taken]
    if len(fresh) < len(files):
        notes.append(f"{len(files) - len(fresh)} images are there already, by their names")
    with run.progress("Reading images", len(fresh)) as bar:
        for path, name in fresh:
            photo, tiny = _photo(path, name, options)
            if tiny is not None:
                twin = _twin(tiny, seen)
                if twin is not None:
                    photo = replace(photo, problem=f"duplicate of {seen_names[twin]}")
                else:
                    seen.append(tiny)
                    seen_names.append(name)
            if not photo.problem:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    _place_whole(path, target, options.link)
            photos.append(photo)
            bar.advance()
    return Source(tuple(photos), video, tuple(notes))


def plain_name(name: str) -> str:
    """A name as COLMAP's lists can hold it: without blanks."""
    return re.sub(r"\s", "_", name)


def _place_whole(source: Path, target: Path, mode: str) -> None:
    """Put an image where others look for it, whole or not at all."""
    partial = target.with_name(f".{target.name}.tmp")
    partial.unlink(missing_ok=True)
    place_image(source, partial, mode)
    partial.replace(target)


def _read_all(files: Sequence[Path]) -> Iterator[tuple[float, ImageArray]]:
    """Images of a folder as the frames of a video; one that cannot be read repeats the last."""
    last = np.zeros((_TINY[1], _TINY[0], 3), np.uint8)
    for number, path in enumerate(files):
        with contextlib.suppress(DataError):
            last = read_image(path)
        yield float(number), last


def _photo(path: Path, name: str, options: ReconstructOptions) -> tuple[Photo, ImageArray | None]:
    """What an image says about itself, and its tiny grey picture."""
    try:
        header = read_header(path)
        image = read_image(path)
    except DataError as error:
        return Photo(name, problem=f"cannot be read: {error}"), None
    grey = small_grey(image)
    height, width = image.shape[:2]
    photo = Photo(
        name, width, height, _lens(path, name, (width, height), options.cameras),
        sharpness_of(grey), header.orientation, brightness=float(grey.mean()),
    )  # fmt: skip
    return photo, np.asarray(cv2.resize(grey, _TINY, interpolation=cv2.INTER_AREA), np.uint8)


def _lens(path: Path, name: str, size: tuple[int, int], kind: str) -> str:
    if kind == "each":
        return name
    shape = f"{size[0]}x{size[1]}"
    if kind == "one":
        return shape
    # Model, lens and zoom; what differs in them has another focal length.
    tags = exif_tags(path)
    told = [str(tags[tag]).strip("\0 ") for tag in (0xA434, 0x920A, 0xA405, 0xA404) if tag in tags]
    return " ".join([shape, *told])


def _twin(tiny: ImageArray, seen: Sequence[ImageArray]) -> int | None:
    """Index of a picture that shows the same."""
    if not seen:
        return None
    difference = np.abs(np.stack(seen).astype(np.float32) - tiny).mean((1, 2))
    best = int(difference.argmin())
    # Dark or flat pictures differ little whatever they show.
    return best if difference[best] <= _SAME_GREY * float(tiny.std()) else None


def _looks_like_video(files: Sequence[Path]) -> bool:
    """Whether images of a folder are numbered and each looks nearly as the one before."""
    if len(files) < _VIDEO_LEAST:
        return False
    found = [_LAST_NUMBER.match(path.stem) for path in files]
    if len({match and (match[1], match[3]) for match in found}) != 1 or found[0] is None:
        return False
    near = 0
    probes = np.linspace(0, len(files) - 2, _PROBES).astype(int).tolist()
    for i in probes:
        try:
            pair = [small_grey(read_image(files[k])) for k in (i, i + 1)]
        except DataError:
            continue
        step = moved_by(pair[0], pair[1])
        near += step is not None and step < 0.15
    return near >= 0.8 * len(probes)

"""Images without poses, as queries of `reloc localize`."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

from reloc_core.datasets.base import FileDataset
from reloc_core.datasets.config import CameraConfig
from reloc_core.errors import ConfigError, DataError, InputError, did_you_mean
from reloc_core.io.cameras import fit_camera
from reloc_core.io.files import is_junk, list_files, natural_key
from reloc_core.io.headers import read_header
from reloc_core.io.images import IMAGE_SUFFIXES, exif_focal
from reloc_core.mapped import camera_of_mapping
from reloc_core.orientation import QUARTERS
from reloc_core.types import CAMERA_MODELS, Camera, Frame, Query

_MODEL_BY_COUNT = {3: "SIMPLE_PINHOLE", 4: "PINHOLE", 5: "RADIAL", 8: "OPENCV", 12: "FULL_OPENCV"}
_GUESS_DEGREES = 60
_UNKNOWN = Camera.pinhole(1.0, 1, 1)  # of images that cannot be read


class ImageFolder(FileDataset):
    """Images of a folder, a glob pattern or a list, without ground truth.

    An image that cannot be used, because its file is damaged or tells no focal length, is a frame
    whose reading fails with the reason; `notes` says how many there are.

    Args:
        images: folder, glob pattern (`**` recurses), image file, or a sequence of image files.
        camera: intrinsics; with all options at their defaults the focal length comes from EXIF.
        mapped: cameras of the mapping images, for `camera.from_map`.

    Raises:
        DataError: no images, or none that can be used.
        ConfigError: malformed camera options.
    """

    def __init__(
        self,
        images: str | Path | Sequence[str | Path],
        camera: CameraConfig | None = None,
        mapped: Sequence[Camera] = (),
    ) -> None:
        config = camera or CameraConfig()
        check_camera_config(config)
        files, base = find_images(images)
        frames: list[Frame] = []
        sources: dict[str, int] = {}
        known: dict[tuple[int, int], tuple[Camera, str]] = {}
        self._problems: dict[int, str] = {}
        for index, (path, name) in enumerate(zip(files, image_names(files, base), strict=True)):
            try:
                header = read_header(path)
                found = _camera(config, path, (header.width, header.height), mapped, known)
            except DataError as error:
                self._problems[index] = str(error)
                frames.append(Frame(name, _UNKNOWN))
                continue
            sources[found[1]] = sources.get(found[1], 0) + 1
            frames.append(Frame(name, found[0], orientation=header.orientation))
        if len(self._problems) == len(frames):
            raise DataError(next(iter(self._problems.values())))
        notes = [f"focal length of {n} images from {s}" for s, n in sources.items() if s]
        turned = sum(frame.orientation in QUARTERS for frame in frames)
        if turned:
            notes.append(
                f"{turned} images are turned by their EXIF orientation; poses belong to the stored pixels"
            )
        if self._problems:
            notes.append(
                f"{len(self._problems)} of {len(frames)} images cannot be used: "
                + next(iter(self._problems.values()))
            )
        title = base.resolve().name or str(base)
        super().__init__(title, frames, files, None, notes)

    def __getitem__(self, index: int) -> Query:
        """Read an image; see `Dataset`."""
        if index in self._problems:
            raise DataError(self._problems[index])
        return super().__getitem__(index)

    def selected(self, chosen: Sequence[int], sequence: str | None = None) -> ImageFolder:
        """Some of the images, in the given order, as frames of one sequence if it is named."""
        result = copy(self)
        frames = [self._frames[i] for i in chosen]
        result._frames = tuple(replace(f, sequence=sequence) if sequence else f for f in frames)
        result._images = tuple(self._images[i] for i in chosen)
        result._problems = {
            k: self._problems[i] for k, i in enumerate(chosen) if i in self._problems
        }
        return result

    def at_times(self, seconds: Sequence[float]) -> ImageFolder:
        """The same images, taken at these times."""
        result = copy(self)
        result._frames = tuple(
            replace(f, timestamp=t) for f, t in zip(self._frames, seconds, strict=True)
        )
        return result


def _camera(
    config: CameraConfig,
    path: Path,
    size: tuple[int, int],
    mapped: Sequence[Camera],
    known: dict[tuple[int, int], tuple[Camera, str]],
) -> tuple[Camera, str]:
    """Camera of an image of known size, and where its focal length comes from ("": as given)."""
    if size in known:
        return known[size]
    if config.focal is not None or config.params is not None:
        known[size] = camera_from_config(config, *size), ""
        return known[size]
    fits = config.from_map and camera_of_mapping(mapped, *size) is not None
    # Photos have another shape than the videos of the same phone.
    exif = None if fits else exif_focal(path)
    if config.from_map and exif is None:
        camera = mapped_camera(mapped, *size, str(path))
        if config.focal_sigma is not None:
            camera = replace(camera, focal_sigma=config.focal_sigma)
        known[size] = camera, "the mapping images"
        return known[size]
    if exif is None:
        raise DataError(_no_focal(path, size))
    sigma = exif.sigma if config.focal_sigma is None else config.focal_sigma
    why = (
        f", as no camera of the mapping images fits {size[0]}x{size[1]}" if config.from_map else ""
    )
    camera = replace(Camera.pinhole(exif.focal, *size), focal_sigma=sigma)
    return camera, f"EXIF: {exif.source}{why}"


def mapped_camera(mapped: Sequence[Camera], width: int, height: int, name: str) -> Camera:
    """The camera of the mapping images for images of a size.

    Raises:
        DataError: none fits what `name` names.
    """
    camera = camera_of_mapping(mapped, width, height)
    if camera is None:
        sizes = sorted({f"{c.width}x{c.height}" for c in mapped})
        raise DataError(
            f"{name} is {width}x{height}, which no camera of the mapping images fits "
            f"({', '.join(sizes) or 'the map knows none'}): give its focal length, camera.focal=F."
        )
    return camera


def check_choice(step: int, limit: int | None) -> None:
    """Refuse to keep every n-th image, at most so many, where these make no sense.

    Raises:
        ConfigError: one is below 1.
    """
    if step < 1 or (limit is not None and limit < 1):
        raise ConfigError("frame_step and max_frames must be at least 1.")


def check_camera_config(config: CameraConfig) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: says which.
    """
    given = config.focal is not None or config.params is not None
    if not given and (config.model is not None or config.width or config.height):
        raise ConfigError(
            "camera.model, camera.width and camera.height need camera.params or camera.focal."
        )
    if given and config.from_map:
        raise ConfigError("camera.from_map takes the camera of the map: give no other options.")
    if config.focal_sigma is not None and not 0 <= config.focal_sigma <= 1:
        raise ConfigError(
            f"camera.focal_sigma is a share of the focal length, 0 to 1, got {config.focal_sigma}."
        )
    if given:
        # Their shape is another question, which depends on the image.
        camera_from_config(config, config.width or 2, config.height or 2)


def camera_from_config(config: CameraConfig, width: int, height: int) -> Camera:
    """The camera that options describe, for an image of the given size.

    Args:
        config: has `focal` or `params`.
        width: of the image in pixels.
        height: of the image in pixels.

    Raises:
        ConfigError: the options contradict each other or give no camera.
        DataError: `config.width` x `config.height` has another shape than the image.
    """
    if (config.width is None) != (config.height is None):
        raise ConfigError("Give camera.width and camera.height together.")
    if config.focal is not None and config.params is not None:
        raise ConfigError("Give either camera.focal or camera.params, not both.")
    w, h = config.width or width, config.height or height
    try:
        if config.params is not None:
            camera = Camera(_model(config), w, h, tuple(config.params))
        elif config.focal is not None:
            if config.model not in (None, "SIMPLE_PINHOLE"):
                raise ConfigError(f"camera.model={config.model} needs camera.params.")
            camera = Camera.pinhole(config.focal, w, h)
        else:
            raise ConfigError("Give camera.focal or camera.params.")
    except InputError as error:
        raise ConfigError(f"camera: {error}") from None
    camera = replace(camera, focal_sigma=config.focal_sigma or 0.0)
    try:
        return fit_camera(camera, width, height)
    except InputError as error:
        raise DataError(str(error)) from None


def _model(config: CameraConfig) -> str:
    params = config.params or []
    if config.model is not None:
        if config.model not in CAMERA_MODELS:
            raise ConfigError(
                f"Unknown camera.model '{config.model}'.{did_you_mean(config.model, CAMERA_MODELS)}"
            )
        return config.model
    if len(params) not in _MODEL_BY_COUNT:
        raise ConfigError(
            f"No camera model has {len(params)} parameters; name one with camera.model="
            f"{'|'.join(CAMERA_MODELS)}."
        )
    return _MODEL_BY_COUNT[len(params)]


def find_images(images: str | Path | Sequence[str | Path]) -> tuple[list[Path], Path]:
    """Image files in natural order (a list keeps its own) and the folder they are named from.

    Raises:
        DataError: there are none.
    """
    if not isinstance(images, str | Path):
        files = [Path(p) for p in images]
        if not files:
            raise DataError("The list of images is empty.")
        return files, files[0].parent
    path = Path(images).expanduser()
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        files = [path / n for n in list_files(path) if _is_image(Path(n))]
        if not files:
            raise DataError(
                f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}). For images in its "
                f"sub-folders use images='{path}/**/*.jpg'."
            )
        return files, path
    pattern = str(path)
    if not glob.has_magic(pattern):
        raise DataError(f"{path} does not exist. Give a folder, an image or a pattern.")
    names = sorted(glob.glob(pattern, recursive=True), key=natural_key)
    files = [p for p in map(Path, names) if p.is_file() and _is_image(p)]
    if not files:
        raise DataError(
            f"No image matches {pattern}. Quote the pattern for the shell and check it."
        )
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return files, Path(*parts[:fixed]) if fixed else Path()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name)


def image_names(files: Sequence[Path], base: Path) -> list[str]:
    """File names, or paths below `base` where names are not unique."""
    names = [f.name for f in files]
    if len(set(names)) == len(names):
        return names
    try:
        return [f.relative_to(base).as_posix() for f in files]
    except ValueError:
        return [f.as_posix() for f in files]


def _no_focal(path: Path, size: tuple[int, int]) -> str:
    guess = max(size) / 2 / math.tan(math.radians(_GUESS_DEGREES / 2))
    return (
        f"{path} has no focal length in its EXIF data: give it in pixels, camera.focal=F (or "
        f"camera.params and camera.model).\nIf unknown, camera.focal={guess:.0f} would be a field of "
        f"view of {_GUESS_DEGREES} degrees."
    )

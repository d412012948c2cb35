"""Images without poses, as queries of `reloc localize`."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from pathlib import Path

from reloc_core.datasets.base import FileDataset
from reloc_core.datasets.config import CameraConfig
from reloc_core.errors import ConfigError, DataError, InputError, did_you_mean
from reloc_core.io.files import is_junk, list_files
from reloc_core.io.images import IMAGE_SUFFIXES, exif_focal, image_size
from reloc_core.types import CAMERA_MODELS, Camera, Frame

_MODEL_BY_COUNT = {3: "SIMPLE_PINHOLE", 4: "PINHOLE", 5: "RADIAL", 8: "OPENCV", 12: "FULL_OPENCV"}
_GUESS_DEGREES = 60


class ImageFolder(FileDataset):
    """Images of a folder, a glob pattern or a list, without ground truth.

    Args:
        images: folder, glob pattern (`**` recurses), image file, or a sequence of image files.
        camera: intrinsics; with all options None the focal length comes from EXIF.

    Raises:
        DataError: no images, an unreadable one, or no focal length.
        ConfigError: malformed camera options.
    """

    def __init__(
        self, images: str | Path | Sequence[str | Path], camera: CameraConfig | None = None
    ) -> None:
        config = camera or CameraConfig()
        files, base = _find(images)
        frames: list[Frame] = []
        sources: dict[str, int] = {}
        known: dict[tuple[int, int], Camera] = {}
        given = config.focal is not None or config.params is not None
        if not given and (config.model is not None or config.width or config.height):
            raise ConfigError(
                "camera.model, camera.width and camera.height need camera.params or camera.focal."
            )
        for path, name in zip(files, _names(files, base), strict=True):
            size = image_size(path)
            if given:
                if size not in known:
                    known[size] = camera_from_config(config, *size)
                frames.append(Frame(name, known[size]))
                continue
            exif = exif_focal(path)
            if exif is None:
                raise DataError(_no_focal(path, size))
            sources[exif.source] = sources.get(exif.source, 0) + 1
            frames.append(Frame(name, Camera.pinhole(exif.focal, *size)))
        notes = [f"focal length of {n} images from EXIF: {s}" for s, n in sources.items()]
        title = base.resolve().name or str(base)
        super().__init__(title, frames, files, None, notes)


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
    if (w, h) == (width, height):
        return camera
    if abs(width / w / (height / h) - 1) > 0.01:
        raise DataError(
            f"The image is {width}x{height}, the camera is for {w}x{h}, which is another shape: "
            "it was cropped or turned, so its intrinsics are unknown."
        )
    return camera.scaled(width, height)


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


def _find(images: str | Path | Sequence[str | Path]) -> tuple[list[Path], Path]:
    """Image files in sorted order (a list keeps its own) and the folder they are named from."""
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
    files = [p for p in map(Path, sorted(glob.glob(pattern, recursive=True))) if p.is_file()]
    files = [p for p in files if _is_image(p)]
    if not files:
        raise DataError(
            f"No image matches {pattern}. Quote the pattern for the shell and check it."
        )
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return files, Path(*parts[:fixed]) if fixed else Path()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name)


def _names(files: Sequence[Path], base: Path) -> list[str]:
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

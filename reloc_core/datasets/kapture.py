"""kapture folders as datasets; conventions are those of `reloc_core.io.kapture`."""

from __future__ import annotations

from pathlib import Path

from reloc_core.datasets.base import FileDataset, select_frames
from reloc_core.datasets.config import KaptureConfig
from reloc_core.errors import ConfigError, DataError
from reloc_core.io.kapture import read_kapture

SPLIT_FOLDERS = {"train": ("mapping", "train"), "test": ("query", "test")}
"""Folders of the splits: kapture-localization's names, then ours."""


class KaptureDataset(FileDataset):
    """The camera images of a kapture folder.

    Args:
        config: see `KaptureConfig`.

    Raises:
        DataError: missing or malformed files, or missing images.
        ConfigError: malformed options.
    """

    def __init__(self, config: KaptureConfig) -> None:
        if config.unit not in ("scene unit", "metre"):
            raise ConfigError(f"dataset.unit must be 'scene unit' or 'metre', got '{config.unit}'.")
        root = Path(config.root).expanduser()
        folder = _folder(root, config.split)
        content = read_kapture(folder, config.time_unit)
        keep = select_frames(
            len(content.frames), config.frames, config.frame_step, config.max_frames
        )
        frames = [content.frames[i] for i in keep]
        files = [content.images / frame.name for frame in frames]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(files)} images of {folder} do not exist, first: {missing[0]}."
            )
        name = root.resolve().name
        title = name if folder == root else f"{name}/{folder.name}"
        super().__init__(title, frames, files, None, (), config.unit, config.undistort)


def _folder(root: Path, split: str) -> Path:
    if (root / "sensors").is_dir():
        return root
    names = SPLIT_FOLDERS.get(split, (split,))
    for name in names:
        if (root / name / "sensors").is_dir():
            return root / name
    raise DataError(
        f"{root} is no kapture folder: it holds neither sensors/ nor {' nor '.join(names)}/sensors/."
    )

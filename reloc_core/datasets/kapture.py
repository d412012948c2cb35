"""kapture folders as datasets; conventions are those of `reloc_core.io.kapture`."""

from __future__ import annotations

from pathlib import Path

from reloc_core.checks import Checks
from reloc_core.datasets.base import FileDataset, fitted_frames, held_out, select_frames
from reloc_core.datasets.config import UNITS, KaptureConfig
from reloc_core.datasets.sequences import find_sequences
from reloc_core.errors import DataError
from reloc_core.io.kapture import read_kapture

SPLIT_FOLDERS = {"train": ("mapping", "train"), "test": ("query", "test")}
"""Folders of the splits: kapture-localization's names, then ours."""


class KaptureDataset(FileDataset):
    """The camera images of a kapture folder.

    A folder that is no split holds out images for testing, so that nothing is measured on what was
    mapped.

    Args:
        config: see `KaptureConfig`.

    Raises:
        DataError: missing or malformed files, or missing images.
        ConfigError: malformed options.
    """

    def __init__(self, config: KaptureConfig) -> None:
        options = Checks(config, "dataset.")
        options.one_of("unit", UNITS)
        options.not_negative("holdout")
        root = Path(config.root).expanduser()
        folders, whole = _folders(root, config.split)
        folder = folders[0] if len(folders) == 1 else root
        parts = [read_kapture(each, config.time_unit) for each in folders]
        every = [(frame, part.images / frame.name) for part in parts for frame in part.frames]
        notes: list[str] = []
        keep = list(range(len(every)))
        if whole and config.split != "all":
            options.one_of("split", (*SPLIT_FOLDERS, "all"))
            keep = held_out(len(keep), config.holdout, config.split, notes)
            if not keep:
                raise DataError(f"{root} leaves no images for split '{config.split}'.")
        chosen = select_frames(len(keep), config.frames, config.frame_step, config.max_frames)
        keep = [keep[i] for i in chosen]
        files = [every[i][1] for i in keep]
        frames = fitted_frames([every[i][0] for i in keep], files, notes, str(folder))
        name = root.resolve().name
        title = name if folder == root else f"{name}/{folder.name}"
        if whole and config.split != "all":
            title = f"{name}/{config.split}"
        frames, order = find_sequences(frames, files, config.sequence, title)
        files = [files[i] for i in order]
        super().__init__(title, frames, files, None, notes, config.unit, config.undistort)


def _folders(root: Path, split: str) -> tuple[list[Path], bool]:
    """The kapture folders to read, and whether one holds all splits."""
    names = SPLIT_FOLDERS.get(split, (split,))
    if (root / "sensors").is_dir():
        own = root.resolve().name
        others = {n for key, found in SPLIT_FOLDERS.items() if key != split for n in found}
        if split in SPLIT_FOLDERS and own in others and not own == split:
            raise DataError(
                f"{root} is the folder of another split than dataset.split={split}. Give the folder "
                "that holds both as dataset.root, or dataset.split=all."
            )
        return [root], own not in names
    for name in names:
        if (root / name / "sensors").is_dir():
            return [root / name], False
    if split == "all":
        found = [
            [n for n in names if (root / n / "sensors").is_dir()]
            for names in SPLIT_FOLDERS.values()
        ]
        both = [root / names[0] for names in found if names]
        if both:
            return both, False
    raise DataError(
        f"{root} is no kapture folder: it holds neither sensors/ nor {' nor '.join(names)}/sensors/."
    )

"""COLMAP workspaces as datasets: a sparse model and its images.

Poses become `world_from_cam`, principal points lose 0.5 px (see `reloc_core.io.colmap`). The world of a
structure-from-motion model has an arbitrary scale unless it was registered to something metric.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from reloc_core.checks import Checks
from reloc_core.datasets.base import FileDataset, fitted_frames, held_out, select_frames
from reloc_core.datasets.config import UNITS, ColmapConfig
from reloc_core.datasets.sequences import find_sequences
from reloc_core.errors import DataError
from reloc_core.io.colmap import find_models, read_model, read_points
from reloc_core.io.files import read_text
from reloc_core.types import Float64Array, Frame

TEST_LIST = "list_test.txt"
RECORD = "reconstruction.json"
"""What `reloc data reconstruct` writes beside the model."""


class ColmapDataset(FileDataset):
    """One split of a COLMAP workspace.

    Args:
        config: see `ColmapConfig`.

    Raises:
        DataError: missing model or images, or a list that names unknown images.
        ConfigError: malformed options.
    """

    def __init__(self, config: ColmapConfig) -> None:
        options = Checks(config, "dataset.")
        if config.unit:
            options.one_of("unit", UNITS)
        options.one_of("split", ("train", "test", "all"))
        options.not_negative("holdout")
        root = Path(config.root).expanduser()
        if not root.is_dir():
            raise DataError(f"The dataset folder {root} does not exist. Check dataset.root.")
        models = [root / config.model] if config.model else find_models(root)
        model = read_model(models[0])
        notes: list[str] = []
        if len(models) > 1:
            notes.append(
                f"{models[0].relative_to(root)} has {len(model.names)} images and is read, "
                f"none of the others ({len(models) - 1}) has more (dataset.model)"
            )
        keep = _split(config, root, model.names, notes)
        if not keep:
            raise DataError(f"{root} leaves no images for split '{config.split}'.")
        chosen = select_frames(len(keep), config.frames, config.frame_step, config.max_frames)
        keep = [keep[i] for i in chosen]
        folder = root / config.images
        files = [folder / model.names[i] for i in keep]
        frames = [Frame(model.names[i], model.cameras[i], model.world_from_cam[i]) for i in keep]
        frames = fitted_frames(frames, files, notes, "the model (dataset.images)")
        name = root.resolve().name
        title = name if config.split == "all" else f"{name}/{config.split}"
        frames, order = find_sequences(frames, files, config.sequence, title)
        files = [files[i] for i in order]
        unit = config.unit or _stored_unit(root)
        super().__init__(title, frames, files, None, notes, unit, config.undistort)
        self._model = model.path

    def model_points(self) -> Float64Array:
        """(N, 3) points of the sparse model."""
        return read_points(self._model)[0]


def _stored_unit(root: Path) -> str:
    """The unit that a workspace of `reloc data reconstruct` says it is in."""
    path = root / RECORD
    if not path.is_file():
        return "scene unit"
    try:
        unit = json.loads(read_text(path))["unit"]
    except (ValueError, KeyError, TypeError):
        unit = None
    if unit not in UNITS:
        raise DataError(f"{path} does not tell the unit: set dataset.unit, or reconstruct again.")
    return str(unit)


def _split(config: ColmapConfig, root: Path, names: Sequence[str], notes: list[str]) -> list[int]:
    if config.split == "all":
        return list(range(len(names)))
    path = root / (config.test_list or TEST_LIST)
    if config.test_list or path.is_file():
        listed = {line.strip() for line in read_text(path).splitlines() if line.strip()}
        unknown = sorted(listed - set(names))
        if unknown:
            notes.append(f"{len(unknown)} images of {path.name} are not in the model: {unknown[0]}")
        if len(unknown) == len(listed):
            raise DataError(f"{path} names no image of the model.")
        return [i for i, n in enumerate(names) if (n in listed) is (config.split == "test")]
    return held_out(len(names), config.holdout, config.split, notes)

"""Reading ground truth and estimated poses of any method for a comparison.

Formats are told apart by content: `localizations.jsonl` and result folders of `reloc evaluate`, pose lists
of eight or nine columns (pseudo ground truth, published estimates, hloc; world-to-camera) and pose logs of
ten or eleven columns (DSAC*, ACE, GLACE; world-to-camera) and rows of 3x4 poses (DFNet, NeFeS; twelve
columns, camera-to-world; the names stand in `*_gt_filename.txt` beside them). Ground truth may
also be a split in the ACE layout, which brings intrinsics and depth maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.errors import DataError
from reloc_core.evaluation.metrics import NEES_95, overconfidence
from reloc_core.evaluation.results import (
    LOCALIZATIONS_FILE,
    nees_array,
    read_localizations,
)
from reloc_core.interfaces import Dataset
from reloc_core.io.ace import stem
from reloc_core.io.files import read_text
from reloc_core.io.poselists import read_pose_list
from reloc_core.io.poses import read_pose_log, read_pose_rows
from reloc_core.types import Float64Array

_SEPARATORS = re.compile(r"[/\\_]+")


@dataclass(frozen=True)
class Truth:
    """Ground truth of one scene.

    Attributes:
        name: for titles.
        poses: `world_from_cam` (4, 4) by image, in the file's order.
        dataset: where the intrinsics and depth maps of these images are, or None.
        unit: of translations.
    """

    name: str
    poses: Mapping[str, Float64Array]
    dataset: Dataset | None = None
    unit: str = "metre"


@dataclass(frozen=True)
class Estimates:
    """Estimated poses of one method.

    Attributes:
        label: the method.
        poses: `world_from_cam` (4, 4) by image; images without a pose are missing.
        failed: images that the method reported as not localized.
        path: the file.
        overconfidence: a warning where covariances are far too small for the errors, else "".
    """

    label: str
    poses: Mapping[str, Float64Array]
    failed: frozenset[str] = field(default_factory=frozenset)
    path: str = ""
    overconfidence: str = ""


def read_truth(path: Path | str, name: str = "") -> Truth:
    """Read ground truth: an ACE split folder, a pose list, or the truth in a result of ours.

    Raises:
        DataError: no ground truth there.
    """
    source = Path(path).expanduser()
    if source.is_dir() and not (source / LOCALIZATIONS_FILE).is_file():
        dataset = AceDataset(AceConfig(str(source), "test"))
        poses = {f.name: f.world_from_cam for f in dataset.frames if f.world_from_cam is not None}
        if not poses:
            raise DataError(f"{source} has images but no poses to compare with.")
        return Truth(name or dataset.name, poses, dataset, dataset.unit)
    if _is_jsonl(source):
        results = read_localizations(_jsonl(source))
        poses = {r.name: r.truth for r in results if r.truth is not None}
        if not poses:
            raise DataError(f"{source} holds no ground truth.")
        return Truth(name or source.resolve().parent.name, poses)
    if _columns(source) == 12:
        return Truth(name or source.stem, _pose_rows(source))
    entries = read_pose_list(source)
    return Truth(name or source.stem, {e.name: e.world_from_cam for e in entries})


def read_estimates(path: Path | str, label: str = "") -> Estimates:
    """Read estimated poses; see the module docstring for the formats.

    Raises:
        DataError: missing, or none of the formats.
    """
    source = Path(path).expanduser()
    if _is_jsonl(source):
        results = read_localizations(_jsonl(source))
        name = label or _jsonl(source).resolve().parent.name
        poses = {r.name: r.world_from_cam for r in results if r.world_from_cam is not None}
        failed = frozenset(r.name for r in results) - set(poses)
        values = nees_array(results)
        values = values[np.isfinite(values)]
        warning = ""
        if len(values):
            inside = float((values <= NEES_95).mean())
            warning = overconfidence(float(values.mean()), inside, len(values))
        return Estimates(name, poses, failed, str(source), warning)
    label = label or source.stem
    if source.is_dir():
        raise DataError(f"{source} is a folder without {LOCALIZATIONS_FILE}.")
    columns = _columns(source)
    if columns in (8, 9):
        entries = read_pose_list(source)
        return Estimates(label, {e.name: e.world_from_cam for e in entries}, path=str(source))
    if columns in (10, 11):
        records = read_pose_log(source)
        return Estimates(label, {r.name: r.world_from_cam for r in records}, path=str(source))
    if columns == 12:
        return Estimates(label, _pose_rows(source), path=str(source))
    raise DataError(
        f"{source} has {columns} columns. Known: {LOCALIZATIONS_FILE}, pose lists (8 or 9 columns: name qw "
        "qx qy qz tx ty tz [focal]), pose logs (10 or 11) and results of NeFeS (12)."
    )


def _pose_rows(source: Path) -> dict[str, Float64Array]:
    """Poses of a file of 3x4 rows by the names in the file beside it, as DFNet and NeFeS publish them."""
    poses = read_pose_rows(source)
    own = source.with_name(f"{source.stem}_filename.txt")
    candidates = [own] if own.is_file() else sorted(source.parent.glob("*_gt_filename.txt"))
    for candidate in candidates:
        names = [line.strip() for line in read_text(candidate).splitlines() if line.strip()]
        if len(names) == len(poses):
            return dict(zip(names, poses, strict=True))
    raise DataError(
        f"{source} has {len(poses)} poses without names, and no *_gt_filename.txt beside it has as many."
    )


def match(truth: Sequence[str], estimated: Sequence[str], where: str = "") -> dict[str, str]:
    """Which estimate belongs to which image, by the names in ever looser forms.

    The names themselves; then without ending and role and with `/`, `_` and `-` alike, so that
    `seq-03/frame-000844.color.png` is `seq-03-frame-000844`; then, where one side has no folders at all,
    the last parts. A form counts only where it tells all names of both sides apart.

    Args:
        truth: names of the ground truth.
        estimated: names of the estimates.
        where: for the message.

    Returns:
        estimated name by true name, for those that have one.

    Raises:
        DataError: not one name agrees.
    """
    forms: list[Callable[[str], str]] = [lambda name: name, _canonical]
    if any(not any("/" in name for name in side) for side in (truth, estimated)):
        forms.append(lambda name: _canonical(PurePosixPath(name).name))
    best: dict[str, str] = {}
    for form in forms:
        left = {form(name): name for name in truth}
        right = {form(name): name for name in estimated}
        if len(left) < len(set(truth)) or len(right) < len(set(estimated)):
            continue
        found = {left[key]: right[key] for key in left.keys() & right.keys()}
        if len(found) > len(best):
            best = found
    if not best:
        raise DataError(
            f"{where or 'The estimates'}: no image name agrees with the ground truth "
            f"('{next(iter(estimated), '')}' and '{next(iter(truth), '')}')."
        )
    return best


def _canonical(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return _SEPARATORS.sub("-", (path.parent / stem(path.name)).as_posix())


def _is_jsonl(path: Path) -> bool:
    return path.suffix == ".jsonl" or (path.is_dir() and (path / LOCALIZATIONS_FILE).is_file())


def _jsonl(path: Path) -> Path:
    return path / LOCALIZATIONS_FILE if path.is_dir() else path


def _columns(path: Path) -> int:
    for line in read_text(path).splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            return len(words)
    raise DataError(f"{path} holds no poses.")

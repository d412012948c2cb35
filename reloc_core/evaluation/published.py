"""Published numbers, shown beside measured ones and always marked as such.

`conf/published/NAME.yaml`:

    title: 7Scenes, SfM pseudo ground truth
    rows:
      - method: ACE
        source: STDLoc (CVPR 2025), table 1
        status: quoted        # recomputed from published poses, quoted from a paper, or unverified
        median: {chess: [0.55, 0.18], mean: [1.10, 0.34]}       # cm, degrees
        recall_5cm_5deg: {mean: 97.1}                           # percent
        map_mb: 4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reloc_core.config import config_directory
from reloc_core.errors import ConfigError, DataError, did_you_mean
from reloc_core.evaluation.metrics import THRESHOLDS

STATUSES = {
    "recomputed": "recomputed from published poses",
    "quoted": "quoted",
    "unverified": "unverified",
}
_KEYS = frozenset({"method", "source", "status", "note", "map_mb", "mapping_time", "median"})
MEAN = "mean"


@dataclass(frozen=True)
class PublishedRow:
    """One method of a published table.

    Attributes:
        method: as published.
        source: where the numbers stand.
        status: a key of `STATUSES`.
        values: by scene (and "mean"), by column; the columns of `reloc_core.evaluation.compare.Row`.
        note: a remark.
        map_mb: size of the map in MB (10^6 bytes), or None.
        mapping_time: in words.
    """

    method: str
    source: str
    status: str
    values: Mapping[str, Mapping[str, float]]
    note: str = ""
    map_mb: float | None = None
    mapping_time: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A table of `conf/published`.

    Attributes:
        name: of the file.
        title: in words.
        rows: in the file's order.
    """

    name: str
    title: str
    rows: tuple[PublishedRow, ...]

    @property
    def scenes(self) -> tuple[str, ...]:
        """All scenes that any row has a number for, without "mean"."""
        found = dict.fromkeys(scene for row in self.rows for scene in row.values)
        return tuple(scene for scene in found if scene != MEAN)


def published_directory() -> Path:
    """Where the tables are."""
    return config_directory() / "published"


def published_names() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in published_directory().glob("*.yaml"))


def read_published(name: str) -> PublishedTable:
    """Read a table by its name or path.

    Raises:
        ConfigError: there is none of that name.
        DataError: the file is malformed; says where.
    """
    path = Path(name) if name.endswith(".yaml") else published_directory() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"There is no published table '{name}'.{did_you_mean(name, published_names())}"
        )
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is no valid YAML ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise DataError(f"{path} has no rows.")
    rows = tuple(_row(entry, f"{path}, row {i + 1}") for i, entry in enumerate(content["rows"]))
    return PublishedTable(path.stem, str(content.get("title", path.stem)), rows)


def _row(entry: Any, where: str) -> PublishedRow:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is no mapping.")
    for key in ("method", "source", "status"):
        if not entry.get(key):
            raise DataError(f"{where} has no {key}.")
    if entry["status"] not in STATUSES:
        raise DataError(f"{where}: status must be one of {', '.join(STATUSES)}.")
    recalls = {f"recall_{key}" for key in THRESHOLDS}
    unknown = set(entry) - _KEYS - recalls
    if unknown:
        key = sorted(unknown)[0]
        raise DataError(f"{where}: unknown key '{key}'.{did_you_mean(key, _KEYS | recalls)}")
    values: dict[str, dict[str, float]] = {}
    try:
        for scene, pair in (entry.get("median") or {}).items():
            centimetres, degrees = pair
            columns = values.setdefault(str(scene), {})
            columns["median_translation_m"] = float(centimetres) / 100
            if degrees is not None:
                columns["median_rotation_deg"] = float(degrees)
        for key in sorted(recalls & set(entry)):
            for scene, percent in entry[key].items():
                values.setdefault(str(scene), {})[key] = float(percent) / 100
    except (TypeError, ValueError, AttributeError):
        raise DataError(
            f"{where}: medians are [cm, degrees] and recalls percent, by scene."
        ) from None
    size = entry.get("map_mb")
    return PublishedRow(
        str(entry["method"]), str(entry["source"]), str(entry["status"]), values,
        str(entry.get("note", "")), None if size is None else float(size),
        str(entry.get("mapping_time", "")),
    )  # fmt: skip

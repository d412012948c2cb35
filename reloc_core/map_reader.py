"""Maps as they are read, by people who may have them from a stranger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reloc_core.errors import MapError, did_you_mean
from reloc_core.map_checks import check_tensors
from reloc_core.storage import beside, is_plain, load_tensors, read_yaml, sha256_of

FORMAT_VERSION = 1
MAP_FILE = "map.yaml"


@dataclass(frozen=True)
class MapInfo:
    """Identity of a map, as in `map.yaml`.

    Attributes:
        interface: "estimator" or "refiner".
        component: its registered name.
        plugin: plugin name.
        plugin_version: version that wrote the map.
        config: full config of the component.
        dataset: name, fingerprint and number of frames it was built from.
        unit: unit of translations.
        pipeline: what localizes with this map unless the user chooses otherwise: `solver` and
            `refiners`, as in a config; what is absent is left to the component.
        details: anything the component wants people to see, such as sizes or training metrics.
    """

    interface: str
    component: str
    plugin: str
    plugin_version: str
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    unit: str = "metre"
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


_DESCRIPTION: dict[str, type] = {
    **dict.fromkeys(("interface", "component", "plugin", "plugin_version", "unit"), str),
    **dict.fromkeys(("config", "dataset", "pipeline", "details"), dict),
}


class Map:
    """A finished map directory, open for reading."""

    def __init__(
        self,
        path: Path,
        info: MapInfo,
        files: Mapping[str, Mapping[str, Any]],
        prefix: str = "",
    ) -> None:
        self.path = path
        self.info = info
        self._files = files
        self._prefix = prefix

    def part(self, name: str, **identity: Any) -> Map:
        """The map of a component inside this one, as written through `MapWriter.part`.

        Args:
            name: of the part.
            identity: fields of `info` in which the part differs, such as `component` and `config`.
        """
        info = replace(self.info, **identity)
        return Map(self.path, info, self._files, f"{self._prefix}{name}.")

    @classmethod
    def open(cls, path: Path | str) -> Map:
        """Open a map and check its format and the sizes of its files.

        Raises:
            MapError: not a map, of another format version, or incomplete.
        """
        path = Path(path)
        file = path / MAP_FILE
        if not file.is_file():
            partial = partial_directory(path)
            hint = (
                " Its training was interrupted: run the same 'reloc train' command to resume."
                if partial.is_dir()
                else " Make one with 'reloc train ... map_dir=" + str(path) + "'."
            )
            raise MapError(f"There is no map in {path}.{hint}")
        info, files = _read_description(file)
        for name, entry in files.items():
            part = path / name
            size = part.stat().st_size if part.is_file() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise MapError(
                    f"{part} {found}, expected {entry['bytes']} bytes: the map is truncated. "
                    "Copy it again, or train again."
                )
        return cls(path, info, files)

    @property
    def bytes(self) -> int:
        """Total size of the tensor files."""
        return sum(int(entry["bytes"]) for entry in self._files.values())

    def has(self, name: str) -> bool:
        """Whether `NAME.safetensors` is part of the map."""
        return f"{self._prefix}{name}.safetensors" in self._files

    def tensors(
        self,
        name: str,
        framework: str = "pt",
        expect: Mapping[str, Sequence[int | str]] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `NAME.safetensors` after checking its hash: (tensors, metadata).

        Args:
            name: of the file, without its ending.
            framework: "pt" for torch tensors, "np" for NumPy arrays.
            expect: what must be in it, as in `check_tensors`.

        Raises:
            MapError: not part of the map, changed since it was written, or not as expected.
        """
        file_name = f"{self._prefix}{name}.safetensors"
        if file_name not in self._files:
            raise MapError(f"{self.path} holds no {file_name}.{did_you_mean(name, self._files)}")
        path = self.path / file_name
        if sha256_of(path) != self._files[file_name]["sha256"]:
            raise MapError(
                f"{path} is corrupt: its checksum differs. Copy it again or train again."
            )
        tensors, metadata = load_tensors(path, framework)
        if expect is not None:
            check_tensors(tensors, expect, str(path))
        return tensors, metadata


def _read_description(file: Path) -> tuple[MapInfo, dict[str, dict[str, Any]]]:
    """The checked content of `map.yaml`, which may come from a stranger."""
    try:
        content = read_yaml(file)
        if not isinstance(content, dict) or not is_plain(content):
            raise ValueError("no mapping of plain values")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise MapError(
                f"{file.parent} has map format {version}, this version reads format {FORMAT_VERSION}. "
                "Train it again, or install the version of reloc that wrote it."
            )
        values: dict[str, Any] = {}
        for name, kind in _DESCRIPTION.items():
            value = content.get(name)
            if not isinstance(value, kind):
                raise ValueError(f"'{name}' must be a {'text' if kind is str else 'mapping'}")
            values[name] = value
        files = content.get("files")
        if not isinstance(files, dict):
            raise ValueError("'files' must be a mapping")
        for name, entry in files.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
                raise ValueError(f"'{name[:60]}' has no checksum")
            if type(entry.get("bytes")) is not int or entry["bytes"] < 0:
                raise ValueError(f"'{name[:60]}' has no size")
            if Path(name).name != name or "\0" in name or len(name.encode()) > 255:
                raise MapError(f"{file} names a file outside the map: {name[:60]!r}.")
    except (ValueError, OSError) as error:
        raise MapError(f"{file} is damaged ({error}). Copy the map again.") from error
    return MapInfo(**values), files


def partial_directory(path: Path) -> Path:
    """Where a map is built before it is complete."""
    return beside(path, ".partial")

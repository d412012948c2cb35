"""Map directories: what `fit` writes and `load` reads.

    MAP/
      map.yaml            format version, component, plugin version, config, dataset fingerprint, unit,
                          and size and SHA-256 of every tensor file
      *.safetensors       tensors; loading runs no code

A map is written to `.MAP.partial/` beside its final place and renamed when complete, so a map that
exists is whole. The same directory holds the training checkpoint, which is how an interrupted run
resumes.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from reloc_core.errors import MapError, RelocError, did_you_mean
from reloc_core.interfaces import Dataset

FORMAT_VERSION = 1
MAP_FILE = "map.yaml"
_CHECKPOINT = "checkpoint.safetensors"
_STATE = "state.json"


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or missing permission into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RelocError(
                f"The disk is full while writing {path}. Free some space and run the same command "
                "again; finished work is kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RelocError(f"No permission to write {path}. Choose another directory.") from error
        if error.errno == errno.ENOTDIR or error.errno == errno.EEXIST:
            raise RelocError(f"{path} cannot be created: a file is in the way.") from error
        raise
    except Exception as error:
        # safetensors reports I/O failures as its own error type with the OS message inside.
        if "No space left on device" in str(error) or "os error 28" in str(error):
            raise RelocError(
                f"The disk is full while writing {path}. Free some space and run the same command "
                "again; finished work is kept."
            ) from error
        raise


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able metadata to a safetensors file, atomically.

    Args:
        path: target file.
        tensors: NumPy arrays or torch tensors (all of one kind).
        metadata: JSON-able values, stored in the file's header.
    """
    header = {"reloc": json.dumps(metadata)}
    temporary = path.with_name(f".{path.name}.tmp")
    with explain_os_errors(path):
        try:
            if any(type(t).__module__.startswith("torch") for t in tensors.values()):
                from safetensors.torch import save_file as save_torch

                contiguous = {k: t.detach().contiguous().cpu() for k, t in tensors.items()}
                save_torch(contiguous, temporary, header)
            else:
                from safetensors.numpy import save_file as save_numpy

                save_numpy(dict(tensors), temporary, header)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            # safetensors makes files that only their owner can read.
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def load_tensors(path: Path, framework: str = "pt") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a file of `save_tensors`.

    Args:
        path: the file.
        framework: "pt" for torch tensors, "np" for NumPy arrays.

    Returns:
        tensors and metadata.

    Raises:
        MapError: missing, truncated or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MapError(f"{path} is missing. Copy the whole map directory, or train again.")
    try:
        with safe_open(path, framework=framework) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        return tensors, json.loads(header.get("reloc", "{}"))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise MapError(
            f"{path} is truncated or corrupt ({error}). Copy it again, or train again."
        ) from error


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
        try:
            content = yaml.safe_load(file.read_text("utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise MapError(
                    f"{path} has map format {version}, this version reads format {FORMAT_VERSION}. "
                    "Train it again, or install the version of reloc that wrote it."
                )
            info = MapInfo(**{k: content[k] for k in MapInfo.__dataclass_fields__})
            files = dict(content["files"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
            raise MapError(
                f"{file} is damaged ({' '.join(str(error).split())[:120]}). Copy the map again."
            ) from error
        for name, entry in files.items():
            part = path / name
            if Path(name).name != name:
                raise MapError(f"{file} names a file outside the map: {name!r}.")
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

    def tensors(self, name: str, framework: str = "pt") -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `NAME.safetensors` after checking its hash: (tensors, metadata).

        Raises:
            MapError: not part of the map, or changed since it was written.
        """
        file_name = f"{self._prefix}{name}.safetensors"
        if file_name not in self._files:
            raise MapError(f"{self.path} holds no {file_name}.{did_you_mean(name, self._files)}")
        path = self.path / file_name
        if _sha256(path) != self._files[file_name]["sha256"]:
            raise MapError(
                f"{path} is corrupt: its checksum differs. Copy it again or train again."
            )
        return load_tensors(path, framework)


class MapWriter:
    """A map being built, with the checkpoint to resume from.

    Args:
        path: final directory.
        info: identity; a checkpoint of another config or dataset is refused.
        resume: continue an interrupted run of the same configuration.
        overwrite: replace a finished map.
        primary: False in the helper processes of a distributed run, which read the checkpoint but
            write nothing.

    Attributes:
        details: what the component wants people to see in `map.yaml`; filled in by `fit`.

    Raises:
        MapError: a finished map is there, or an unfinished one of another configuration.
    """

    def __init__(
        self,
        path: Path | str,
        info: MapInfo,
        resume: bool = True,
        overwrite: bool = False,
        primary: bool = True,
    ) -> None:
        self.path = Path(path)
        self.info = info
        self.primary = primary
        self.details: dict[str, Any] = dict(info.details)
        self.partial = partial_directory(self.path)
        self._prefix = ""
        if not primary:
            return
        if self.path.exists() and not overwrite:
            what = (
                "a finished map" if (self.path / MAP_FILE).is_file() else "a folder of other files"
            )
            raise MapError(f"{self.path} is {what}. Choose another map_dir, or set overwrite=true.")
        if self.path.exists() and not (self.path / MAP_FILE).is_file() and any(self.path.iterdir()):
            raise MapError(f"{self.path} is no map; not replacing it. Choose another map_dir.")
        with explain_os_errors(self.partial):
            if self.partial.exists():
                self._check_partial(resume)
            self.partial.mkdir(parents=True, exist_ok=True)
            (self.partial / _STATE).write_text(json.dumps(self._identity()), "utf-8")

    def _identity(self) -> dict[str, Any]:
        keep = ("interface", "component", "plugin_version", "config", "dataset")
        return {"format_version": FORMAT_VERSION,
                **{k: json.loads(json.dumps(getattr(self.info, k))) for k in keep}}  # fmt: skip

    def _check_partial(self, resume: bool) -> None:
        state = self.partial / _STATE
        try:
            same = json.loads(state.read_text("utf-8")) == self._identity()
        except (OSError, ValueError):
            same = False
        if resume and same:
            return
        if resume and any(self.partial.glob(f"*{_CHECKPOINT}")):
            raise MapError(
                f"{self.partial} holds an interrupted run with another configuration or dataset. "
                "Set resume=false to discard it, or choose another map_dir."
            )
        shutil.rmtree(self.partial)

    def part(self, name: str) -> MapWriter:
        """A writer for a component inside this one, with files, details and checkpoint of its own.

        Args:
            name: lower-case word that distinguishes the component within this map.
        """
        inner = copy.copy(self)
        inner._prefix = f"{self._prefix}{name}."
        inner.details = {}
        return inner

    @property
    def _checkpoint_file(self) -> Path:
        return self.partial / f"{self._prefix}{_CHECKPOINT}"

    @property
    def scratch(self) -> Path:
        """Directory for large temporary files; discarded with the checkpoint."""
        directory = self.partial / f"{self._prefix}scratch"
        with explain_os_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        return directory

    def save_checkpoint(self, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Replace the checkpoint, atomically."""
        if self.primary:
            save_tensors(self._checkpoint_file, tensors, metadata)

    @property
    def has_checkpoint(self) -> bool:
        """Whether an interrupted training left something to resume from."""
        return self._checkpoint_file.is_file()

    def load_checkpoint(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Read the last checkpoint as (tensors, metadata); None where there is none.

        The tensors are PyTorch's, or NumPy arrays where PyTorch is not installed.
        """
        path = self._checkpoint_file
        framework = "pt" if find_spec("torch") is not None else "np"
        return load_tensors(path, framework) if path.is_file() else None

    def save(self, name: str, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Write `NAME.safetensors` of the map."""
        if self.primary:
            save_tensors(self.partial / f"{self._prefix}{name}.safetensors", tensors, metadata)

    def so_far(self) -> Map:
        """What has been saved, to be read back after an interruption or by the run itself."""
        return Map(self.partial, self.info, self._files(), self._prefix)

    def _files(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every finished file of the map."""
        return {
            p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)}
            for p in sorted(self.partial.glob("*.safetensors"))
            if not p.name.endswith(_CHECKPOINT)
        }

    def discard_without_checkpoint(self) -> None:
        """Remove the unfinished directory when there is nothing in it to resume from."""
        if self.primary and not any(self.partial.glob(f"*{_CHECKPOINT}")):
            shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self) -> Map:
        """Write `map.yaml` and move the directory to its final place (called after `fit`)."""
        with explain_os_errors(self.partial):
            files = self._files()
            content = {"format_version": FORMAT_VERSION, **vars(self.info), "files": files}
            content["details"] = self.details
            plain = json.loads(json.dumps(content))
            with (self.partial / MAP_FILE).open("w", encoding="utf-8") as file:
                yaml.safe_dump(plain, file, sort_keys=False)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                old = self.path.with_name(f".{self.path.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                os.replace(self.path, old)
                os.replace(self.partial, self.path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(self.partial, self.path)
            # Only now: a kill before the rename must still find its checkpoint.
            for leftover in (*self.path.glob(f"*{_CHECKPOINT}"), self.path / _STATE):
                leftover.unlink(missing_ok=True)
            for directory in self.path.glob("*scratch"):
                shutil.rmtree(directory, ignore_errors=True)
        return Map.open(self.path)


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Name, size and fingerprint (of names, intrinsics and poses, not pixels) of a dataset."""
    digest = hashlib.sha256()
    for frame in dataset.frames:
        digest.update(frame.name.encode())
        digest.update(repr((frame.camera.model, frame.camera.params)).encode())
        if frame.world_from_cam is not None:
            digest.update(frame.world_from_cam.round(9).tobytes())
    return {
        "name": dataset.name,
        "frames": len(dataset),
        "fingerprint": digest.hexdigest()[:16],
    }


def partial_directory(path: Path) -> Path:
    """Where a map is built before it is complete."""
    return path.with_name(f".{path.name}.partial")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

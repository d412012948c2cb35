"""Maps as they are built, with checkpoints, by one process at a time."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from reloc_core.errors import MapError
from reloc_core.interfaces import Dataset
from reloc_core.locks import FileLock, Held
from reloc_core.map_reader import (
    FORMAT_VERSION,
    MAP_FILE,
    Map,
    MapInfo,
    partial_directory,
)
from reloc_core.storage import (
    atomic_write,
    beside,
    explain_os_errors,
    load_tensors,
    save_tensors,
    sha256_of,
)

REFINER_PART = "refiner_"
"""How the names of the files begin that were trained for a refiner, beside the estimator's."""
_CHECKPOINT = "checkpoint.safetensors"
_STATE = "state.json"


class MapWriter:
    """A map being built, with the checkpoint to resume from.

    Nobody else can write the same map, but for others that do a share of it, until `finish`,
    `discard_without_checkpoint` or `close`, or until the process ends.

    Args:
        path: final directory.
        info: identity; a checkpoint of another config or dataset is refused.
        resume: continue an interrupted run of the same configuration.
        overwrite: replace a finished map.
        primary: False in the helper processes of a distributed run, which read the checkpoint but
            write nothing.
        share: this process makes the K-th of N shares of what can be shared, as (K, N) from (1, 1) on,
            beside others that do theirs; None for one that writes the whole map.

    Attributes:
        details: what the component wants people to see in `map.yaml`; filled in by `fit`.
        used: indices of the dataset's frames that the map is made of; None for all. Set by `fit`.

    Raises:
        MapError: a finished map is there, an unfinished one of another configuration, or somebody else
            is writing it.
    """

    def __init__(
        self,
        path: Path | str,
        info: MapInfo,
        resume: bool = True,
        overwrite: bool = False,
        primary: bool = True,
        share: tuple[int, int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.info = info
        self.primary = primary
        self.share = share
        self.details: dict[str, Any] = dict(info.details)
        self.used: Sequence[int] | None = None
        self.partial = partial_directory(self.path)
        self._prefix = ""
        self._lock: FileLock | None = None
        if not primary:
            return
        self._lock = self._take_lock()
        try:
            self._prepare(resume, overwrite)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> FileLock:
        try:
            return FileLock(beside(self.path, ".lock"), shared=self.share is not None)
        except Held as held:
            raise MapError(
                f"{self.path} is being written by {held.holder}. Wait until that has finished, or choose "
                "another map_dir."
            ) from None

    def _prepare(self, resume: bool, overwrite: bool) -> None:
        if self.path.exists() and not overwrite:
            what = (
                "a finished map" if (self.path / MAP_FILE).is_file() else "a folder of other files"
            )
            raise MapError(f"{self.path} is {what}. Choose another map_dir, or set overwrite=true.")
        no_map = self.path.exists() and not (self.path / MAP_FILE).is_file()
        if no_map and (not self.path.is_dir() or any(self.path.iterdir())):
            raise MapError(f"{self.path} is no map; not replacing it. Choose another map_dir.")
        with explain_os_errors(self.partial):
            # Another share may just have begun and not said yet what it is of.
            known = (self.partial if self.share is None else self.partial / _STATE).exists()
            if known and self._resumes(resume):
                return
            self.partial.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.partial / _STATE) as file:
            json.dump(self._identity(), file)

    def close(self) -> None:
        """Let others write; what is unfinished stays to be resumed."""
        if self._lock is not None:
            self._lock.release()

    def _identity(self) -> dict[str, Any]:
        keep = ("interface", "component", "plugin_version", "config", "dataset", "pipeline")
        return {"format_version": FORMAT_VERSION,
                **{k: json.loads(json.dumps(getattr(self.info, k))) for k in keep}}  # fmt: skip

    def _resumes(self, resume: bool) -> bool:
        """Whether the unfinished directory is of the same run; if not, it is removed."""
        state = self.partial / _STATE
        try:
            before = json.loads(state.read_text("utf-8"))
        except (OSError, ValueError):
            before = None
        if (resume or self.share is not None) and before == self._identity():
            return True
        if (resume and any(self.partial.glob(f"*{_CHECKPOINT}"))) or self.share is not None:
            raise MapError(
                f"{self.partial} holds an interrupted run {self._difference(before)}. "
                + ("Choose" if self.share else "Set resume=false to discard it, or choose")
                + " another map_dir."
            )
        shutil.rmtree(self.partial)
        return False

    def _difference(self, before: Any) -> str:
        if not isinstance(before, dict):
            return "whose description is damaged"
        kinds = {
            "dataset": "another dataset or seed",
            "plugin_version": "another version of its plugin",
        }
        found = [kinds.get(key, "another configuration") for key, value in self._identity().items()
                 if before.get(key) != value]  # fmt: skip
        return f"with {' and '.join(dict.fromkeys(found))}"

    def part(self, name: str) -> MapWriter:
        """A writer for a component inside this one, with files, details and checkpoint of its own.

        Args:
            name: lower-case word that distinguishes the component within this map.
        """
        inner = copy.copy(self)
        inner._prefix = f"{self._prefix}{name}."
        inner.details, inner.used = {}, None
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

    def adopt(self, path: Path) -> None:
        """Take over a finished file `NAME.safetensors` that was made elsewhere, by a copy."""
        if self.primary:
            target = self.partial / f"{self._prefix}{path.name}"
            with (
                explain_os_errors(target),
                path.open("rb") as source,
                atomic_write(target, "wb") as copy_,
            ):
                shutil.copyfileobj(source, copy_)

    def fitted_files(self) -> dict[str, Path]:
        """Finished files of this component by the names that `adopt` takes, those of refiners aside."""
        names = {name.removeprefix(self._prefix): self.partial / name
                 for name in self._files() if name.startswith(self._prefix)}  # fmt: skip
        return {bare: path for bare, path in names.items() if not bare.startswith(REFINER_PART)}

    def so_far(self) -> Map:
        """What has been saved, to be read back after an interruption or by the run itself."""
        return Map(self.partial, self.info, self._files(), self._prefix)

    def _files(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every finished file of the map."""
        return {
            p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
            for p in sorted(self.partial.glob("*.safetensors"))
            if not p.name.endswith(_CHECKPOINT)
        }

    def discard_without_checkpoint(self) -> None:
        """Remove the unfinished directory when there is nothing in it to resume from."""
        if self.primary and not any(self.partial.glob(f"*{_CHECKPOINT}")):
            shutil.rmtree(self.partial, ignore_errors=True)
        self.close()

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
                old = beside(self.path, ".old")
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
        self.close()
        return Map.open(self.path)


def dataset_identity(dataset: Dataset) -> dict[str, Any]:
    """Name, size and fingerprint of a dataset: names, intrinsics, poses and, cheaply, its pixels."""
    digest = hashlib.sha256()
    for frame in dataset.frames:
        digest.update(frame.name.encode())
        digest.update(repr((frame.camera.model, frame.camera.params)).encode())
        if frame.world_from_cam is not None:
            digest.update(frame.world_from_cam.round(9).tobytes())
    for part in dataset.content():
        digest.update(part)
    return {
        "name": dataset.name,
        "frames": len(dataset),
        "fingerprint": digest.hexdigest()[:16],
    }

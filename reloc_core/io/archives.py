"""Unpacking archives from the internet without trusting them.

Only regular files are written, only below the target folder, never twice to one name, and never more
than the archive can plausibly hold. Links, devices and encrypted entries are refused.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, cast

from reloc_core.errors import DataError
from reloc_core.io.download import require_space
from reloc_core.maps import explain_os_errors

MAX_RATIO = 200
"""Largest plausible expansion; images hardly expand at all, text about tenfold."""

MAX_ENTRIES = 1_000_000
_FREE_BYTES = 1 << 20
_BLOCK = 1 << 20
_MAX_READ = 16 << 20  # bytes; tar headers that ask for more are hostile
# Everything that the readers of Python's library raise for damaged files; bz2 raises a bare OSError.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError,
    KeyError, IndexError, OverflowError, RuntimeError, struct.error,
)  # fmt: skip

Wanted = Callable[[str], bool]


def extract(archive: Path, folder: Path, wanted: Wanted = lambda name: True) -> list[str]:
    """Unpack a zip or tar archive (also gzip, bzip2, xz) into an existing folder.

    Args:
        archive: the file; its kind is found from its content.
        folder: where to; ideally empty, and removed by the caller if this fails.
        wanted: which entries to write, by their path; the others are checked but not written.

    Returns:
        paths of the files written, with "/", in the archive's order.

    Raises:
        DataError: damaged, truncated or hostile archive; says which entry and why.
        RelocError: the disk is full or too small.
    """
    try:
        with explain_os_errors(folder):
            if zipfile.is_zipfile(archive):
                return _extract_zip(archive, folder, wanted)
            if _is_tar(archive):
                return _extract_tar(archive, folder, wanted)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{archive.name} is damaged or truncated ({error}). Remove it and fetch again."
        ) from None
    raise DataError(
        f"{archive.name} is no zip or tar archive, or is truncated. Remove it and fetch again."
    )


def safe_path(name: str, archive: str) -> PurePosixPath:
    """An entry's path, checked to stay below the target.

    Backslashes separate folders, as in archives made by some Windows programs.

    Raises:
        DataError: absolute, with "..", a drive or a control character.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    bad = (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or (path.parts and ":" in path.parts[0])
        or any(unicodedata.category(c) == "Cc" for c in name)
    )
    if bad:
        raise DataError(
            f"{archive} is hostile or damaged: the entry {name!r} leaves the target folder."
        )
    return path


class _Writer:
    """Writes entries and keeps the promises of this module."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self._archive, self._folder = archive.name, folder
        self._seen: set[str] = set()
        self.written: list[str] = []

    def check(self, name: str) -> PurePosixPath:
        path = safe_path(name, self._archive)
        if len(self._seen) >= MAX_ENTRIES:
            raise DataError(f"{self._archive} has more than {MAX_ENTRIES} entries.")
        # One name in two spellings of case would overwrite itself on some file systems.
        key = path.as_posix().casefold()
        if key in self._seen:
            raise DataError(f"{self._archive} is hostile or damaged: it holds {name!r} twice.")
        self._seen.add(key)
        return path

    def write(self, path: PurePosixPath, source: IO[bytes], limit: int) -> int:
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        done = 0
        with target.open("xb") as file:
            while block := source.read(_BLOCK):
                done += len(block)
                if done > limit:
                    raise _bomb(self._archive, path.as_posix())
                file.write(block)
        self.written.append(path.as_posix())
        return done


def _bomb(archive: str, name: str) -> DataError:
    return DataError(
        f"{archive} is hostile: {name!r} expands to more than {MAX_RATIO} times its packed size."
    )


def _extract_zip(archive: Path, folder: Path, wanted: Wanted) -> list[str]:
    writer = _Writer(archive, folder)
    with zipfile.ZipFile(archive) as file:
        chosen = []
        for info in file.infolist():
            path = safe_path(info.filename, archive.name)
            kind = (info.external_attr >> 16) & 0o170000
            if info.is_dir() or info.filename.endswith("\\"):
                continue
            if kind not in (0, 0o100000):
                raise DataError(
                    f"{archive.name} is hostile: {info.filename!r} is a link or device."
                )
            if info.flag_bits & 1:
                raise DataError(f"{archive.name}: {info.filename!r} is encrypted.")
            writer.check(info.filename)
            if not wanted(path.as_posix()):
                continue
            if info.file_size > MAX_RATIO * info.compress_size + _FREE_BYTES:
                raise _bomb(archive.name, info.filename)
            chosen.append((info, path))
        total = sum(info.file_size for info, _ in chosen)
        # Entries may share their packed bytes, so that each of them looks harmless.
        if total > MAX_RATIO * archive.stat().st_size + _FREE_BYTES:
            raise _bomb(archive.name, f"all {len(chosen)} entries")
        require_space(folder, total, f"Unpacking {archive.name}")
        for info, path in chosen:
            with file.open(info) as source:
                size = writer.write(path, source, info.file_size)
            if size != info.file_size:
                raise DataError(f"{archive.name} is damaged: {info.filename!r} is too short.")
    return writer.written


def _extract_tar(archive: Path, folder: Path, wanted: Wanted) -> list[str]:
    writer = _Writer(archive, folder)
    budget = MAX_RATIO * archive.stat().st_size + _FREE_BYTES
    opened = _opened(archive)
    with opened, tarfile.open(fileobj=_Bounded(opened, archive.name), mode="r:") as file:  # type: ignore[call-overload]
        for info in file:
            if info.name in (".", "./") and info.isdir():
                continue
            path = safe_path(info.name, archive.name)
            if info.isdir():
                continue
            if not info.isreg():
                raise DataError(f"{archive.name} is hostile: {info.name!r} is a link or device.")
            writer.check(info.name)
            budget -= info.size
            if budget < 0:
                raise _bomb(archive.name, info.name)
            if not wanted(path.as_posix()):
                continue
            require_space(folder, info.size, f"Unpacking {archive.name}")
            source = file.extractfile(info)
            assert source is not None
            if writer.write(path, source, info.size) != info.size:
                raise DataError(f"{archive.name} is truncated: {info.name!r} is too short.")
        _check_end(archive, opened, file.offset)
    return writer.written


class _Bounded:
    """A stream that refuses to read very much at once: tarfile reads whole extended headers."""

    def __init__(self, stream: IO[bytes], archive: str) -> None:
        self._stream, self._archive = stream, archive
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise DataError(f"{self._archive} is hostile or damaged: a header of {size} bytes.")
        return self._stream.read(size)


def _is_tar(archive: Path) -> bool:
    with _opened(archive) as stream:
        return tarfile.is_tarfile(_Bounded(stream, archive.name))  # type: ignore[arg-type]


def _opened(archive: Path) -> IO[bytes]:
    """The archive's bytes, unpacked where it is compressed."""
    with archive.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(archive))
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open(archive)
    return archive.open("rb")


def _check_end(archive: Path, stream: IO[bytes], offset: int) -> None:
    """Tarfile takes a missing end for the end; the checksum or the zero blocks tell."""
    if isinstance(stream, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile):
        while stream.read(_BLOCK):
            pass
        return
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{archive.name} is truncated. Remove it and fetch again.")

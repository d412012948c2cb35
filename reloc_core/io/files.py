"""Atomic writing and listing of files."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from reloc_core.errors import DataError
from reloc_core.maps import explain_os_errors

JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"})
"""Files (lower case) that operating systems leave in folders; hidden files are junk, too."""

_NUMBER = re.compile("([0-9]+)")


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only when the block ends without an error.

    Readers see the old file or the whole new one; a crash leaves no half-written file.

    Args:
        path: target; its folder must exist.
        mode: "w" for UTF-8 text, "wb" for bytes.

    Yields:
        the open temporary file, in the same folder.

    Raises:
        RelocError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    with explain_os_errors(path):
        if not path.parent.is_dir():
            raise DataError(f"{path} cannot be written: the folder {path.parent} does not exist.")
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent
        )
        try:
            with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files private
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Replace a file's content in one step; see `atomic_write`."""
    with atomic_write(path, "wb" if isinstance(content, bytes) else "w") as file:
        file.write(content)


def read_text(path: Path | str) -> str:
    """Content of a small text file.

    Raises:
        DataError: the file is missing, unreadable or no text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def is_junk(name: str) -> bool:
    """Whether a file name is hidden or left behind by an operating system."""
    return name.startswith(".") or name.lower() in JUNK_FILES


def natural_key(name: str) -> tuple[object, ...]:
    """Sorting key that puts "2.jpg" before "10.jpg"."""
    parts: list[object] = []
    for part in _NUMBER.split(name):
        # A number of any length compares by its length, then by its digits.
        digits = part.lstrip("0")
        parts.append((len(digits), digits) if part[:1].isdecimal() else part)
    return (*parts, name)


def list_files(folder: Path) -> list[str]:
    """Names of the regular files in a folder in natural order, without junk."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not is_junk(e.name) and e.is_file()]
    return sorted(names, key=natural_key)


def is_file(path: Path) -> bool:
    """Whether there is a file, whatever the path holds: `Path.is_file` raises for odd names."""
    return os.path.isfile(path)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

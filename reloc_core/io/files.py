"""Atomic writing and listing of files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from reloc_core.errors import DataError
from reloc_core.storage import atomic_write

__all__ = [
    "JUNK_FILES",
    "atomic_write",
    "is_file",
    "is_junk",
    "list_files",
    "natural_key",
    "read_text",
    "write_atomically",
]

JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"})
"""Files (lower case) that operating systems leave in folders; hidden files are junk, too."""

_NUMBER = re.compile("([0-9]+)")


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


def natural_key(name: str) -> tuple[tuple[object, ...], str]:
    """Sorting key that puts "2.jpg" before "10.jpg"."""
    parts: list[object] = list(_NUMBER.split(name))
    for i in range(1, len(parts), 2):
        # Numbers, of any length: compared by their length, then by their digits.
        digits = str(parts[i]).lstrip("0")
        parts[i] = (len(digits), digits)
    return tuple(parts), name


def list_files(folder: Path) -> list[str]:
    """Names of the regular files in a folder in natural order, without junk."""
    with os.scandir(folder) as entries:
        # Asked by path: an entry raises for a link to itself.
        names = [e.name for e in entries if not is_junk(e.name) and os.path.isfile(e.path)]
    return sorted(names, key=natural_key)


def is_file(path: Path) -> bool:
    """Whether there is a file, whatever the path holds: `Path.is_file` raises for odd names."""
    return os.path.isfile(path)

"""Rendered images on disk: a place of many rooms is rendered once, not by every command that reads it.

A store is a cache: whatever is missing, damaged or not writable is rendered again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reloc_core.errors import RelocError
from reloc_core.map_cache import cache_directory
from reloc_core.storage import atomic_write
from reloc_core.types import ImageArray

LIMIT_BYTES = 6 << 30
"""Of all stores together; those that were opened longest ago go first."""
_VERSION = 1  # of what the renderer draws


class Store:
    """Images of one walk through one room.

    Args:
        identity: all that decides what they show.
        root: of all stores; by default beside the kept maps, `$RELOC_CACHE/rooms`.
        limit: bytes of all stores together.
    """

    def __init__(
        self, identity: tuple[Any, ...], root: Path | None = None, limit: int = LIMIT_BYTES
    ) -> None:
        key = hashlib.sha256(repr((_VERSION, *identity)).encode()).hexdigest()[:16]
        root = root or cache_directory().parent / "rooms"
        self._folder = root / key
        with contextlib.suppress(OSError):
            if not self._folder.is_dir():
                _shrink(root, limit)
                self._folder.mkdir(parents=True, exist_ok=True)
            os.utime(self._folder)

    def read(self, index: int) -> ImageArray | None:
        """A kept image (H, W, 3) RGB, or None."""
        try:
            content = np.fromfile(self._path(index), np.uint8)
        except OSError:
            return None
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
        return None if image is None else np.asarray(image[..., ::-1], np.uint8)

    def keep(self, index: int, image: ImageArray) -> None:
        """Keep an image (H, W, 3) RGB; a full disk or a read-only one costs it."""
        fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        _, content = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), fast)
        with contextlib.suppress(RelocError), atomic_write(self._path(index), "wb") as file:
            file.write(content.tobytes())

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.png"


def _shrink(root: Path, limit: int) -> None:
    """Remove the stores that were opened longest ago until the others are within the limit."""
    folders = [f for f in root.iterdir() if f.is_dir()] if root.is_dir() else []
    total = 0
    for folder in sorted(folders, key=lambda f: -f.stat().st_mtime):
        total += sum(file.stat().st_size for file in folder.iterdir())
        if total > limit:
            shutil.rmtree(folder, ignore_errors=True)

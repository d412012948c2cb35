"""Files that are written whole or not at all, and read without trusting them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from reloc_core.errors import DataError, MapError, RelocError

MAX_YAML_BYTES = 4 << 20
"""Largest text that `read_yaml` parses; a map's description takes some kilobytes."""
_MAX_DEPTH = 40
_MAX_NUMBER = 400

_FULL = "Free some space and run the same command again; finished work is kept."
_DENIED = "No permission to write {path}. Choose another directory."
_IN_THE_WAY = "{path} cannot be created: a file is in the way."
_MESSAGES = {
    errno.ENOSPC: f"The disk is full while writing {{path}}. {_FULL}",
    errno.EDQUOT: f"The disk quota is used up while writing {{path}}. {_FULL}",
    errno.EFBIG: "{path} is larger than the file system or the limit of this shell (ulimit -f) allows. "
    "Raise the limit or choose another directory, and run the same command again; finished work is kept.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: "{path} cannot be written: a folder is in the way.",
    errno.ENAMETOOLONG: "{path} cannot be written: the name is too long.",
    errno.EMFILE: "{path} cannot be opened: too many files are open. Raise the limit (ulimit -n).",
    errno.EIO: "The disk or network drive failed while writing {path}. Choose another directory.",
}


@contextlib.contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever the system says about writing `path` into an error that says what to do.

    Raises:
        RelocError: a full disk, a missing permission, a file that grew too large and so on.
    """
    try:
        yield
    except (BrokenPipeError, RelocError):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise RelocError(_os_message(path, error.errno)) from error
    except Exception as error:
        # safetensors reports I/O failures as its own error type with the system's number inside.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise RelocError(_os_message(path, int(number.group(1)))) from error


def _os_message(path: Path | str, number: int) -> str:
    template = _MESSAGES.get(number, f"{{path}} cannot be written: {os.strerror(number)}.")
    return template.format(path=path)


def beside(path: Path, suffix: str) -> Path:
    """The hidden neighbour `.NAME{suffix}` of what is written: its lock, what is unfinished.

    Raises:
        RelocError: `.` and `/` have no name, so nothing can replace them in one step.
    """
    if not path.name:
        raise RelocError(
            f"'{path}' cannot be written as a whole. Name a folder to create, such as ./map."
        )
    return path.with_name(f".{path.name}{suffix}")


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` only when the block ends without an error.

    Readers see the old file or the whole new one; a crash leaves no half-written file.

    Args:
        path: target; its folder must exist.
        mode: "w" for UTF-8 text, "wb" for bytes. Bytes of file names that are no text, as of archives
            in another encoding, are written as backslash escapes.

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
            coding = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
            with open(handle, mode, encoding=coding[0], errors=coding[1]) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~umask())  # mkstemp makes files private
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def umask() -> int:
    """The permissions that this process takes from new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able metadata to a safetensors file, atomically.

    Args:
        path: target file.
        tensors: NumPy arrays or torch tensors (all of one kind).
        metadata: JSON-able values, stored in the file's header.
    """
    header = {"reloc": json.dumps(metadata)}
    temporary = beside(path, ".tmp")
    with explain_os_errors(path):
        try:
            if any(type(t).__module__.startswith("torch") for t in tensors.values()):
                from safetensors.torch import save_file as save_torch

                contiguous = {k: t.detach().contiguous().cpu() for k, t in tensors.items()}
                save_torch(contiguous, temporary, header)
            else:
                import numpy as np
                from safetensors.numpy import save_file as save_numpy

                # It writes the memory of an array as it lies, whatever its strides.
                plain = {k: np.asarray(t, order="C") for k, t in tensors.items()}
                save_numpy(plain, temporary, header)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            # safetensors makes files that only their owner can read.
            temporary.chmod(0o666 & ~umask())
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
        metadata = json.loads(header.get("reloc", "{}"))
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise MapError(
            f"{path} is truncated or corrupt ({error}). Copy it again, or train again."
        ) from error
    if not isinstance(metadata, dict):
        raise MapError(f"{path} is corrupt: its metadata are no mapping. Train again.")
    return tensors, metadata


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Mappings, lists, texts and numbers; no aliases, no deep nesting, no endless numbers."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if (
            isinstance(node, yaml.ScalarNode)
            and not node.tag.endswith(":str")
            and len(node.value) > _MAX_NUMBER
        ):
            raise yaml.YAMLError("a number is too long")
        return node


def read_yaml(path: Path) -> Any:
    """Content of a YAML file that somebody else may have written.

    Bounded in size and depth; aliases, with which a few bytes describe gigabytes, are refused.

    Raises:
        ValueError: in one line, why it is not read.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        data = file.read(MAX_YAML_BYTES + 1)
    if len(data) > MAX_YAML_BYTES:
        raise ValueError(f"larger than {MAX_YAML_BYTES >> 20} MB")
    try:
        return yaml.load(data.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, LookupError,
            AttributeError) as error:  # fmt: skip
        raise ValueError(" ".join(str(error).split())[:120] or type(error).__name__) from error


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value consists of mappings with texts as keys, lists, texts, numbers, booleans, null."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v, depth + 1) for k, v in value.items())
    if isinstance(value, list):
        return all(is_plain(v, depth + 1) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

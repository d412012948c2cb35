"""Reader of TensorFlow checkpoints (tensor bundles) without TensorFlow.

`PREFIX.index` is a sorted string table: blocks of prefix-compressed keys, each with a checksum, an index
block and a footer. Its values are protocol buffers that say where in `PREFIX.data-XXXXX-of-YYYYY` each
tensor lies. Nothing in either file is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kfnet_temporal.published.crc32c import crc32c, masked
from reloc_core.errors import MapError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        dtype: TensorFlow's number of the type.
        shape: of the tensor.
        shard: number of the data file.
        offset: in that file, bytes.
        size: bytes.
        crc: masked CRC-32C of the bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TensorBundle:
    """The variables of a checkpoint.

    Args:
        prefix: path without `.index`, such as `model.ckpt-500000`.

    Raises:
        MapError: missing, damaged or no checkpoint.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(str(prefix).removesuffix(".index"))
        index = self.prefix.with_name(self.prefix.name + ".index")
        if not index.is_file():
            raise MapError(
                f"There is no checkpoint index at {index}. Give the path without .index."
            )
        try:
            pairs = dict(_read_table(index.read_bytes()))
            header = dict(_fields(pairs.pop(b"")))
            self.shards = int(header.get(1, 1))
            if header.get(2, 0) != 0:
                raise ValueError("big-endian data")
            self.entries = {key.decode(): _entry(value) for key, value in pairs.items()}
        except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise MapError(f"{index} is no readable TensorFlow checkpoint ({error}).") from error

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def tensor(self, name: str) -> np.ndarray:
        """One variable.

        Raises:
            MapError: not there, of a type that is not numeric, or its bytes are damaged.
        """
        if name not in self.entries:
            raise MapError(f"{self.prefix} has no variable '{name}'.")
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise MapError(f"{self.prefix}: '{name}' has the unsupported type {entry.dtype}.")
        path = self.prefix.with_name(
            f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}"
        )
        if not path.is_file():
            raise MapError(f"{path} is missing. Copy the whole checkpoint.")
        with path.open("rb") as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
        dtype = np.dtype(_DTYPES[entry.dtype]).newbyteorder("<")
        expected = int(np.prod(entry.shape, dtype=np.int64)) * dtype.itemsize
        if len(content) != entry.size or entry.size != expected:
            raise MapError(f"{path} is truncated at '{name}'. Copy it again.")
        if masked(crc32c(content)) != entry.crc:
            raise MapError(f"{path} is corrupt at '{name}': its checksum differs. Copy it again.")
        return np.frombuffer(content, dtype).reshape(entry.shape).astype(dtype.newbyteorder("="))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protocol buffer: numbers, and bytes for nested messages."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            yield number, int.from_bytes(message[at : at + width], "little")
            at += width
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("a field is cut off")
            yield number, message[at : at + length]
            at += length
        else:
            raise ValueError(f"unknown wire type {kind}")


def _entry(message: bytes) -> Entry:
    numbers: dict[int, int] = {}
    shape: list[int] = []
    for number, value in _fields(message):
        if number == 2 and isinstance(value, bytes):
            for inner, dimension in _fields(value):
                if inner == 2 and isinstance(dimension, bytes):
                    shape.append(int(dict(_fields(dimension)).get(1, 0)))
        elif number == 7:
            raise ValueError("partitioned variables are not supported")
        elif isinstance(value, int):
            numbers[number] = value
    get = numbers.get
    return Entry(get(1, 0), tuple(shape), get(3, 0), get(4, 0), get(5, 0), get(6, 0))


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a sorted string table."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("no table: the footer's magic number is missing")
    footer = data[-_FOOTER:]
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    for _, value in _entries(_block(data, *index)):
        handle, _ = _handle(value, 0)
        yield from _entries(_block(data, *handle))


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    stored = data[offset : offset + size + 5]
    if len(stored) != size + 5:
        raise ValueError("a block is cut off")
    if masked(crc32c(stored[: size + 1])) != int.from_bytes(stored[size + 1 :], "little"):
        raise ValueError("the checksum of a block differs")
    if stored[size] == 0:
        return stored[:size]
    if stored[size] == 1:
        return decompress_snappy(stored[:size])
    raise ValueError(f"unknown compression {stored[size]}")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise ValueError("a key is damaged")
        key = key[:shared] + block[at : at + fresh]
        at += fresh
        yield key, block[at : at + length]
        at += length


def decompress_snappy(data: bytes) -> bytes:
    """Snappy's raw format: a length, then literals and copies of what came before."""
    size, at = _varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length = int.from_bytes(data[at : at + width], "little")
                at += width
            out += data[at : at + length + 1]
            at += length + 1
            continue
        if tag & 3 == 1:
            length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
            at += 1
        else:
            width = 2 if tag & 3 == 2 else 4
            length, offset = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little")
            at += width
        if not 0 < offset <= len(out):
            raise ValueError("a copy points outside the data")
        for _ in range(length):
            out.append(out[-offset])
    if len(out) != size:
        raise ValueError("compressed data has another length than it says")
    return bytes(out)

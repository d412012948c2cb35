"""CRC-32C (Castagnoli), as in TensorFlow's files; vectorised over long data."""

from __future__ import annotations

import numpy as np

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_LANES = 1024


def _make_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


_TABLE = _make_table()
_PLAIN_TABLE = [int(v) for v in _TABLE]


def crc32c(data: bytes) -> int:
    """Checksum of bytes."""
    register = 0xFFFFFFFF
    per_lane = len(data) // _LANES
    done = 0
    if per_lane >= 64:
        done = per_lane * _LANES
        register = _many(np.frombuffer(data, np.uint8, done).reshape(_LANES, per_lane), register)
    for byte in data[done:]:
        register = _PLAIN_TABLE[(register ^ byte) & 255] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """The form in which checksums are stored beside their data."""
    rotated = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    return (rotated + _MASK_DELTA) & 0xFFFFFFFF


def _many(lanes: np.ndarray, register: int) -> int:
    """The register after all lanes: each is run from zero, then they are joined by linearity."""
    registers = np.zeros(len(lanes), np.uint32)
    for column in np.ascontiguousarray(lanes.T):
        registers = _TABLE[(registers ^ column) & 255] ^ (registers >> np.uint32(8))
    advance = _zeros_operator(lanes.shape[1])
    for lane in registers:
        register = _apply(advance, register) ^ int(lane)
    return register


def _zeros_operator(count: int) -> list[int]:
    """What `count` zero bytes do to each bit of the register."""
    one = [_PLAIN_TABLE[(1 << i) & 255] ^ ((1 << i) >> 8) for i in range(32)]
    result = [1 << i for i in range(32)]
    while count:
        if count & 1:
            result = [_apply(one, v) for v in result]
        one = [_apply(one, v) for v in one]
        count >>= 1
    return result


def _apply(operator: list[int], value: int) -> int:
    result, bit = 0, 0
    while value:
        if value & 1:
            result ^= operator[bit]
        value >>= 1
        bit += 1
    return result

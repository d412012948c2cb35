"""Checks of arrays before they reach the native code."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reloc_core.errors import InputError

# NumPy has one object for each native type, so that identity is enough on the usual path.
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    # A generator would take longer than all the other checks.
    for have, want in zip(shape, wanted, strict=True):  # noqa: SIM110
        if want is not None and have != want:
            return False
    return True


def floats(name: str, value: Any, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """A C-contiguous float32 or float64 array of the given shape; a copy only where one is needed.

    Args:
        name: what the array is called in messages.
        value: array or nested sequence. Integers become float64.
        shape: expected shape; None stands for any length.

    Raises:
        InputError: not numeric, or of another shape.
    """
    array = np.asarray(value)
    if array.dtype is not _FLOAT64 and array.dtype is not _FLOAT32:
        if array.dtype.kind not in "iuf":
            raise InputError(f"{name} must be a numeric array, got dtype {array.dtype}.")
        single = array.dtype.kind == "f" and array.dtype.itemsize == 4
        array = array.astype(_FLOAT32 if single else _FLOAT64, copy=False)
    if not _fits(array.shape, shape):
        wanted = "(" + ", ".join("N" if s is None else str(s) for s in shape) + ")"
        raise InputError(f"{name} must have shape {wanted}, got {array.shape}.")
    return np.ascontiguousarray(array)

"""Checks of arrays before they reach the native code."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reloc_core.errors import InputError


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
    if array.dtype != np.float32 and array.dtype != np.float64:
        if array.dtype.kind not in "iuf":
            raise InputError(f"{name} must be a numeric array, got dtype {array.dtype}.")
        array = array.astype(np.float64)
    if array.ndim != len(shape) or any(
        want is not None and have != want for have, want in zip(array.shape, shape, strict=False)
    ):
        wanted = "(" + ", ".join("N" if s is None else str(s) for s in shape) + ")"
        raise InputError(f"{name} must have shape {wanted}, got {array.shape}.")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array)

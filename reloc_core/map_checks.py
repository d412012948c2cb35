"""What is in a map against what a component expects of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.errors import MapError, RelocError


def check_tensors(
    tensors: Mapping[str, Any], expect: Mapping[str, Sequence[int | str]], where: str
) -> dict[str, int]:
    """Refuse tensors that are missing, of another shape, or not finite.

        sizes = check_tensors(tensors, {"points": ("n", 3), "scores": ("n",)}, "MAP/points.safetensors")

    Args:
        tensors: NumPy arrays or torch tensors by name.
        expect: shape by name; a text stands for a size that is the same wherever it occurs.
        where: their file, for messages.

    Returns:
        the sizes that the texts stand for.

    Raises:
        MapError: says which tensor and what was expected.
    """
    sizes: dict[str, int] = {}
    for name, shape in expect.items():
        wanted = "x".join(map(str, shape)) or "a single number"
        if name not in tensors:
            raise MapError(f"{where} lacks '{name}' ({wanted}). Train the map again.")
        found = tuple(tensors[name].shape)
        fits = len(found) == len(shape) and all(
            size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
            for size, want in zip(found, shape, strict=True)
        )
        if not fits:
            raise MapError(
                f"{where}: '{name}' is {'x'.join(map(str, found)) or 'a single number'}, expected "
                f"{wanted}{f' with {sizes}' if sizes else ''}. Train the map again."
            )
        values = tensors[name]
        if "float" in str(values.dtype):
            finite = values.isfinite() if hasattr(values, "isfinite") else np.isfinite(values)
            if not bool(finite.all()):
                raise MapError(f"{where}: '{name}' holds numbers that are not finite. Train again.")
    return sizes


@contextlib.contextmanager
def loading(map_dir: Path | str, component: str) -> Iterator[None]:
    """Turn whatever a component makes of the wrong contents of a map into a `MapError`.

    Args:
        map_dir: the map that is loaded.
        component: who loads it, such as "estimator 'landmarks'".

    Raises:
        MapError: names the map, the component and the cause.
    """
    try:
        yield
    except RelocError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
            TypeError, ValueError) as error:  # fmt: skip
        cause = " ".join(str(error).split())[:200]
        raise MapError(
            f"{map_dir} holds what {component} cannot use ({type(error).__name__}: {cause}). "
            "Copy the map again, or train again."
        ) from error

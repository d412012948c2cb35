"""Checks of option values and arrays that all solver functions share. Imports no native code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from reloc_core.errors import ConfigError, InputError, did_you_mean

OptionsT = TypeVar("OptionsT")

# Instances without arguments; options do not change, and checking them takes a few per cent of a solve.
_DEFAULTS: dict[type[Any], Any] = {}
# NumPy has one object for each native type, so that identity is enough on the usual path.
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def refuse(name: str, value: object, rule: str) -> NoReturn:
    """Raise a `ConfigError` that names the option and the rule it breaks."""
    raise ConfigError(f"{name} must be {rule}, got {value!r}.")


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Refuse the value unless the condition holds."""
    if not condition:
        refuse(name, value, rule)


def is_integer(value: object) -> bool:
    """Whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether the value is a finite int or float and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(
    options: object, name: str, unit: str = "number", most: float = math.inf
) -> None:
    """Field `name` must be a finite number above zero, up to `most`."""
    value = getattr(options, name)
    if not (is_number(value) and 0 < value <= most):
        refuse(name, value, f"a positive {unit}" + (f" up to {most:g}" if most < 1e300 else ""))


def check_not_negative(options: object, name: str, unit: str = "number") -> None:
    """Field `name` must be a finite number of at least zero."""
    value = getattr(options, name)
    if not (is_number(value) and value >= 0):
        refuse(name, value, f"zero or a positive {unit}")


def check_share(options: object, name: str, ends: bool = True) -> None:
    """Field `name` must be a number from 0 to 1; `ends`: including these."""
    value = getattr(options, name)
    if not (is_number(value) and (0 <= value <= 1 if ends else 0 < value < 1)):
        refuse(name, value, "from 0 to 1" if ends else "between 0 and 1")


def check_integer(options: object, name: str, least: int, most: int | None = None) -> None:
    """Field `name` must be an integer from `least` to `most`."""
    value = getattr(options, name)
    if is_integer(value) and least <= value and (most is None or value <= most):
        return
    above = f"an integer of at least {least}"
    refuse(name, value, above if most is None else f"an integer from {least} to {most}")


def check_flag(options: object, name: str) -> None:
    """Field `name` must be true or false."""
    value = getattr(options, name)
    if not isinstance(value, bool):
        refuse(name, value, "true or false")


def check_choice(options: object, name: str, known: tuple[str, ...]) -> None:
    """Field `name` must be one of the known names."""
    value = getattr(options, name)
    if value not in known:
        raise ConfigError(f"{name} is {value!r}.{did_you_mean(str(value), known)}")


def check_seed(options: object) -> None:
    """Field `seed` must be a 64-bit unsigned integer."""
    value = getattr(options, "seed", None)
    if not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64):
        refuse("seed", value, "an integer from 0 to 2^64 - 1")


def make_options(cls: type[OptionsT], options: OptionsT | Mapping[str, Any] | None) -> OptionsT:
    """Options of type `cls` from an instance, a mapping or None (the defaults).

    Raises:
        ConfigError: a name is unknown or a value makes no sense.
    """
    if options is None:
        if cls not in _DEFAULTS:
            _DEFAULTS[cls] = cls()
        defaults: OptionsT = _DEFAULTS[cls]
        return defaults
    if isinstance(options, cls):
        return options
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"options must be {cls.__name__} or a mapping, got {type(options).__name__}."
        )
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{cls.__name__} has no option '{name}'.{did_you_mean(str(name), known)}"
            )
    return cls(**options)


def options_of(cls: type[OptionsT], config: object, **changed: Any) -> OptionsT:
    """Options of type `cls` from the fields of a component's configuration that have their names.

    Args:
        cls: type of the options.
        config: the configuration; fields that `cls` does not have are left alone.
        changed: values in place of the configuration's. A None leaves the configuration's.

    Raises:
        ConfigError: a value makes no sense.
    """
    values = {k: v for k, v in changed.items() if v is not None}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if f.name not in values and hasattr(config, f.name):
            values[f.name] = getattr(config, f.name)
    return cls(**values)


@contextmanager
def as_solver_options(**renamed: str) -> Iterator[None]:
    """Report a bad option under its name in a configuration, `solver.NAME`.

    Args:
        renamed: options that have another name there.
    """
    try:
        yield
    except ConfigError as error:
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"solver.{renamed.get(name, name)} {rest}") from None


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

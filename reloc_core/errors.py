"""Errors a user can act on.

Every error that a user's input can cause is a `RelocError`: one or two lines that say what is wrong
and what to do. The command line prints them without a stack trace and exits with code 2; set
`RELOC_DEBUG=1` to see the trace. Any other exception is a defect of the program.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# All control characters but tab and line feed: in the name of a file they would drive the terminal.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


def printable(text: str) -> str:
    """Text with its control characters, escape sequences among them, written out."""
    return text.translate(_CONTROLS)


class RelocError(Exception):
    """Base of all errors that a user can act on."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(RelocError):
    """A configuration key, value or combination of components is wrong."""


class DataError(RelocError):
    """A dataset, image, pose or calibration cannot be used."""


class MapError(RelocError):
    """A map cannot be read, written or used with the requested component."""


class PluginError(RelocError):
    """A plugin or one of its components cannot be loaded."""


class InputError(RelocError, ValueError):
    """An array or argument handed to the Python API has the wrong shape, type or value."""


class DeviceError(RelocError):
    """A CUDA device failed or ran out of memory."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest spelling, else the list of what exists.

    Args:
        name: what the user wrote.
        known: the valid names.

    Returns:
        A sentence that starts with a blank, or "" when nothing is known.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""

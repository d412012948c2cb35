"""Plugins of any misbehaviour, kept from what they are part of, and named."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reloc_core.hooks import HOOK_NAMES, OBSERVERS

DISABLE_VARIABLE = "RELOC_DISABLE_PLUGINS"
"""Environment variable with names of plugins, separated by commas, that are not to be loaded."""
TIMEOUT_VARIABLE = "RELOC_PLUGIN_SECONDS"
"""Environment variable with the longest time that loading one plugin may take."""
LOAD_SECONDS = 60.0


def one_line(error: BaseException) -> str:
    """Kind and text of an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _TooSlow(BaseException):
    """Ends what a plugin does; no `except Exception` of the plugin stops it."""


@contextmanager
def time_limit(plugin: str) -> Iterator[None]:
    """End what a plugin does while it is loaded when it takes longer than any plugin may.

    In the main thread alone, and in Python code: a loop in native code holds whoever waits for it.
    """
    limit = float(os.environ.get(TIMEOUT_VARIABLE, LOAD_SECONDS))
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(
        signal.ITIMER_REAL
    ) != (0.0, 0.0):
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooSlow(
            f"not loaded within {limit:g} s (an endless loop?); set {DISABLE_VARIABLE}={plugin} to do "
            f"without it, or {TIMEOUT_VARIABLE} to more seconds"
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Hooks:
    """The hooks of one plugin; equal to nothing else, as pluggy tells plugins apart by equality."""


def observed(module: Any, plugin: str) -> object:
    """A plugin's hooks, with observers that cannot disturb what they observe."""
    found = _Hooks()
    for name in HOOK_NAMES:
        if hasattr(module, name):
            hook = getattr(module, name)
            setattr(found, name, _harmless(hook, plugin) if name in OBSERVERS else hook)
    return found


def _harmless(hook: Any, plugin: str) -> Any:
    """An observer that is named and no longer called after its first exception."""
    broken = False

    @functools.wraps(hook)
    def call(*arguments: Any, **named: Any) -> None:
        nonlocal broken
        if broken:
            return
        try:
            hook(*arguments, **named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            broken = True
            print(
                f"Plugin '{plugin}': its hook {hook.__name__} failed ({one_line(error)}) and is not "
                "called again.",
                file=sys.stderr,
            )

    return call

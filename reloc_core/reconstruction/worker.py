"""Long work in a process of its own.

COLMAP ends its process where it finds its data inconsistent, and its libraries bring symbols that other
packages trip over. In a child neither harms the program, and its memory goes back with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from reloc_core.errors import RelocError
from reloc_core.runs import Reporter

Result = TypeVar("Result")


class Progress(Protocol):
    """Hears of finished steps."""

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Report finished steps and values worth showing."""


class Remote:
    """The reporter of the parent, as the child sees it.

    Args:
        connection: to the parent.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        """Show progress of `total` steps under `title`."""
        self._tell("begin", title, total)
        yield self
        self._tell("end")

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Report finished steps."""
        self._tell("advance", steps, values)

    def note(self, text: str) -> None:
        """Tell the user something."""
        self._tell("note", text)

    def _tell(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            os._exit(1)  # nobody works for us any more


def in_child(
    work: Callable[[Any, Remote], Result], argument: Any, log: Path, reporter: Reporter
) -> Result:
    """What `work(argument, remote)` returns, run in a child.

    Args:
        work: a function of a module.
        argument: can be pickled.
        log: file that gets what the child prints.
        reporter: hears of the progress.

    Raises:
        RelocError: that of `work`; or the child ended without one.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_run, args=(work, argument, there, str(log)), daemon=True)
    child.start()
    there.close()
    try:
        outcome = _listen(here, reporter)
    finally:
        if child.is_alive():
            child.join(2.0)
        if child.is_alive():
            child.kill()
        child.join()
        here.close()
    if outcome is None:
        raise RelocError(
            f"COLMAP ended unexpectedly (exit code {child.exitcode}); {log} holds what it said last. "
            "The same command continues where it stopped."
        )
    kind, value = outcome
    if kind == "error":
        raise value
    result: Result = value
    return result


def _listen(connection: Connection, reporter: Reporter) -> tuple[str, Any] | None:
    with contextlib.ExitStack() as bars:
        bar: Any = None
        while True:
            try:
                kind, *rest = connection.recv()
            except EOFError:
                return None
            if kind == "begin":
                bar = bars.enter_context(reporter.progress(*rest))
            elif kind == "advance":
                bar.advance(rest[0], **rest[1])
            elif kind == "end":
                bars.close()
            elif kind == "note":
                reporter.note(rest[0])
            else:
                return kind, rest[0]


def _run(
    work: Callable[[Any, Remote], Any], argument: Any, connection: Connection, log: str
) -> None:
    """In the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        connection.send(("done", work(argument, Remote(connection))))
    except RelocError as error:
        connection.send(("error", error))
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        text = " ".join(str(error).split())[:300]
        connection.send(("error", RuntimeError(f"{type(error).__name__}: {text} (see {log})")))
    finally:
        connection.close()
        os._exit(0)

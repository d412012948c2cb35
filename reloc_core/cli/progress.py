"""What the verbs that download share: consent to a licence, and progress."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from reloc_core.runs import console

ACCEPT = "--accept-license"
ACCEPTED = (ACCEPT, "--accept-licence")


class Bars:
    """A bar per file in a terminal; elsewhere a line per tenth of a file."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, int] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def received(self, name: str, done: int, size: int | None) -> None:
        """Show that `done` bytes of a file are here; `size` is None where it is unknown."""
        if console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=size)
            self._progress.update(self._tasks[name], completed=done, total=size)
        elif size:
            tenth = 10 * done // size
            if tenth > self._shown.get(name, 0):
                self._shown[name] = tenth
                console.print(f"{name}: {10 * tenth} % of {size / 1e6:.0f} MB", markup=False)

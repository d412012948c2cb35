"""The folder of a reconstruction: written whole, resumed after a kill, extended without starting over."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from reloc_core.errors import DataError, RelocError
from reloc_core.locks import FileLock, Held
from reloc_core.reconstruction.options import ReconstructOptions
from reloc_core.reconstruction.worker import in_child
from reloc_core.runs import Reporter
from reloc_core.storage import beside, explain_os_errors

_MARK = "options.txt"


def reconstruct(options: ReconstructOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """Find the poses of images, and write a workspace that `dataset=colmap` reads.

    The work is done in a hidden folder beside the output, which takes its place at the end; features and
    matches of a run that was killed are used by the next one.

    Args:
        options: what to do.
        reporter: who hears of the progress; by default the terminal.

    Returns:
        the content of the workspace's `reconstruction.json`.

    Raises:
        DataError: the images cannot be used, or the output is in the way.
        RelocError: somebody else writes the output, or COLMAP ended unexpectedly.
    """
    from reloc_core.reconstruction.build import SOURCE, Job, build, fingerprint

    reporter = reporter or Reporter()
    output = Path(options.output).expanduser()
    try:
        lock = FileLock(beside(output, ".lock"))
    except Held as held:
        raise RelocError(
            f"{output} is being written by {held.holder}. Wait until that has finished, or choose "
            "another output."
        ) from None
    try:
        _restore(output)
        before = _check(output, options)
        work = beside(output, ".work")
        _prepare(work, output, fingerprint(options), bool(before))
        log = work / "colmap.log"
        try:
            job = Job(options, work, output.resolve().name, before)
            content = in_child(build, job, log, reporter)
        except RelocError as error:
            if isinstance(error, DataError):
                # Of what failed, the features are worth keeping, not the choice of images.
                (work / SOURCE).unlink(missing_ok=True)
            if not (work / "database.db").exists() or before:
                shutil.rmtree(work, ignore_errors=True)
                raise
            raise type(error)(
                f"{error}\nFeatures and matches are kept in {work} for the next try; remove it if there is "
                "none."
            ) from error
        with explain_os_errors(output):
            for name in (_MARK, log.name):
                (work / name).unlink(missing_ok=True)
            _swap(work, output)
        return content
    finally:
        lock.release()


def _check(output: Path, options: ReconstructOptions) -> dict[str, Any]:
    """The record of the workspace that images are added to; empty for a new one.

    Raises:
        DataError: there is something in the way, or nothing to add to.
    """
    from reloc_core.reconstruction.outcome import read_record

    if options.add:
        before = read_record(output / "reconstruction.json")
        if not before or not (output / "database.db").is_file():
            raise DataError(
                f"{output} is no reconstruction that images can be added to: it has no "
                "reconstruction.json and database.db of 'reloc data reconstruct'."
            )
        return before
    if output.exists() and not options.overwrite and (not output.is_dir() or any(output.iterdir())):
        raise DataError(
            f"{output} exists: choose another output, add=true to add the images to it, or "
            "overwrite=true to replace it."
        )
    return {}


def _prepare(work: Path, output: Path, mark: str, add: bool) -> None:
    """The folder to work in, with what an interrupted run of the same inputs left there."""
    with explain_os_errors(work):
        same = (work / _MARK).is_file() and (work / _MARK).read_text("utf-8") == mark
        if same:
            return
        shutil.rmtree(work, ignore_errors=True)
        if add:
            shutil.copytree(
                output, work, copy_function=partial(_link_or_copy, output), symlinks=True
            )
        else:
            work.mkdir(parents=True)
        (work / _MARK).write_text(mark, "utf-8")


def _link_or_copy(output: Path, source: str, target: str) -> str:
    """Images are linked, what changes in place is copied."""
    if Path(source).relative_to(output).parts[0] == "images":
        try:
            os.link(source, target, follow_symlinks=False)
            return target
        except OSError:
            pass
    return str(shutil.copy2(source, target, follow_symlinks=False))


def _aside(output: Path) -> Path:
    return beside(output, ".old")


def _swap(work: Path, output: Path) -> None:
    """Put the finished folder in its place."""
    shutil.rmtree(_aside(output), ignore_errors=True)
    if output.exists():
        output.rename(_aside(output))
    work.rename(output)
    shutil.rmtree(_aside(output), ignore_errors=True)


def _restore(output: Path) -> None:
    """Put back what a run that was killed amid `_swap` had set aside."""
    if _aside(output).exists() and not output.exists():
        with explain_os_errors(output):
            _aside(output).rename(output)

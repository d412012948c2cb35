"""Runs in TensorBoard (extra `tensorboard`): `tensorboard=true`.

    tensorboard --logdir OUT

shows the numbers that a method reports with its progress ("Training/loss") and those of its log events
("iteration/loss"), each query's score, inliers and time, and what came out. Runs side by side are compared
by giving their common parent: "HParams" is a table of their options and results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reloc_core.errors import ConfigError
from reloc_core.hooks import hookimpl
from reloc_core.types import Localization

FOLDER = "tensorboard"
_POINTS = 1000
_STEPS = ("step", "iteration")


class Curves:
    """Writes scalars to an event file; a plugin whose hooks observe the run.

    Args:
        folder: for the event file; made with the first number.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                "tensorboard=true needs TensorBoard: pip install 'reloc[tensorboard]'"
            ) from error
        self._folder = folder
        self._open = EventFileWriter
        self._writer: Any = None  # opened with the first number
        self._counts: dict[str, int] = {}
        self._last: dict[str, int] = {}

    @hookimpl
    def reloc_run_started(self, config: Mapping[str, Any]) -> None:
        """The options, for the table of runs."""
        from tensorboard.plugins.hparams import summary_v2

        options = {
            k: v for k, v in _flat(config).items() if isinstance(v, bool | int | float | str)
        }
        self._write(0, summary_v2.hparams_pb(options, trial_id=str(self._folder)))

    @hookimpl
    def reloc_query_localized(self, localization: Localization) -> None:
        """A point of the curves over the queries."""
        seconds = sum(localization.seconds.values())
        values = {"score": localization.score, "inliers": localization.num_inliers}
        self.event(
            "query", {**values, "seconds": seconds, "localized": float(localization.localized)}
        )

    @hookimpl
    def reloc_run_finished(self, result: Mapping[str, Any]) -> None:
        """What came out."""
        self._add("result", 0, _flat(result))

    def progress(self, title: str, step: int, total: int, values: Mapping[str, Any]) -> None:
        """Numbers reported with progress; thinned out to a thousand or so per piece of work."""
        last = self._last.get(title)
        if not values or (last is not None and step - last < total / _POINTS):
            return
        self._last[title] = step
        self._add(title, step, values)

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Numbers of a log event; without a step of their own they are counted."""
        count = self._counts[name] = self._counts.get(name, -1) + 1
        step = next((values[key] for key in _STEPS if isinstance(values.get(key), int)), count)
        self._add(name, step, {k: v for k, v in values.items() if k not in _STEPS})

    def _add(self, prefix: str, step: int, values: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        summary = [
            Summary.Value(tag=f"{prefix}/{key}", simple_value=value)
            for key, value in numbers.items()
            if math.isfinite(value)
        ]
        if summary:
            self._write(step, Summary(value=summary))

    def _write(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._writer is None:
            self._writer = self._open(str(self._folder))
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return found

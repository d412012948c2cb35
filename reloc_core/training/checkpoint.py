"""The state of a training in one file: stages done, the step of the one under way, notes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from reloc_core.maps import MapWriter

_SECONDS = 30.0


class Checkpoint:
    """What an interrupted training goes on from. The file is read once, when this is created.

    A training is a sequence of stages with names of their own. While a stage runs, its tensors are saved
    now and then; a finished one leaves its result, which later stages keep.

    Args:
        map: where the file lies.
        seconds: at least so much wall time between two writes within a stage.

    Attributes:
        seconds: see above; 0 writes every time.
    """

    def __init__(self, map: MapWriter, seconds: float = _SECONDS) -> None:
        self.map, self.seconds = map, seconds
        self._saved_at = time.monotonic()
        found = map.load_checkpoint() if map.has_checkpoint else None
        tensors, state = found if found is not None else ({}, {})
        self._done: list[str] = list(state.get("done", []))
        self._notes: dict[str, dict[str, Any]] = dict(state.get("notes", {}))
        self._stage, self._step = str(state.get("stage", "")), int(state.get("step", 0))
        self._results = {k: v for k, v in tensors.items() if k.split("/")[0] in self._done}
        self._current = {k: v for k, v in tensors.items() if k not in self._results}

    def finished(self, stage: str) -> bool:
        """Whether a stage was completed, now or before the interruption."""
        return stage in self._done

    def result(self, stage: str) -> dict[str, Any]:
        """The tensors that a finished stage left; empty when it left none."""
        return _of(self._results, stage)

    def notes(self, stage: str) -> dict[str, Any]:
        """What a stage noted with its last save; empty when it was never saved."""
        return dict(self._notes.get(stage, {}))

    def resume(self, stage: str) -> tuple[int, dict[str, Any]]:
        """The step to go on with and the tensors saved there; (0, {}) at the beginning of a stage."""
        if self._stage != stage:
            return 0, {}
        # Handed over, so that they are not held twice for the rest of the training.
        tensors, self._current = _of(self._current, stage), {}
        return self._step, tensors

    def save(
        self, stage: str, step: int, tensors: Callable[[], Mapping[str, Any] | None],
        notes: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Write the state of a running stage, if the last write is old enough.

        Args:
            stage: its name, without "/".
            step: steps done.
            tensors: called only when it is time; None where the state is not worth keeping.
            notes: JSON-able values to go with them.

        Returns:
            whether it was written.
        """
        if time.monotonic() - self._saved_at < self.seconds:
            return False
        found = tensors()
        if found is None:
            return False
        self._stage, self._step = stage, step
        self._notes[stage] = dict(notes or {})
        self._write(_named(stage, found))
        return True

    def finish(
        self, stage: str, tensors: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Record that a stage is complete.

        Args:
            stage: its name.
            tensors: what later stages and a resumed training need of it; kept to the end.
            notes: JSON-able values.
        """
        if stage not in self._done:
            self._done.append(stage)
        self._stage, self._step, self._current = "", 0, {}
        self._notes[stage] = dict(notes or {})
        self._results |= _named(stage, tensors or {})
        self._write({})

    def _write(self, current: Mapping[str, Any]) -> None:
        tensors: dict[str, Any] = {**self._results, **current}
        if not tensors:
            # The file format wants at least one tensor.
            import numpy as np

            tensors = {"/": np.zeros(1)}
        self.map.save_checkpoint(
            tensors,
            {"stage": self._stage, "step": self._step, "done": self._done, "notes": self._notes},
        )
        self._saved_at = time.monotonic()


def _named(stage: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{stage}/{key}": value for key, value in tensors.items()}


def _of(tensors: Mapping[str, Any], stage: str) -> dict[str, Any]:
    start = f"{stage}/"
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}

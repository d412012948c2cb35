"""Run a localizer over all queries of a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from reloc_core.datasets.prefetch import Prefetch
from reloc_core.errors import RelocError
from reloc_core.evaluation.results import QueryResult, query_result
from reloc_core.interfaces import Dataset
from reloc_core.types import Localization, Query


class Localizer(Protocol):
    """What can be evaluated; a pipeline is one."""

    def start_sequence(self) -> None:
        """Forget temporal state."""

    def localize(self, query: Query) -> Localization:
        """Localize one query."""


AHEAD = 4
"""Images that may wait in memory. They are read one after another by one thread: the others compute."""

OnResult = Callable[[QueryResult, Query | None, Localization], None]
"""Called after every query with its result, the query (None when unreadable) and localization."""


def evaluate(
    localizer: Localizer, dataset: Dataset, on_result: OnResult | None = None
) -> list[QueryResult]:
    """Localize every query of a dataset and compare with the ground truth, where there is one.

    Queries come in the dataset's order. `start_sequence` is called before the first query of every
    sequence; a photograph that belongs to none is a sequence of its own. The localizer never sees
    ground truth. The next images are read while the current one is localized.

    A query that cannot be read, or that the localizer refuses with a `RelocError`, becomes a failed
    result with its reason. Any other exception is a defect and propagates, as does Ctrl-C.

    Args:
        localizer: such as a `Pipeline`.
        dataset: the queries.
        on_result: called after every query, in the calling thread; for progress and observers.

    Returns:
        one result per frame, in order.
    """
    results: list[QueryResult] = []
    previous: str | None = None
    reader = Prefetch(_Guarded(dataset), workers=1, ahead=AHEAD)
    with closing(iter(reader)) as queries:  # type: ignore[type-var]
        for index, (query, seconds_read, problem) in enumerate(queries):
            frame = dataset.frames[index]
            if index == 0 or frame.sequence is None or frame.sequence != previous:
                localizer.start_sequence()
            previous = frame.sequence
            begin = time.perf_counter()
            if query is None:
                localization = Localization.failure(problem)
            else:
                try:
                    localization = localizer.localize(query.without_ground_truth())
                except RelocError as error:
                    localization = Localization.failure(f"refused: {_text(error)}")
            elapsed = time.perf_counter() - begin
            result = query_result(frame, localization, elapsed, seconds_read, query is not None)
            result = replace(result, wait_seconds=reader.last_stall)
            results.append(result)
            if on_result is not None:
                on_result(result, query, localization)
    return results


class _Guarded:
    """Items (query or None, seconds, why it could not be read) instead of errors of the reader."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Query | None, float, str]:
        begin = time.perf_counter()
        try:
            return self._dataset[index], time.perf_counter() - begin, ""
        except (RelocError, OSError) as error:
            return None, time.perf_counter() - begin, f"unreadable: {_text(error)}"
        except Exception as error:
            name = self._dataset.frames[index].name
            raise RuntimeError(f"reading {name}: {type(error).__name__}: {error}") from error


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__

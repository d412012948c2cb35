"""Run a localizer over all queries of a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

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


OnResult = Callable[[QueryResult, Query | None, Localization], None]
"""Called after every query with its result, the query (None when unreadable) and localization."""


def evaluate(
    localizer: Localizer, dataset: Dataset, on_result: OnResult | None = None
) -> list[QueryResult]:
    """Localize every query of a dataset and compare with the ground truth, where there is one.

    Queries come in the dataset's order. `start_sequence` is called before the first query of every
    sequence; a photograph that belongs to none is a sequence of its own. The localizer never sees
    ground truth. The next image is read while the current one is localized.

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
    with closing(_prefetch(dataset)) as queries:
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
            results.append(result)
            if on_result is not None:
                on_result(result, query, localization)
    return results


def _prefetch(dataset: Dataset) -> Generator[tuple[Query | None, float, str], None, None]:
    """Read one image ahead: (query or None, seconds, why it could not be read)."""

    def read(index: int) -> tuple[Query | None, float, str]:
        begin = time.perf_counter()
        try:
            return dataset[index], time.perf_counter() - begin, ""
        except (RelocError, OSError) as error:
            return None, time.perf_counter() - begin, f"unreadable: {_text(error)}"

    with ThreadPoolExecutor(1, thread_name_prefix="read-images") as pool:
        count = len(dataset)
        ahead = pool.submit(read, 0) if count else None
        for index in range(count):
            assert ahead is not None
            current = ahead.result()
            ahead = pool.submit(read, index + 1) if index + 1 < count else None
            yield current


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__

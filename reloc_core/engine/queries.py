"""The one generator that runs queries through a pipeline: folders, datasets, videos, cameras, requests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

from reloc_core.datasets.prefetch import Prefetch
from reloc_core.errors import RelocError
from reloc_core.evaluation.results import QueryResult, query_result
from reloc_core.interfaces import Dataset
from reloc_core.registry import default_registry
from reloc_core.types import Evidence, Frame, Localization, Query

AHEAD = 4
"""Images that may wait in memory. They are read one after another by one thread: the others compute."""


class Localizes(Protocol):
    """What queries can be run through; a `Pipeline` is one."""

    @property
    def history(self) -> int:
        """Preceding frames that shape the outcome of a query; 0 without state."""

    def start_sequence(self) -> None:
        """Forget temporal state."""

    def localize_batch(self, queries: Sequence[Query]) -> list[tuple[Evidence, Localization]]:
        """Localize several queries."""


@dataclass(frozen=True)
class Outcome:
    """What became of one query.

    Attributes:
        frame: with its ground truth, where there is one.
        query: with its pixels; None when they could not be read.
        evidence: what the solver was given; None when the query was not read or refused.
        localization: the pose, or why there is none.
        seconds: wall time of localizing; a share of that of the batch.
        read_seconds: wall time of reading the image, which overlaps the query before it.
        wait_seconds: the part of it for which localization stood still.
    """

    frame: Frame
    query: Query | None
    evidence: Evidence | None
    localization: Localization
    seconds: float = 0.0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def result(self) -> QueryResult:
        """What is kept of the query, judged by its ground truth."""
        return query_result(
            self.frame,
            self.localization,
            self.seconds,
            self.read_seconds,
            self.query is not None,
            self.wait_seconds,
        )


@dataclass(frozen=True)
class _Read:
    """One frame as it was read: its pixels, or what was wrong with them."""

    frame: Frame
    query: Query | None
    problem: str = ""
    read_seconds: float = 0.0
    wait_seconds: float = 0.0


def run_queries(
    pipeline: Localizes,
    queries: Dataset | Iterable[Query],
    batch: int = 1,
    observed: bool = True,
    goes_on: bool = False,
) -> Iterator[Outcome]:
    """Localize queries in their order and say of each what became of it.

    `start_sequence` is called before the first query of every sequence; a photograph that belongs to
    none is a sequence of its own. The pipeline never sees ground truth. Images of a dataset are read
    while those before them are localized. Observers of `reloc_query_localized` hear of every query.

    A query that cannot be read, or that the pipeline refuses with a `RelocError`, is not localized, with
    its reason. Any other exception is a defect and propagates, as does Ctrl-C.

    Args:
        pipeline: such as a `Pipeline`.
        queries: a dataset, or any stream of queries such as a `VideoStream`.
        batch: queries localized together, through the batched paths of estimator and solver; pipelines
            that remember frames take one at a time.
        observed: whether observers hear of the queries.
        goes_on: whether the first query follows, in its sequence, on what the pipeline localized last.

    Yields:
        one outcome per query, in order.
    """
    source = _dataset(queries) if isinstance(queries, Dataset) else _stream(queries)
    size = 1 if pipeline.history else max(batch, 1)
    hook = default_registry().manager.hook.reloc_query_localized
    sequence: str | None = None
    with closing(source) as frames:
        while chunk := list(itertools.islice(frames, size)):
            for read in chunk:
                if not goes_on and (read.frame.sequence is None or read.frame.sequence != sequence):
                    pipeline.start_sequence()
                goes_on, sequence = False, read.frame.sequence
            for outcome in _localize(pipeline, chunk):
                if observed and outcome.query is not None:
                    hook(query=outcome.query, localization=outcome.localization)
                yield outcome


def _localize(pipeline: Localizes, chunk: Sequence[_Read]) -> Iterator[Outcome]:
    """Localize what could be read; where a batch is refused, its queries one by one."""
    readable = [r.query.without_ground_truth() for r in chunk if r.query is not None]
    begin = time.perf_counter()
    found: list[tuple[Evidence | None, Localization]] = []
    try:
        found = list(pipeline.localize_batch(readable)) if readable else []
    except RelocError as error:
        if len(readable) > 1:
            for read in chunk:
                yield from _localize(pipeline, [read])
            return
        found = [_failure(chunk[0].frame, f"refused: {_text(error)}")]
    seconds = (time.perf_counter() - begin) / max(len(readable), 1)
    outcomes = iter(found)
    for read in chunk:
        if read.query is not None:
            result, spent = next(outcomes), seconds
        else:
            result, spent = _failure(read.frame, read.problem or "unreadable"), 0.0
        yield Outcome(read.frame, read.query, *result, spent, read.read_seconds, read.wait_seconds)


def _failure(frame: Frame, reason: str) -> tuple[None, Localization]:
    found = Localization.failure(reason)
    return None, replace(found, name=frame.name, timestamp=frame.timestamp)


def _stream(queries: Iterable[Query]) -> Generator[_Read, None, None]:
    return (_Read(query, query) for query in queries)


def _dataset(dataset: Dataset) -> Generator[_Read, None, None]:
    reader = Prefetch(_Guarded(dataset), workers=1, ahead=AHEAD)
    with closing(iter(reader)) as items:  # type: ignore[type-var]
        for index, (query, seconds, problem) in enumerate(items):
            yield _Read(dataset.frames[index], query, problem, seconds, reader.last_stall)


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

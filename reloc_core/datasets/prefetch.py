"""Reading images ahead of the computation that consumes them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from reloc_core.errors import InputError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Indexed(Protocol[T_co]):
    """What can be prefetched; a `Dataset` is one."""

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: int, /) -> T_co:
        """Read one item; called in other threads."""


class Prefetch(Generic[T]):
    """Iterates over images of a dataset in a given order, read by threads ahead of time.

    Decoding releases the interpreter lock, so threads suffice. At most `ahead` images wait in memory.
    The order is that of `indices` whatever the number of threads. An exception of the reader comes out
    in its turn; leaving the loop early, also by an exception or Ctrl-C, ends the threads.

    Args:
        dataset: the images.
        indices: which ones in which order; repetition is fine. None: all in order.
        workers: reading threads.
        ahead: images read ahead.

    Attributes:
        stall_seconds: time the consumer has waited for images so far.
        last_stall: the part of it for the image handed out last.
        images: images handed out so far.
    """

    def __init__(
        self,
        dataset: Indexed[T],
        indices: Sequence[int] | None = None,
        workers: int = 2,
        ahead: int = 16,
    ) -> None:
        if workers < 1 or ahead < 1:
            raise InputError("Prefetch needs at least one worker and one image ahead.")
        self._dataset = dataset
        self._indices = range(len(dataset)) if indices is None else indices
        self._workers, self._ahead = workers, ahead
        self.stall_seconds = 0.0
        self.last_stall = 0.0
        self.images = 0

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[T]:
        """Images in order; an unreadable one raises its `DataError` when its turn comes."""
        pending: deque[Future[T]] = deque()
        upcoming = iter(self._indices)
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="read-images")
        try:
            for index in upcoming:
                pending.append(pool.submit(self._dataset.__getitem__, index))
                if len(pending) >= self._ahead:
                    break
            while pending:
                begin = time.perf_counter()
                item = pending.popleft().result()
                self.last_stall = time.perf_counter() - begin
                self.stall_seconds += self.last_stall
                self.images += 1
                following = next(upcoming, None)
                if following is not None:
                    pending.append(pool.submit(self._dataset.__getitem__, following))
                yield item
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

"""Videos that clients send frame by frame: a tracker each, for as long as frames come."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reloc_core.errors import RelocError
from reloc_core.localizer import Localizer
from reloc_core.tracker import Tracker


class RequestError(RelocError):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: for the client.
        retry_after: seconds after which it may try again, None where that is no use.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass
class _Session:
    tracker: Tracker
    used: float
    busy: bool = False
    ended: bool = False


class Sessions:
    """Trackers by map and sequence.

    Args:
        most: at the same time.
        seconds: without a frame, after which one is forgotten.
        clock: seconds that never run backwards.
    """

    def __init__(
        self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._sessions: OrderedDict[tuple[str, str], _Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @contextmanager
    def tracker(self, map_name: str, sequence: str, localizer: Localizer) -> Iterator[Tracker]:
        """The tracker of a sequence, for the next frame; a new one for a new sequence.

        Raises:
            RequestError: too many sequences, or the frame before is still worked on.
        """
        session = self._enter((map_name, sequence), localizer)
        try:
            yield session.tracker
        finally:
            with self._lock:
                session.busy, session.used = False, self._clock()
                ended = session.ended
            if ended:
                session.tracker.close()

    def _enter(self, key: tuple[str, str], localizer: Localizer) -> _Session:
        with self._lock:
            self._forget_idle()
            session = self._sessions.get(key)
            if session is None:
                if len(self._sessions) >= self._most:
                    raise RequestError(
                        503, f"{self._most} sequences are tracked already.", self._seconds
                    )
                session = self._sessions[key] = _Session(Tracker(localizer), self._clock())
            if session.busy:
                raise RequestError(
                    409, f"The frame before of '{key[1][:60]}' is still worked on: send one after "
                    "another.",
                )  # fmt: skip
            session.busy = True
            return session

    def _forget_idle(self) -> None:
        now = self._clock()
        for key, session in list(self._sessions.items()):
            if not session.busy and now - session.used > self._seconds:
                del self._sessions[key]
                session.tracker.close()

    def end(self, map_name: str, sequence: str) -> None:
        """Forget a sequence that has ended; a frame that is still worked on is finished."""
        with self._lock:
            session = self._sessions.pop((map_name, sequence), None)
            if session is None:
                return
            session.ended = True
            if session.busy:
                return
        session.tracker.close()

    def close(self) -> None:
        """Forget all."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.tracker.close()

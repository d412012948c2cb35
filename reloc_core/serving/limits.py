"""What protects a server: limits of requests, rates per client, and counters to watch it by."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from reloc_core.errors import ConfigError
from reloc_core.types import Status

_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CLIENTS = 10_000  # remembered by the rate limiter


@dataclass
class Limits:
    """Limits of a server.

    Attributes:
        megabytes: largest request body.
        megapixels: largest image; the images of a batch have at most four times as many together.
        queue: requests that may wait while another is worked on; further ones are answered 503. At
            1, nobody waits longer than one image takes.
        workers: images that are localized at the same time; 0 for one per core, at most four.
        rate_per_minute: requests per client address; 0 for no limit.
        body_seconds: within which a request must have arrived completely.
        connections: open at the same time; further ones are answered 503.
        sessions: videos that are tracked at the same time; further ones are answered 503.
        session_seconds: without a frame, after which a session is forgotten.
        shutdown_seconds: that requests get to finish after SIGTERM.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    queue: int = 1
    workers: int = 1
    rate_per_minute: float = 0.0
    body_seconds: float = 10.0
    connections: int = 64
    sessions: int = 16
    session_seconds: float = 30.0
    shutdown_seconds: float = 20.0

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ConfigError: names the option.
        """
        for name in (
            "megabytes",
            "megapixels",
            "body_seconds",
            "session_seconds",
            "shutdown_seconds",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"limits.{name} must be positive, got {getattr(self, name)}.")
        for name, least in (
            ("queue", 0),
            ("workers", 0),
            ("sessions", 0),
            ("connections", 1),
            ("rate_per_minute", 0),
        ):
            if not getattr(self, name) >= least:
                raise ConfigError(
                    f"limits.{name} must be at least {least}, got {getattr(self, name)}."
                )


class RateLimiter:
    """A token bucket per client that holds ten seconds' worth of requests.

    Args:
        per_minute: requests; 0 for no limit.
        clock: seconds that never run backwards.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = max(1.0, per_minute / 6)
        self._clock = clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_seconds(self, client: str) -> float:
        """0 and a token less, or the time after which there is one again."""
        if not self._per_second:
            return 0.0
        with self._lock:
            now = self._clock()
            tokens, then = self._clients.pop(client, (self._burst, now))
            tokens = min(self._burst, tokens + (now - then) * self._per_second)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
            self._clients[client] = (tokens - 1 if tokens >= 1 else tokens, now)
            while len(self._clients) > _CLIENTS:
                self._clients.popitem(last=False)
            return wait


class Metrics:
    """Counters, shown in the text format of Prometheus."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[int] = Counter()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(_BUCKETS_S) + 1)
        self._seconds = 0.0
        self._started = time.time()

    def answered(self, status: int) -> None:
        """Count an answer by its HTTP status."""
        with self._lock:
            self._requests[status] += 1

    def localized(self, map_name: str, outcome: str, seconds: float) -> None:
        """Count a localization and how long it took, waiting included."""
        with self._lock:
            self._outcomes[map_name, outcome] += 1
            self._seconds += seconds
            place = sum(seconds > bound for bound in _BUCKETS_S)
            self._buckets[place] += 1

    @property
    def counts(self) -> dict[str, int]:
        """How many queries came, and how many of them were localized."""
        with self._lock:
            localized = sum(
                n for (_, outcome), n in self._outcomes.items() if outcome == Status.LOCALIZED.value
            )
            return {"queries": self._outcomes.total(), "localized": localized}

    def text(self, waiting: int, working: int) -> str:
        """Everything in the text format of Prometheus."""
        with self._lock:
            lines = ["# TYPE reloc_http_requests_total counter"]
            lines += [
                f'reloc_http_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(self._requests.items())
            ]
            lines.append("# TYPE reloc_localizations_total counter")
            lines += [
                f'reloc_localizations_total{{map="{name}",status="{outcome}"}} {count}'
                for (name, outcome), count in sorted(self._outcomes.items())
            ]
            lines.append("# TYPE reloc_localization_seconds histogram")
            total = 0
            for bound, count in zip((*_BUCKETS_S, "+Inf"), self._buckets, strict=True):
                total += count
                lines.append(f'reloc_localization_seconds_bucket{{le="{bound}"}} {total}')
            lines += [
                f"reloc_localization_seconds_sum {self._seconds:.6f}",
                f"reloc_localization_seconds_count {total}",
                "# TYPE reloc_waiting gauge",
                f"reloc_waiting {waiting}",
                "# TYPE reloc_working gauge",
                f"reloc_working {working}",
                "# TYPE reloc_uptime_seconds gauge",
                f"reloc_uptime_seconds {time.time() - self._started:.0f}",
                "# TYPE process_resident_memory_bytes gauge",
                f"process_resident_memory_bytes {resident_bytes()}",
            ]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class MemoryTrimmer:
    """Gives memory that was freed back to the system, every now and then.

    The C library keeps freed blocks below one that is still in use, so that after hours one unlucky
    request decides how much memory a server seems to need. Does nothing where there is no glibc.

    Args:
        seconds: least time between two times.
        clock: seconds that never run backwards.
    """

    def __init__(self, seconds: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._last = clock()
        try:
            self._trim: Callable[[int], int] | None = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError):
            self._trim = None

    def trim(self) -> bool:
        """Trim if it is time; whether it was done."""
        if self._trim is None or self._clock() - self._last < self._seconds:
            return False
        self._last = self._clock()
        self._trim(0)
        return True

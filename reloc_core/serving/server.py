"""Running the application with uvicorn: slow clients are dropped, signals end it in order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from reloc_core.serving.app import create_app
from reloc_core.serving.service import LocalizationService

_IDLE_SECONDS = 5.0


class PunctualProtocol(H11Protocol):
    """Closes connections that take long to send the head of a request.

    uvicorn limits the time between requests only, so a client that sends a header byte by byte would
    hold its connection for ever. Bodies are limited by the application.
    """

    head_seconds = 10.0
    _watch: asyncio.TimerHandle | None = None
    _idle_before = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(self.head_seconds, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        """Close when no request was under way now and a period ago."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and (self._idle_before or self.cycle is None):
            self.transport.close()
            return
        self._idle_before = idle
        self._watch = self.loop.call_later(self.head_seconds, self._check)


class Server(uvicorn.Server):
    """A server that ends with code 0 after SIGTERM or SIGINT, as it was asked to."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals here and give them back afterwards, without raising them again."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can listen to signals
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {sig: signal.signal(sig, self.handle_exit) for sig in signals}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def make_server(service: LocalizationService, host: str, port: int, **options: Any) -> Server:
    """A server that is ready to `run()`.

    Args:
        service: what answers.
        host: address to listen at.
        port: 0 for any free one.
        options: of `uvicorn.Config`.
    """
    limits = service.limits

    class Protocol(PunctualProtocol):
        head_seconds = limits.body_seconds

    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        http=Protocol,
        ws="websockets-sansio",
        ws_max_size=int(limits.megabytes * 1e6),
        loop="asyncio",
        limit_concurrency=limits.connections,
        timeout_keep_alive=int(_IDLE_SECONDS),
        timeout_graceful_shutdown=int(limits.shutdown_seconds),
        server_header=False,
        **options,
    )
    return Server(config)

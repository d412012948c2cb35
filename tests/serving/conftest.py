"""A server in this process, on the loopback address."""

import threading
import time

import pytest
from serving_tools import FakeLocalizer


@pytest.fixture
def serve():
    """Start a server: serve(localizers, camera=..., **limits) -> (service, port)."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from reloc_core.serving.limits import Limits
    from reloc_core.serving.server import make_server
    from reloc_core.serving.service import LocalizationService

    running = []

    def start(localizers=None, camera=50.0, **limits):
        service = LocalizationService(
            localizers or {"room": FakeLocalizer()}, Limits(**limits), camera
        )
        server = make_server(service, "127.0.0.1", 0, log_level="critical")
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            assert thread.is_alive()
            time.sleep(0.01)
        return service, server.servers[0].sockets[0].getsockname()[1]

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()

"""Real maps behind one server: clients choose by name, and by nothing else."""

import http.client
import json

import pytest
from serving_tools import encoded

from reloc_core.localizer import Localizer


def ask(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.fixture
def port(serve, toy_map):
    return serve({"kitchen": Localizer.from_map(toy_map), "office": Localizer.from_map(toy_map)})[1]


def test_each_map_answers(port):
    maps = ask(port, "/maps")[1]
    assert {name: entry["component"] for name, entry in maps.items()} == {
        "kitchen": "toy",
        "office": "toy",
    }
    for name in maps:
        status, found = ask(port, f"/localize?map={name}", encoded())
        assert (status, found["map"], found["status"]) == (200, name, "localized")


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 422, "map=kitchen|office"),
        ("?map=kitchn", 404, "Did you mean 'kitchen'"),
        ("?map=../kitchen", 404, "There is no map"),
        ("?map=%2Fetc%2Fpasswd", 404, "There is no map"),
        ("?map=kitchen&map=office&focal=nan", 422, "focal"),
        ("?map=office&focal=1e9", 422, "focal"),
        ("?map=office&model=PINHOLE&params=1,2&width=64&height=48", 422, "params"),
        ("?map=office&model=CUBE&params=1&width=64&height=48", 422, "CUBE"),
    ],
)
def test_wrong_choices_are_explained(port, query, status, message):
    found = ask(port, f"/localize{query}", encoded())
    assert found[0] == status
    assert message in found[1]["error"]


def test_memory_is_given_back_now_and_then():
    from reloc_core.serving.limits import MemoryTrimmer, resident_bytes

    now = [0.0]
    trimmer = MemoryTrimmer(20.0, lambda: now[0])
    if trimmer._trim is None:
        pytest.skip("needs glibc")
    assert not trimmer.trim()
    # Many blocks below the size that the system gets back at once, and one in use above them.
    blocks = [bytearray(b"x" * 100_000) for _ in range(500)]
    last = bytearray(100_000)
    full = resident_bytes()
    blocks.clear()
    now[0] = 21.0
    assert trimmer.trim()
    assert resident_bytes() < full - 30e6
    assert not trimmer.trim()
    assert len(last) == 100_000

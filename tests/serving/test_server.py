"""`reloc serve` over loopback: good clients, bad clients, many clients."""

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from serving_tools import JPEG, FakeLocalizer, ask, encoded

# ------------------------------------------------------------------------------ what it answers


def test_an_image_gets_its_pose(serve):
    _, port = serve()
    for kind in (".jpg", ".png"):
        status, _, answer = ask(port, body=encoded(100, kind=kind))
        assert status == 200
        assert answer["status"] == "localized"
        assert answer["map"] == "room"
        column = [row[3] for row in answer["world_from_cam"]]
        assert column == pytest.approx([64, 50, 100, 1], abs=0.5)
        assert len(answer["covariance"]) == 6
        assert {"waited", "total"} <= set(answer["seconds"])


def test_not_localized_is_an_answer(serve):
    _, port = serve()
    status, _, answer = ask(port, body=encoded(255))
    assert (status, answer["status"], answer["reason"]) == (200, "not_localized", "too bright")
    assert answer["world_from_cam"] is None


def test_cameras_of_requests(serve):
    _, port = serve()

    def focal(query):
        return ask(port, path=f"/localize?{query}", body=encoded())[2]["world_from_cam"][1][3]

    assert focal("focal=77") == 77
    assert focal("model=PINHOLE&params=128,128,63.5,47.5&width=128&height=96") == 64


def test_several_maps(serve):
    _, port = serve({"a": FakeLocalizer(), "b": FakeLocalizer()})
    assert ask(port, path="/localize?map=b", body=encoded())[2]["map"] == "b"
    status, _, answer = ask(port, body=encoded())
    assert status == 422
    assert "map=a|b" in answer["error"]
    assert set(ask(port, "GET", "/maps")[2]) == {"a", "b"}


def test_health_metrics_and_documentation(serve):
    _, port = serve()
    assert ask(port, "GET", "/health")[2]["maps"] == ["room"]
    ask(port, body=encoded())
    ask(port, body=encoded(255))
    ask(port, body=b"")
    text = ask(port, "GET", "/metrics")[2]
    assert 'reloc_localizations_total{map="room",status="localized"} 1' in text
    assert 'reloc_localizations_total{map="room",status="not_localized"} 1' in text
    assert 'reloc_http_requests_total{status="422"} 1' in text
    assert "reloc_localization_seconds_count 2" in text
    page = ask(port, "GET", "/docs")[2]
    assert "POST /localize" in page
    assert "http://" not in page.replace("http://HOST:PORT", "")
    assert "https://" not in page
    description = ask(port, "GET", "/openapi.json")[2]
    assert "429" in description["paths"]["/localize"]["post"]["responses"]


# --------------------------------------------------------------------------------- bad requests


def bomb():
    """A small PNG that says it has 2.5 gigapixels."""

    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))  # fmt: skip

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("/localize", b"", JPEG, 422, "empty"),
        ("/localize", b"hello, this is text", JPEG, 415, "no JPEG or PNG"),
        ("/localize", encoded()[:-20], JPEG, 422, "truncated"),
        ("/localize", encoded()[:10], JPEG, 422, "damaged"),
        ("/localize", encoded(kind=".png")[:-5], JPEG, 422, "truncated"),
        ("/localize", bomb(), JPEG, 413, "50000x50000 pixels"),
        ("/localize", b"\xff\xd8" + b"x" * 1_100_000, JPEG, 413, "larger than 1 MB"),
        ("/localize", encoded(), {"Content-Type": "text/html"}, 415, "text/html"),
        ("/localize", b"x" * 5_000_000, {"Content-Type": "text/html"}, 415, "text/html"),
        ("/localize", b"\xff\xd8" + b"x" * 9_000_000, JPEG, 413, "larger than 1 MB"),
        ("/localize?map=kitchen", encoded(), JPEG, 404, "no map 'kitchen'"),
        ("/localize?map=../../etc/passwd", encoded(), JPEG, 404, "no map"),
        ("/localize?focal=-3", encoded(), JPEG, 422, "focal"),
        ("/localize?focal=nan", encoded(), JPEG, 422, "focal"),
        ("/localize?focal=wide", encoded(), JPEG, 422, "focal"),
        ("/localize?model=PINHOLE", encoded(), JPEG, 422, "params"),
        ("/localize?params=1,2&model=PINHOLE&width=4&height=4", encoded(), JPEG, 422, "takes 4"),
        ("/localize?params=1,2,3,4&model=FISH&width=4&height=4", encoded(), JPEG, 422, "FISH"),
        ("/localize?params=a,b&model=PINHOLE&width=4&height=4", encoded(), JPEG, 422, "params"),
        ("/localize?focal=5&params=1,2,3,4", encoded(), JPEG, 422, "not both"),
        ("/localize?params=9,9,4,4&model=PINHOLE&width=9&height=9", encoded(), JPEG, 422, "cropped"),
        ("/nothing", encoded(), JPEG, 404, "Not Found"),
    ],
)  # fmt: skip
def test_bad_requests_get_clear_answers(serve, path, body, headers, status, message):
    _, port = serve(megabytes=1.0)
    got, _, answer = ask(port, path=path, body=body, headers=headers)
    assert got == status
    assert message in answer["error"]
    assert ask(port, body=encoded())[0] == 200  # and nothing is broken


def test_other_methods(serve):
    _, port = serve()
    assert ask(port, "GET")[0] == 405
    assert ask(port, "DELETE", "/maps")[0] == 405


def test_without_a_camera(serve):
    _, port = serve(camera=None)
    status, _, answer = ask(port, body=encoded())
    assert status == 422
    assert "focal" in answer["error"]


def test_a_defect_is_not_told_to_clients(serve):
    _, port = serve()
    status, _, answer = ask(port, body=encoded(66, kind=".png"))
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert ask(port, body=encoded())[0] == 200
    assert "reloc_working 0" in ask(port, "GET", "/metrics")[2]


def raw(port, data):
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(data)
    return connection


def test_a_body_without_length_is_cut_at_the_limit(serve):
    _, port = serve(megabytes=0.1)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = b"POST /localize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = raw(port, head)
    try:
        for _ in range(4):
            connection.sendall(chunk)
    except OSError:
        pass  # it has hung up already
    assert b" 413 " in connection.recv(4096)
    connection.close()


def test_slow_bodies_are_given_up(serve):
    _, port = serve(body_seconds=0.5)
    head = b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n"
    begin = time.monotonic()
    connection = raw(port, head + b"\xff\xd8")
    assert b" 408 " in connection.recv(4096)
    assert time.monotonic() - begin < 10
    connection.close()
    assert ask(port, body=encoded())[0] == 200


def test_slow_heads_are_given_up(serve):
    _, port = serve(body_seconds=0.5)
    connection = raw(port, b"POST /localize HTTP/1.1\r\nHost")
    assert connection.recv(100) == b""  # closed by the server
    connection.close()


def test_a_client_that_goes_away(serve):
    service, port = serve()
    connection = raw(port, b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nab")
    connection.close()
    assert ask(port, body=encoded())[0] == 200
    assert (service.waiting, service.working) == (0, 0)


# -------------------------------------------------------------------------------- many requests


def test_a_full_queue_is_told_at_once(serve):
    localizer = FakeLocalizer()
    localizer.gate.clear()
    service, port = serve({"room": localizer}, queue=2)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(port, body=encoded()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert localizer.began.acquire(timeout=10)
    deadline = time.monotonic() + 10
    while service.waiting < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    begin = time.monotonic()
    status, headers, answer = ask(port, body=encoded())
    assert status == 503
    assert "busy" in answer["error"]
    assert int(headers["Retry-After"]) >= 1
    assert time.monotonic() - begin < 5
    assert ask(port, "GET", "/health")[0] == 200
    localizer.gate.set()
    for thread in threads:
        thread.join(20)
    assert [status for status, _, _ in answers] == [200] * 3
    assert ask(port, body=encoded())[0] == 200


def test_rates_are_limited_per_client(serve):
    _, port = serve(rate_per_minute=12.0)  # two at once
    statuses = [ask(port, body=encoded())[0] for _ in range(4)]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses[2:]
    status, headers, _ = ask(port, body=encoded())
    if status == 429:
        assert 1 <= int(headers["Retry-After"]) <= 6
    assert ask(port, "GET", "/health")[0] == 200


def test_rate_limiter_refills():
    from reloc_core.serving.limits import RateLimiter

    now = [0.0]
    limiter = RateLimiter(60, lambda: now[0])
    assert [limiter.wait_seconds("a") for _ in range(10)] == [0.0] * 10
    assert limiter.wait_seconds("a") == pytest.approx(1.0)
    assert limiter.wait_seconds("b") == 0
    now[0] = 2.5
    assert [limiter.wait_seconds("a") == 0 for _ in range(3)] == [True, True, False]


def test_a_request_that_is_cancelled_while_it_waits_frees_its_place(serve):
    from reloc_core.serving.service import Frame

    localizer = FakeLocalizer()
    localizer.gate.clear()
    service, _ = serve({"room": localizer}, queue=1)
    service.submit(None, Frame(encoded()))
    assert localizer.began.acquire(timeout=10)
    waiting = service.submit(None, Frame(encoded()))
    assert waiting.cancel()
    assert service.waiting == 0
    localizer.gate.set()


# -------------------------------------------------------------------------------- the command


def test_the_command_ends_in_order(toy_map, ace_scene, tmp_path):
    """SIGTERM while a request is under way: it is answered, then the process ends with code 0."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import conftest, pytest\n"
        "from reloc_core import registry; from importlib.metadata import EntryPoint\n"
        "points = registry._entry_points() + [EntryPoint('toy', 'toy', 'reloc.plugins.v1')]\n"
        "registry._entry_points = lambda: points\n"
        "import time, toy; estimate = toy.ToyEstimator.estimate; from reloc_core import hookimpl\n"
        "toy.reloc_run_finished = hookimpl(lambda verb, result: print(verb, result['queries'],\n"
        "    result['localized'], 'observed', file=sys.stderr))\n"
        "toy.ToyEstimator.estimate = lambda self, q: (time.sleep(1.5), estimate(self, q))[1]\n"
        "from reloc_core.cli.main import main; sys.exit(main(sys.argv[2:]))\n"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code, tests, "serve", f"map_dir={toy_map}", "port=0"]
    child = subprocess.Popen([*command, "camera.focal=130"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, cwd=tmp_path)  # fmt: skip
    try:
        line = child.stdout.readline()
        port = int(line.split(",")[0].rpartition(":")[2])
        image = next((ace_scene / "test/rgb").iterdir()).read_bytes()
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(
                ask(port, body=image, headers={"Content-Type": "image/png"})
            )
        )
        thread.start()
        time.sleep(0.7)
        child.send_signal(signal.SIGTERM)
        thread.join(20)
        assert child.wait(20) == 0, child.stderr.read()
        assert answers[0][0] == 200
        assert answers[0][2]["status"] == "localized"
    finally:
        child.kill()
        assert "serve 1 1 observed" in child.communicate()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "map_dir=MAP"),
        (["map_dir=nowhere"], "nowhere"),
        (["maps={a/b: x}"], "letters and digits"),
        (["map_dir=x", "limits.queue=-1"], "limits.queue"),
        (["map_dir=x", "limits.workers=many"], "limits"),
        (["map_dir={map}", "host=256.1.1.1"], "Choose another port"),
        (["map_dir={map}", "port=99999"], "Choose another port"),
    ],
)
def test_bad_commands(toy_map, arguments, message, capsys):
    from reloc_core.cli.main import main

    assert main(["serve", *(a.replace("{map}", str(toy_map)) for a in arguments)]) == 2
    assert message in capsys.readouterr().err

"""Load test of `reloc serve` over loopback: mixed traffic, latency, memory. Ends by itself.

    python benchmarks/serve.py --map MAP --images DIR --focal 525 --requests 2000
    python benchmarks/serve.py --map MAP --images DIR --focal 525 --seconds 1800 --requests 0

Measures the latency of single requests first, then sends a mix of good and bad requests from several
clients: valid, truncated, too large, no image, wrong type, slow. Every request must get the status that
fits it, the server must go on, its memory must stay flat.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MIX = {"valid": 70, "truncated": 8, "huge": 5, "text": 7, "wrong type": 7, "slow": 3}
EXPECTED = {
    "valid": {200, 503},
    "truncated": {422, 503},
    "huge": {413},
    "text": {415},
    "wrong type": {415},
    "slow": {408, 503},
}
BODY_SECONDS = 2.0
MEGABYTES = 2.0


def start(arguments: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """The server in a process of its own, and its port."""
    command = [
        sys.executable, "-m", "reloc_core.cli", "serve", f"map_dir={arguments.map}", "port=0",
        f"camera.focal={arguments.focal}", f"threads={arguments.threads}", f"limits.megabytes={MEGABYTES}",
        f"limits.body_seconds={BODY_SECONDS}", "device=cpu",
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:(\d+)", child.stdout.readline())
    if found is None:
        child.kill()
        raise SystemExit("The server did not start.")
    return child, int(found.group(1))


def ask(
    port: int, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg"
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def slow_request(port: int) -> int:
    """A client that stops in the middle of its body."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            b"POST /localize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 90000\r\n\r\n\xff\xd8"
        )
        answer = connection.recv(4096)
        return int(answer.split()[1]) if answer else 0


def one(port: int, kind: str, image: bytes) -> tuple[str, int, float]:
    """Send one request: kind, status (0: no answer) and seconds."""
    begin = time.perf_counter()
    try:
        if kind == "slow":
            status = slow_request(port)
        else:
            body = {
                "valid": image,
                "truncated": image[: len(image) * 2 // 3],
                "huge": image + b"\0" * int(MEGABYTES * 1.2e6),
                "text": b"this is no image " * 50,
                "wrong type": image,
            }[kind]
            media = "text/plain" if kind == "wrong type" else "image/jpeg"
            status, _ = ask(port, "POST", "/localize", body, media)
    except OSError:
        status = 0
    return kind, status, time.perf_counter() - begin


def memory(port: int) -> float:
    """Resident megabytes of the server."""
    text = ask(port, "GET", "/metrics")[1].decode()
    return float(text.rsplit("process_resident_memory_bytes ", 1)[1].split()[0]) / 1e6


def ms(values: list[float], q: float) -> float | None:
    """A quantile of seconds, in milliseconds."""
    if not values:
        return None
    return round(1e3 * sorted(values)[min(len(values) - 1, int(q * len(values)))], 1)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b where both are known."""
    return round(a / b, 2) if a is not None and b else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", required=True)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--focal", required=True, type=float)
    parser.add_argument("--requests", type=int, default=2000, help="0: as fit into --seconds")
    parser.add_argument("--seconds", type=float, default=300, help="stop after so long in any case")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument(
        "--load",
        type=float,
        default=0.6,
        help="good requests, as a share of what one client can get; 0 sends all at once",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    images = [p.read_bytes() for p in sorted(arguments.images.glob("*.jpg"))[:50]]
    child, port = start(arguments)
    try:
        for image in images[:10]:
            one(port, "valid", image)
        single = [one(port, "valid", image)[2] for image in images[:30]]
        share = MIX["valid"] / sum(MIX.values())
        pause = statistics.median(single) * share / arguments.load if arguments.load else 0.0
        if not arguments.requests:
            if not pause:
                raise SystemExit("--requests 0 needs a --load.")
            arguments.requests = int(arguments.seconds / pause)
        rng = random.Random(0)
        kinds = rng.choices(list(MIX), list(MIX.values()), k=arguments.requests)
        counts: Counter[tuple[str, int]] = Counter()
        accepted: list[float] = []
        rejected: list[float] = []
        memories: list[float] = []
        lock = threading.Lock()
        begin = time.monotonic()

        def work(number: int) -> None:
            time.sleep(max(0.0, begin + number * pause - time.monotonic()))
            if time.monotonic() - begin > arguments.seconds:
                return
            kind, status, seconds = one(port, kinds[number], images[number % len(images)])
            with lock:
                counts[kind, status] += 1
                if kind == "valid":
                    (accepted if status == 200 else rejected).append(seconds)
                if sum(counts.values()) % max(arguments.requests // 80, 1) == 0:
                    memories.append(memory(port))

        with ThreadPoolExecutor(arguments.clients) as pool:
            list(pool.map(work, range(arguments.requests)))
        elapsed = time.monotonic() - begin
        healthy = ask(port, "GET", "/health")[0] == 200
        afterwards = [one(port, "valid", image)[2] for image in images[:30]]
        child.send_signal(signal.SIGTERM)
        code = child.wait(60)
    finally:
        child.kill()
        child.wait()
    # Medians of quarters: single values go up and down by some percent. The first is for warming up.
    quarter = max(len(memories) // 4, 1)
    settled = memories[quarter:] or [float("nan")]
    early, late = statistics.median(settled[:quarter]), statistics.median(settled[-quarter:])
    wrong = {f"{k}: {s}": n for (k, s), n in counts.items() if s not in EXPECTED[k]}
    result = {
        "requests": sum(counts.values()),
        "seconds": round(elapsed, 1),
        "answers": {f"{kind}: {status}": n for (kind, status), n in sorted(counts.items())},
        "wrong_answers": wrong,
        "requests_per_second": round(sum(counts.values()) / elapsed, 2),
        "single_ms": {"median": ms(single, 0.5), "p95": ms(single, 0.95)},
        "single_afterwards_ms": {"median": ms(afterwards, 0.5), "p95": ms(afterwards, 0.95)},
        "accepted_ms": {"median": ms(accepted, 0.5), "p95": ms(accepted, 0.95)},
        "refused_ms": {"p95": ms(rejected, 0.95)},
        "memory_mb": {
            "second_quarter": round(early, 1),
            "last_quarter": round(late, 1),
            "max": round(max(settled), 1),
            "growth_percent": round(100 * (late / early - 1), 2),
            "series": [round(value) for value in memories],
        },
        "p95_by_single_p95": ratio(ms(accepted, 0.95), ms(single + afterwards, 0.95)),
        "p95_by_single_median": ratio(ms(accepted, 0.95), ms(single + afterwards, 0.5)),
        "healthy": healthy,
        "exit_code": code,
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if wrong or not healthy or code:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Answers a second of `reloc serve` by clients and workers, beside a loop over `Localizer` in the same run.

    python benchmarks/serve_rate.py --map MAP --images DIR --focal 525 [--clients 1 2 4] [--workers 1 2]

Every client asks again as soon as it has its answer; one that is refused because the server is busy waits
10 ms. Workers, and the loop, use one thread each. Loop and servers take turns, `--rounds` times, since
other work on a machine comes and goes: printed are medians.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import torch

from reloc_core import Localizer
from reloc_core.serving.limits import Limits
from reloc_core.serving.server import make_server
from reloc_core.serving.service import LocalizationService


@contextmanager
def served(localizer: Localizer, workers: int, clients: int, focal: float) -> Iterator[int]:
    """The port of a server in this process."""
    limits = Limits(workers=workers, queue=clients)
    service = LocalizationService({"map": localizer}, limits, focal)
    server = make_server(service, "127.0.0.1", 0, log_level="error")
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def ask(connection: http.client.HTTPConnection, image: bytes) -> None:
    """One answer; again while the server is busy."""
    while True:
        connection.request("POST", "/localize", image, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        text = response.read()
        if response.status == 200:
            return
        if response.status != 503:
            raise SystemExit(f"{response.status}: {text.decode()}")
        time.sleep(0.01)


def answers_a_second(port: int, images: list[bytes], clients: int) -> float:
    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for image in images[number::clients]:
            ask(connection, image)
        connection.close()

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return len(images) / (time.perf_counter() - begin)


def looped(localizer: Localizer, images: list[bytes], focal: float) -> float:
    """Images a second of a loop in one thread."""
    begin = time.perf_counter()
    for image in images:
        localizer.localize(image, focal)
    return len(images) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", required=True)
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--focal", required=True, type=float)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--count", type=int, default=24, help="images of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    files = sorted(p for p in arguments.images.iterdir() if p.suffix in (".jpg", ".png"))
    if not files:
        raise SystemExit(f"No .jpg or .png in {arguments.images}.")
    images = [files[i % len(files)].read_bytes() for i in range(arguments.count)]
    localizers = {
        workers: Localizer.from_map(arguments.map, threads=1, workers=workers)
        for workers in arguments.workers
    }
    torch.set_num_threads(1)
    loop = localizers[arguments.workers[0]]
    looped(loop, images[:5], arguments.focal)
    cells = [(w, c) for w in arguments.workers for c in arguments.clients]
    rates: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    ratios: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    alone: list[float] = []
    for _ in range(arguments.rounds):
        for workers, clients in cells:
            direct = looped(loop, images, arguments.focal)
            with served(localizers[workers], workers, clients, arguments.focal) as port:
                answers_a_second(port, images[:workers], workers)
                rate = answers_a_second(port, images, clients)
            alone.append(direct)
            rates[workers, clients].append(rate)
            ratios[workers, clients].append(rate / direct)
    print(
        f"{os.cpu_count()} cores; a loop in one thread: {statistics.median(alone):.2f} images a second"
    )
    print("| workers | clients | answers a second | of the loop |\n| --- | --- | --- | --- |")
    for workers, clients in cells:
        cell = workers, clients
        print(
            f"| {workers} | {clients} | {statistics.median(rates[cell]):.2f} "
            f"| {statistics.median(ratios[cell]):.2f} |"
        )


if __name__ == "__main__":
    main()

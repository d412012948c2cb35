import threading
import time

import numpy as np
import pytest

from reloc_core.datasets.prefetch import Prefetch
from reloc_core.errors import DataError, InputError
from reloc_core.interfaces import Dataset
from reloc_core.types import Camera, Frame, Query


class Slow(Dataset):
    """Images that take a while, and count how many are read at once."""

    def __init__(self, count=12, seconds=0.01, broken=None):
        camera = Camera.pinhole(10.0, 4, 3)
        self._frames = [Frame(str(i), camera) for i in range(count)]
        self.seconds, self.broken = seconds, broken
        self.lock, self.reading, self.most, self.read = threading.Lock(), 0, 0, []

    name = "slow"
    frames = property(lambda self: self._frames)

    def __getitem__(self, index):
        with self.lock:
            self.reading += 1
            self.most = max(self.most, self.reading)
            self.read.append(index)
        time.sleep(self.seconds)
        with self.lock:
            self.reading -= 1
        if index == self.broken:
            raise DataError("broken image")
        frame = self._frames[index]
        return Query(frame.name, frame.camera, image=np.zeros((3, 4, 3), np.uint8))


def test_order_repetition_and_parallel_reading():
    dataset = Slow()
    order = [5, 3, 3, 11, 0, 7]
    loader = Prefetch(dataset, order, workers=3)
    assert [int(q.name) for q in loader] == order
    assert len(loader) == loader.images == 6
    assert 1 < dataset.most <= 3
    assert [int(q.name) for q in Prefetch(dataset)] == list(range(12))


def test_no_more_than_ahead_is_read():
    dataset = Slow(50, 0.0)
    reader = iter(Prefetch(dataset, workers=2, ahead=4))
    next(reader)
    time.sleep(0.05)
    assert len(dataset.read) <= 5
    reader.close()
    assert len(dataset.read) <= 6


def test_stall_is_the_time_the_consumer_waits():
    slow = Prefetch(Slow(10, 0.02), workers=1, ahead=2)
    for _ in slow:
        pass
    assert 0.15 < slow.stall_seconds < 1.0
    fast = Prefetch(Slow(10, 0.005), workers=2, ahead=4)
    for _ in fast:
        time.sleep(0.03)
    assert fast.stall_seconds < 0.1


def test_an_unreadable_image_raises_in_its_turn():
    seen = []
    loader = iter(Prefetch(Slow(broken=4)))
    for _ in range(4):
        seen.append(int(next(loader).name))
    with pytest.raises(DataError, match="broken image"):
        next(loader)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(InputError):
        Prefetch(Slow(), workers=0)

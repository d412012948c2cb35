from __future__ import annotations

import math
import threading
import time

import pytest

from reloc_core.errors import InputError
from reloc_core.evaluation import evaluate, result_content
from reloc_core.evaluation.evaluate import AHEAD
from reloc_core.types import Localization


def test_every_query_gives_one_result_in_order(room, scripted):
    data = room(5)
    localizer = scripted(data, [0.01, 0.02, None, 0.04, 0.05])
    results = evaluate(localizer, data)
    assert [r.name for r in results] == [f.name for f in data.frames]
    assert [r.translation_error_m for r in results] == pytest.approx(
        [0.01, 0.02, math.inf, 0.04, 0.05]
    )
    assert results[2].reason == "too few inliers"
    assert results[0].total_seconds > 0
    assert results[0].timestamp == 0.0


def test_ground_truth_is_hidden_and_images_are_read_ahead(room, scripted):
    data = room(4)
    localizer = scripted(data, [0.01] * 4)
    evaluate(localizer, data)
    assert not localizer.saw_truth
    assert all(name.startswith("read-images") for name in data.read_by)


def test_sequences_start_once_and_photographs_each(room, scripted):
    data = room(6, sequences=["a", "a", "b", None, None, "b"])
    localizer = scripted(data, [0.01] * 6)
    evaluate(localizer, data)
    marks = ["s" if call == "start" else "q" for call in localizer.calls]
    assert "".join(marks) == "sqqsqsqsqsq"


def test_an_unreadable_image_is_a_failed_query(room, scripted):
    data = room(4, unreadable=[1])
    localizer = scripted(data, [0.01] * 4)
    seen = []
    results = evaluate(
        localizer, data, lambda r, q, loc: seen.append((r.name, q is None, loc.localized))
    )
    assert not results[1].readable
    assert results[1].translation_error_m == math.inf
    assert "truncated" in results[1].reason
    assert [s[1] for s in seen] == [False, True, False, False]
    assert "img001.png" not in localizer.calls
    content = result_content(results, data)
    assert content["status"] == "partial"
    assert content["failures"] == [
        {"name": "img001.png", "reason": "unreadable: img001.png is truncated."}
    ]


def test_status_says_how_much_could_be_read(room, scripted):
    data = room(2)
    assert result_content(evaluate(scripted(data, [None, None]), data), data)["status"] == "ok"
    data = room(2, unreadable=[0, 1])
    assert result_content(evaluate(scripted(data, [0, 0]), data), data)["status"] == "failed"


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def start_sequence(self) -> None:
        pass

    def localize(self, query):
        raise self.error


def test_a_refused_query_is_listed(room):
    results = evaluate(Raising(InputError("fisheye cameras are not supported")), room(2))
    assert [r.localized for r in results] == [False, False]
    assert results[0].reason == "refused: fisheye cameras are not supported"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_defects_and_interrupts_propagate(room, error):
    with pytest.raises(type(error)):
        evaluate(Raising(error), room(3))


def test_queries_without_truth_have_no_errors(room, scripted):
    data = room(3, unposed=[0, 2])
    results = evaluate(scripted(data, [0.01, 0.01, None]), data)
    assert [r.translation_error_m for r in results] == [None, pytest.approx(0.01), None]
    metrics = result_content(results, data)["metrics"]
    assert (metrics["queries"], metrics["localized"], metrics["with_ground_truth"]) == (3, 2, 1)


def test_an_empty_dataset(room, scripted):
    assert evaluate(scripted(room(0), []), room(0)) == []


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("read-images")]


class Patient:
    """A localizer that waits until as many images are read ahead as may be, and counts them."""

    def __init__(self, data):
        self.data, self.read = data, []

    def start_sequence(self):
        pass

    def localize(self, query):
        expected = min(len(self.read) + 1 + AHEAD, len(self.data))
        end = time.monotonic() + 20
        while len(self.data.read_by) < expected and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.005)  # in which one too many would be read
        self.read.append(len(self.data.read_by))
        return Localization.failure("patient")


def test_images_are_read_ahead_but_not_too_many(room):
    data = room(9)
    localizer = Patient(data)
    evaluate(localizer, data)
    assert localizer.read == [min(i + 1 + AHEAD, 9) for i in range(9)]


def test_waiting_for_images_is_measured(room, scripted):
    class Slow(room):
        def __getitem__(self, index):
            time.sleep(0.03)
            return super().__getitem__(index)

    results = evaluate(scripted(room(5), [0.01] * 5), Slow(5))
    waited = sum(r.wait_seconds for r in results)
    assert waited > 0.1
    content = result_content(results, room(5))
    assert content["seconds"]["waited_for_images"] == pytest.approx(waited, abs=1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_no_thread_is_left_behind(room, error):
    with pytest.raises(type(error)):
        evaluate(Raising(error), room(30))
    assert not readers()


def test_a_defect_of_the_reader_names_the_image(room, scripted):
    class Broken(room):
        def __getitem__(self, index):
            if index == 2:
                raise IndexError("off by one")
            return super().__getitem__(index)

    data = Broken(4)
    with pytest.raises(RuntimeError, match=r"reading img002\.png: IndexError: off by one"):
        evaluate(scripted(data, [0.01] * 4), data)
    assert not readers()

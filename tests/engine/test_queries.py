from __future__ import annotations

import math
import threading
import time

import pytest

from reloc_core.engine import evaluate, run_queries
from reloc_core.engine.queries import AHEAD
from reloc_core.errors import InputError
from reloc_core.types import Evidence, Localization


def localized(localizer, data, batch=1):
    return evaluate(localizer, data, batch=batch).results


def test_every_query_gives_one_result_in_order(room, scripted):
    data = room(5)
    localizer = scripted(data, [0.01, 0.02, None, 0.04, 0.05])
    results = localized(localizer, data)
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
    evaluation = evaluate(
        localizer,
        data,
        on_outcome=lambda o: seen.append((o.frame.name, o.query is None, o.localization.localized)),
    )
    results = evaluation.results
    assert not results[1].readable
    assert results[1].translation_error_m == math.inf
    assert "truncated" in results[1].reason
    assert [s[1] for s in seen] == [False, True, False, False]
    assert "img001.png" not in localizer.calls
    content = evaluation.content
    assert content["status"] == "partial"
    assert content["failures"] == [
        {"name": "img001.png", "reason": "unreadable: img001.png is truncated."}
    ]


def test_status_says_how_much_could_be_read(room, scripted):
    data = room(2)
    assert evaluate(scripted(data, [None, None]), data).content["status"] == "ok"
    data = room(2, unreadable=[0, 1])
    assert evaluate(scripted(data, [0, 0]), data).content["status"] == "failed"


class Raising:
    history = 0

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def start_sequence(self) -> None:
        pass

    def localize_batch(self, queries):
        raise self.error


def test_a_refused_query_is_listed(room):
    results = localized(Raising(InputError("fisheye cameras are not supported")), room(2))
    assert [r.localized for r in results] == [False, False]
    assert results[0].reason == "refused: fisheye cameras are not supported"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_defects_and_interrupts_propagate(room, error):
    with pytest.raises(type(error)):
        evaluate(Raising(error), room(3))


def test_queries_without_truth_have_no_errors(room, scripted):
    data = room(3, unposed=[0, 2])
    results = localized(scripted(data, [0.01, 0.01, None]), data)
    assert [r.translation_error_m for r in results] == [None, pytest.approx(0.01), None]
    metrics = evaluate(scripted(data, [0.01, 0.01, None]), data).content["metrics"]
    assert (metrics["queries"], metrics["localized"], metrics["with_ground_truth"]) == (3, 2, 1)


def test_an_empty_dataset(room, scripted):
    assert localized(scripted(room(0), []), room(0)) == ()


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("read-images")]


class Patient:
    """A localizer that waits until as many images are read ahead as may be, and counts them."""

    history = 0

    def __init__(self, data):
        self.data, self.read = data, []

    def start_sequence(self):
        pass

    def localize_batch(self, queries):
        expected = min(len(self.read) + 1 + AHEAD, len(self.data))
        end = time.monotonic() + 20
        while len(self.data.read_by) < expected and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.005)  # in which one too many would be read
        self.read.append(len(self.data.read_by))
        return [(Evidence(), Localization.failure("patient"))]


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

    evaluation = evaluate(scripted(room(5), [0.01] * 5), Slow(5))
    results = evaluation.results
    waited = sum(r.wait_seconds for r in results)
    assert waited > 0.1
    assert evaluation.content["seconds"]["waited_for_images"] == pytest.approx(waited, abs=1e-5)


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


def test_a_batch_gives_the_same_as_one_by_one(room, scripted):
    errors = [0.01, None, 0.03, 0.04, 0.05]
    data = room(5, unreadable=[3])
    one, many = localized(scripted(data, errors), data), localized(scripted(data, errors), data, 3)
    assert [(r.name, r.localized, r.reason) for r in one] == [
        (r.name, r.localized, r.reason) for r in many
    ]
    assert [r.translation_error_m for r in one] == [r.translation_error_m for r in many]


class Picky(Raising):
    """Refuses one image, whatever comes with it; counts the calls."""

    def __init__(self):
        self.sizes = []

    def localize_batch(self, queries):
        self.sizes.append(len(queries))
        if any(query.name == "img001.png" for query in queries):
            raise InputError("too bright")
        return [(Evidence(), Localization.failure("dark")) for _ in queries]


def test_a_batch_with_a_refused_query_loses_only_that_one(room):
    localizer = Picky()
    results = localized(localizer, room(4, sequences=[None] * 4), 4)
    assert [r.reason for r in results] == ["dark", "refused: too bright", "dark", "dark"]
    assert localizer.sizes == [4, 1, 1, 1, 1]


def test_a_localizer_that_remembers_takes_one_query_at_a_time(room):
    localizer = Picky()
    localizer.history = 2
    localized(localizer, room(3), 3)
    assert localizer.sizes == [1, 1, 1]


def test_a_stream_of_queries_runs_through_the_same_generator(room, scripted):
    data = room(3)
    outcomes = list(run_queries(scripted(data, [0.01, None, 0.02]), iter(data)))
    assert [o.localization.localized for o in outcomes] == [True, False, True]
    assert outcomes[0].result.translation_error_m == pytest.approx(0.01)

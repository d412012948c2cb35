from __future__ import annotations

import math
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from reloc_core.engine import evaluate
from reloc_core.errors import DataError
from reloc_core.evaluation.figures import error_bins
from reloc_core.evaluation.gallery import choose, explainer
from reloc_core.evaluation.query_table import _SCRIPT
from reloc_core.evaluation.report import ReportInfo, render_report, write_report
from reloc_core.evaluation.svg import Axes, log_ticks, nice_step
from reloc_core.evaluation.units import (
    format_length,
    format_percent,
    format_seconds,
    threshold_label,
)


class Checker(HTMLParser):
    """Collects tags and addresses, and checks that elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in {"meta", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _note(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")
        ]


def text_of(page: str) -> str:
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S))
    return re.sub(r" +", " ", text)


def report(room_, localizer, **info):
    results = evaluate(localizer, room_).results
    details = ReportInfo(room_.name, "scripted + pnp", unit=room_.unit, **info)
    return render_report(results, details, explainer(localizer, room_))


def test_the_page_is_self_contained_and_well_formed(tmp_path, room, scripted):
    data = room(8, unreadable=[6])
    localizer = scripted(data, [0.001, 0.01, 0.02, None, 0.06, 0.3, 0.0, 0.004])
    results = evaluate(localizer, data).results
    path = tmp_path / "report.html"
    mapped = [f.world_from_cam for f in data.frames]
    info = ReportInfo(
        data.name, "scripted", config_text="a: 1", environment={"cpu_count": 2}, notes=["one skipped"],
        mapped=mapped, map_bytes=3_200_000, result={"seconds": {"total": 9.0}, "overrides": ["seed=1"]},
    )  # fmt: skip
    write_report(path, results, info, explainer(localizer, data))
    page = path.read_text("utf-8")
    checked = Checker(page)
    assert all(address.startswith("data:image/jpeg;base64,") for address in checked.addresses)
    assert len(checked.addresses) == 7  # all but the unreadable one
    assert not {"link", "iframe", "img"} & set(checked.tags)
    assert checked.tags.count("script") == page.count(_SCRIPT) == 1
    assert "url(" not in page
    assert "http" not in page
    assert "@import" not in page
    assert path.stat().st_size < 3e6
    text = text_of(page)
    for part in ("3.2 MB", "one skipped", "seed=1", "a: 1", "6 / 8", "Not localized (2)"):
        assert part in text


def test_hostile_names_are_escaped(room, scripted):
    evil = '<script>alert("x")</script>'
    data = room(3, unreadable=[2], names=[evil, "b'\"><img src=http://x>.png", evil + "3"])
    localizer = scripted(data, [0.01, None, 0.01])
    page = report(
        data, localizer, config_text=evil, environment={evil: evil}, notes=[evil],
        result={"overrides": [evil], "versions": {evil: evil}},
    )  # fmt: skip
    # The page's own script, which holds nothing of the results, aside.
    page = page.replace(_SCRIPT, "", 1)
    checked = Checker(page)
    assert "<script" not in page
    assert not {"script", "img"} & set(checked.tags)
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in page


def test_all_queries_failed(room, scripted):
    data = room(4)
    page = report(data, scripted(data, [None] * 4))
    Checker(page)
    text = text_of(page)
    assert "At least half of the queries were not localized" in text
    assert "∞" in text
    assert "Not localized (4)" in text
    assert "nan" not in text.lower().split()


def test_no_ground_truth(room, scripted):
    data = room(4, unposed=range(4))
    page = report(data, scripted(data, [0.0, 0.1, 0.2, None]))
    Checker(page)
    assert "without ground truth" in page
    assert "Accuracy" not in page
    assert "Seen from above" in page


def test_in_scene_units_the_depth_is_the_measure(room, scripted):
    data = room(4, unit="scene unit")
    pipeline = scripted(data, [0.01, 0.01, 0.01, 4.0])
    page = report(data, pipeline, depth=10.0)
    text = unescape(text_of(page)).replace("\xa0", " ")
    assert "The median error is 0.100 % of the scene's depth" in text
    assert "75.0 % of the queries are within 5 % of the depth and 5°" in text
    assert "<b>0.100 %</b>" in page
    assert "0.05 units" not in page[: page.index("<h2>")]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_queries(room, scripted, count):
    data = room(count)
    Checker(report(data, scripted(data, [0.01] * count)))


def test_scene_units_are_not_called_metres(room, scripted):
    data = room(4, unit="scene unit")
    text = text_of(report(data, scripted(data, [0.01] * 4)))
    assert "0.0100 units" in text
    assert "<b>0.0100 <small>units</small></b>" in report(data, scripted(data, [0.01] * 4))
    assert not re.search(r"\d c?m\b", text)


def test_one_wild_estimate_does_not_shrink_the_trajectory(room, scripted):
    data = room(8)
    page = report(data, scripted(data, [0.01] * 7 + [900.0]))
    assert "1 estimate lies outside this drawing." in page


def test_without_images_the_rest_of_the_page_stands(room, scripted):
    data = room(4)
    localizer = scripted(data, [0.01] * 4)
    results = evaluate(localizer, data).results

    def broken(index):
        raise DataError("img gone")

    page = render_report(results, ReportInfo("room", "scripted"), broken)
    Checker(page)
    assert "img gone" in page
    Checker(render_report(results, ReportInfo("room", "scripted")))


def test_reprojected_points_meet_their_pixels_when_the_pose_is_right(room, scripted):
    data = room(2)
    localizer = scripted(data, [0.0, 0.5])
    page = report(data, localizer)
    right, wrong = (
        next(c for c in page.split("<figure")[1:] if name in c) for name in ("img000", "img001")
    )
    assert 'class="p0"' in right
    assert 'class="p4"' not in right
    assert 'class="p4"' in wrong


def test_choose_shows_failures_and_wrong_poses(room, scripted):
    data = room(20)
    errors = [None] * 8 + [0.01 * i for i in range(1, 13)]
    choice = choose(evaluate(scripted(data, errors), data).results)
    assert choice.worst == (0, 1, 2, 19, 18, 17)
    assert all(8 <= i < 17 for i in choice.typical)
    assert len(choice.typical) == 3


@pytest.mark.parametrize(
    ("span", "count", "step"), [(10, 5, 2), (1, 4, 0.5), (7, 7, 1), (0.03, 3, 0.01), (900, 5, 200)]
)
def test_nice_steps(span, count, step):
    assert nice_step(span, count) == pytest.approx(step)


def test_log_ticks_cover_the_range_with_labels():
    ticks = log_ticks(0.002, 1.5, "metre")
    labels = [label for _, label in ticks if label]
    assert labels == ["1 cm", "10 cm", "1 m"]
    assert all(0.002 <= value <= 1.5 for value, _ in ticks)


def test_axes_clamp_to_their_frame():
    plot = Axes(100, 100, (0.1, 10), (0, 1), x_log=True)
    assert plot.x(0.0) == plot.left
    assert plot.x(math.inf) == pytest.approx(plot.right)
    assert plot.x(1.0) == pytest.approx((plot.left + plot.right) / 2)
    assert plot.y(2.0) == plot.top


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0098, "0.980 cm"),
        (0.123, "12.3 cm"),
        (1.5, "1.50 m"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (0, "0 cm"),
        (0.09996, "10.0 cm"),
    ],
)
def test_lengths_read_well(value, text):
    assert format_length(value) == text


def test_percentages_never_round_to_certainty():
    assert format_percent(0.99999) == "99.9 %"
    assert format_percent(0.0001) == "0.1 %"
    assert format_percent(1.0) == "100 %"
    assert format_percent(0.0) == "0.0 %"


def test_durations_and_limits_read_well():
    texts = [format_seconds(s) for s in (0.0384, 0.9999, 1.23, 200.4)]
    assert texts == ["38 ms", "1.0 s", "1.2 s", "3 min 20 s"]
    assert threshold_label("25cm_2deg") == "25 cm, 2°"
    assert threshold_label("5m_10deg") == "5 m, 10°"
    assert np.all(np.diff([error_bins(m)[0] for m in (0.001, 0.1, 0.6, 3.0)]) > 0)


def test_frames_before_a_query_are_replayed_within_its_sequence(room, scripted):
    data = room(6, sequences=["a", "a", "b", "b", "b", "b"])
    localizer = scripted(data, [0.0] * 6)
    localizer.history = 2
    explain = explainer(localizer, data)
    for index, expected in ((0, [0]), (2, [2]), (3, [2, 3]), (5, [3, 4, 5])):
        localizer.calls.clear()
        explain(index)
        assert localizer.calls == ["start", *(data.frames[i].name for i in expected)]

"""The numbers of `benchmarks/places.py`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from reloc_core.testing import Subset, room

PATH = Path(__file__).parents[2] / "benchmarks" / "places.py"


@pytest.fixture(scope="module")
def places():
    spec = importlib.util.spec_from_file_location("reloc_places", PATH)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_errors_are_shares_of_the_distance(places):
    queries = Subset(room(frames=8), range(3))
    truth = [f.world_from_cam for f in queries.frames]
    # Points on a sphere of two metres around every camera: the median distance is known.
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = truth[0][:3, 3] + 2 * directions
    near = truth[0].copy()
    near[:3, 3] += [0.01, 0, 0]
    one = Subset(queries, [0])
    depth = places.depth_of(points, one)
    assert depth == pytest.approx(2.0)
    row = places.errors([near], one, depth)
    assert row["within 5 cm, 5 deg"] == 1
    assert row["percent"] == pytest.approx(0.5, rel=1e-6)
    assert row["degrees"] == pytest.approx(0, abs=1e-5)
    assert (row["localized"], row["within 1 %, 1 deg"], row["queries"]) == (1, 1, 1)
    row = places.errors([near, None, None], queries, depth)
    assert row["percent"] == np.inf
    assert (row["localized"], row["queries"]) == (1, 3)


def test_points_behind_and_out_of_view_have_no_say_in_the_depth(places):
    one = Subset(room(frames=8), [0])
    pose = one.frames[0].world_from_cam
    local = np.array([[0.0, 0, 3], [0, 0, -50], [90, 0, 1]])
    points = local @ pose[:3, :3].T + pose[:3, 3]
    assert places.depth_of(points, one) == pytest.approx(3.0)


def test_without_classical_rows_there_is_a_scale(places, tmp_path, monkeypatch):
    seen = []

    def preset(experiment, place, data, queries, depth):
        seen.append(depth)
        return places.errors([None] * len(queries), queries, depth)

    monkeypatch.setattr(places, "preset", preset)
    small = {"train_frames": 12, "test_frames": 2, "width": 160, "height": 120}
    options = tuple(f"dataset.{key}={value}" for key, value in small.items())
    monkeypatch.setitem(
        places.PLACES, "small",
        places.Place("synthetic", "", options, ("dataset.split=test", *options)),
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", [
        "places.py", "--data", str(tmp_path), "--places", "small", "--classical",
        "--json", str(tmp_path / "rows.json"),
    ])  # fmt: skip
    places.main()
    assert 0.5 < seen[0] < 10


def test_the_table_of_a_page_is_replaced(places):
    page = "# Places\n\n| place | method |\n| --- | --- |\n| old | row |\n\nText.\n"
    assert places.with_table(page, "| place | new |") == "# Places\n\n| place | new |\n\nText.\n"


def test_the_table_has_a_row_per_method(places):
    row = {"place": "lund", "method": "SIFT", "localized": 7, "queries": 7, "within 1 %, 1 deg": 7}
    lines = places.table([{**row, "percent": 0.16, "degrees": 0.04}, row]).splitlines()
    assert len(lines) == 4
    assert "| 0.160 | 0.040 | 7 of 7 |" in lines[2]
    assert "| inf |" in lines[3]

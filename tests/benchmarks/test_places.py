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
    row = places.errors([near], Subset(queries, [0]), points)
    assert row["percent"] == pytest.approx(0.5, rel=1e-6)
    assert row["degrees"] == pytest.approx(0, abs=1e-5)
    assert (row["localized"], row["within 1 %, 1 deg"], row["queries"]) == (1, 1, 1)
    row = places.errors([near, None, None], queries, points)
    assert row["percent"] == np.inf
    assert (row["localized"], row["queries"]) == (1, 3)


def test_the_table_has_a_row_per_method(places):
    row = {"place": "lund", "method": "SIFT", "localized": 7, "queries": 7, "within 1 %, 1 deg": 7}
    lines = places.table([{**row, "percent": 0.16, "degrees": 0.04}, row]).splitlines()
    assert len(lines) == 4
    assert "| 0.160 | 0.040 | 7 of 7 |" in lines[2]
    assert "| inf |" in lines[3]

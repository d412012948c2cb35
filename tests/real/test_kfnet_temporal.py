"""The temporal filter on a real room: better than its own measurement, and it bridges lost frames."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reloc_core.cli.main import main

DATA = Path(os.environ.get("RELOC_DATA", "../shared/data"))
ROOM = DATA / "redkitchen_seq01"
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "temporal.py"

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.skipif(not ROOM.is_dir(), reason=f"no scene in {ROOM}; set RELOC_DATA"),
]


def measured(work, preset, *settings):
    """Rows of the benchmark, by setting and side, for a map of all training frames."""
    code = main(
        ["train", f"experiment=kfnet_temporal/{preset}", "dataset=ace", f"dataset.root={ROOM}",
         f"map_dir={work / 'map'}", f"output_dir={work / 'fit'}"]
    )  # fmt: skip
    assert code == 0
    command = [sys.executable, str(BENCHMARK), "--map", str(work / "map"), "--root", str(ROOM),
               "--setting", *settings, "--json", str(work / "rows.json")]  # fmt: skip
    subprocess.run(command, check=True)
    return json.loads((work / "rows.json").read_text())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("memory"), "memory", "clean", "blur")


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("compact"), "compact", "clean")["clean"]


def test_the_published_method_localizes_and_filtering_its_poses_pays(compact):
    single, both = compact["measurement"], compact["cells + pose filter"]
    assert single["10cm/5deg %"] >= 75
    assert 2 <= compact["cells"]["nis of accepted, mean"] <= 4
    assert both["10cm/5deg %"] >= 95
    assert both["median cm"] < 0.8 * single["median cm"]
    assert both["in 95 % region, %"] >= 88


def test_filtering_pays(rows):
    clean = rows["clean"]
    single, cells, both = (
        clean[n] for n in ("measurement", "cells", "cells + pose filter")
    )  # fmt: skip
    assert cells["coordinates mean cm"] < 0.85 * single["coordinates mean cm"]
    assert both["median cm"] <= single["median cm"]
    assert 2 <= cells["nis of accepted, mean"] <= 4


def test_blurred_frames_are_bridged(rows):
    blur = rows["blur"]
    assert blur["measurement"]["10cm/5deg %"] <= 80
    assert blur["cells + pose filter"]["10cm/5deg %"] >= 95

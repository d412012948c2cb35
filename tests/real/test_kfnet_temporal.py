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


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    work = tmp_path_factory.mktemp("kfnet")
    code = main(
        ["train", "experiment=kfnet_temporal/compact", "dataset=ace", f"dataset.root={ROOM}",
         f"map_dir={work / 'map'}", f"output_dir={work / 'fit'}"]
    )  # fmt: skip
    assert code == 0
    command = [sys.executable, str(BENCHMARK), "--map", str(work / "map"), "--root", str(ROOM),
               "--setting", "clean", "blur", "--json", str(work / "rows.json")]  # fmt: skip
    subprocess.run(command, check=True)
    return json.loads((work / "rows.json").read_text())


def test_filtering_pays(rows):
    clean = rows["clean"]
    measured, cells, both = (
        clean[n] for n in ("measurement", "cells", "cells + pose filter")
    )  # fmt: skip
    assert cells["coordinates mean cm"] < 0.85 * measured["coordinates mean cm"]
    assert both["median cm"] <= measured["median cm"]
    assert 2 <= cells["nis of accepted, mean"] <= 4


def test_blurred_frames_are_bridged(rows):
    blur = rows["blur"]
    assert blur["measurement"]["10cm/5deg %"] <= 80
    assert blur["cells + pose filter"]["10cm/5deg %"] >= 95

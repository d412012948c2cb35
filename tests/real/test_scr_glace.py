"""The GLACE head on a real room, by the preset that a user runs."""

import json
import os
from pathlib import Path

import pytest

from reloc_core.cli.main import main

DATA = Path(os.environ.get("RELOC_DATA", "../shared/data"))
ROOM = DATA / "redkitchen_seq01"

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.skipif(not ROOM.is_dir(), reason=f"no scene in {ROOM}; set RELOC_DATA"),
]


def test_the_head_localizes_unseen_frames(tmp_path):
    place = ["dataset=ace", f"dataset.root={ROOM}", f"map_dir={tmp_path / 'map'}"]
    assert (
        main(["train", "experiment=scr_glace/compact", *place, f"output_dir={tmp_path / 'fit'}"])
        == 0
    )
    code = main(
        ["evaluate", *place, "dataset.split=test", "report=false", f"output_dir={tmp_path / 'out'}"]
    )
    assert code == 0
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert metrics["queries"] == 200
    assert metrics["median_translation_m"] < 0.012
    assert metrics["median_rotation_deg"] < 0.4
    assert metrics["recall"]["5cm_5deg"] >= 0.98

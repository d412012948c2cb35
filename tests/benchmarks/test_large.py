"""`benchmarks/large.py`: the table and the plot of two small places."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "large.py"


@pytest.mark.long
def test_rooms_are_mapped_measured_and_drawn(tmp_path):
    file = tmp_path / "large.json"
    command = [sys.executable, str(SCRIPT), "--work", str(tmp_path), "--rooms", "1", "3", "--images", "40",
               "--queries", "5", "--json", str(file)]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    one, three = json.loads(file.read_text())
    assert (one["images"], three["images"]) == (40, 120)
    assert one["queries"] == 5
    assert three["recall"] >= 0.8
    assert three["confidently_wrong"] == 0
    assert three["map_kb"] < 30
    assert three["mapping_mb"] < 2000
    assert found.stdout.count("| landmarks |") == 2
    assert len(list(ET.parse(file.with_suffix(".svg")).getroot())) == 5

import os
import shutil
from pathlib import Path

import pytest
from sweep_tools import written_scene


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables under which the toy plugin is installed, for the processes of sweeps."""
    site = tmp_path_factory.mktemp("site")
    info = site / "toy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[reloc.plugins.v1]\ntoy = toy\n")
    shutil.copy(Path(__file__).parent.parent / "toy.py", site)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A scene that costs jobs, each a process of its own, next to nothing: nothing is rendered."""
    scene = written_scene(tmp_path_factory.mktemp("scene"))
    return ["dataset=ace", f"dataset.root={scene}", "report=false", "threads=1"]

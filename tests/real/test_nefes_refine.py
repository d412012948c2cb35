"""The compact feature field on a real room: trains in minutes, and refinement pays."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.evaluation.results import read_localizations
from reloc_core.geometry import rotation_angle_deg

DATA = Path(os.environ.get("RELOC_DATA", "../shared/data"))
ROOM = DATA / "redkitchen_seq01"

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.skipif(not ROOM.is_dir(), reason=f"no scene in {ROOM}; set RELOC_DATA"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nefes")
    code = main(
        # A query is aligned in seconds: the calibration asks fewer of them than it does by default.
        ["train", "experiment=nefes_refine/align", "dataset=ace", f"dataset.root={ROOM}",
         "calibration.most=12", "calibration.foreign=12",
         f"map_dir={folder / 'map'}", f"output_dir={folder / 'fit'}"]
    )  # fmt: skip
    assert code == 0
    return folder


def test_field_is_quick_small_and_sharp_enough(work):
    fit = json.loads((work / "fit" / "result.json").read_text())
    assert fit["map"]["field_cpu_seconds"] < 2 * 1200
    assert fit["map"]["validation"]["psnr"] > 20
    assert fit["map"]["bytes"] < 20e6
    assert fit["peak_memory_mb"] < 4000


def test_refinement_pays(work):
    code = main(
        ["evaluate", f"map_dir={work / 'map'}", "dataset=ace", f"dataset.root={ROOM}",
         "dataset.split=test", "dataset.frame_step=10", f"output_dir={work / 'out'}"]
    )  # fmt: skip
    assert code == 0
    errors: dict[str, list[tuple[float, float]]] = {}
    for result in read_localizations(work / "out" / "localizations.jsonl"):
        for name, pose in result.stages:
            pose = np.asarray(pose)
            errors.setdefault(name, []).append(
                (
                    float(np.linalg.norm(pose[:3, 3] - result.truth[:3, 3])),
                    float(rotation_angle_deg(pose[:3, :3], result.truth[:3, :3])),
                )
            )
    before = np.median(errors["solve"], axis=0)
    after = np.median(errors["refine.nefes_refine"], axis=0)
    assert after[0] < 0.4 * before[0]
    assert after[1] < 0.5 * before[1]
    assert after[0] < 0.06
    assert after[1] < 2

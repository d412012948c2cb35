"""Relative poses on a real room, trained on few frames: beats retrieval, averages well, abstains."""

import json
import os
from pathlib import Path

import pytest

from reloc_core.cli.main import main

DATA = Path(os.environ.get("RELOC_DATA", "../shared/data"))
ROOM, OTHER = DATA / "redkitchen_seq01", DATA / "shelf_seq"

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.skipif(not ROOM.is_dir(), reason=f"no scene in {ROOM}; set RELOC_DATA"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gnn")
    code = main(
        ["train", "experiment=gnn_relpose/matched", "dataset=ace", f"dataset.root={ROOM}",
         "dataset.frame_step=5", "estimator.train.iterations=150", f"map_dir={folder / 'map'}",
         f"output_dir={folder / 'fit'}"]
    )  # fmt: skip
    assert code == 0
    return folder


def evaluate(work, name, *more):
    code = main(
        ["evaluate", f"map_dir={work / 'map'}", "dataset=ace", "report=false",
         f"output_dir={work / name}", *more]
    )  # fmt: skip
    assert code == 0
    return json.loads((work / name / "result.json").read_text())["metrics"]


def test_averaging_is_better_than_the_published_rule(work):
    frames = [f"dataset.root={ROOM}", "dataset.split=test", "dataset.frame_step=5"]
    mean = evaluate(work, "mean", *frames)
    one = evaluate(work, "one", *frames, "solver=single_reference")
    assert mean["localized"] == mean["queries"]
    assert mean["median_translation_m"] < 0.02
    assert mean["median_rotation_deg"] < 0.6
    assert mean["median_translation_m"] <= one["median_translation_m"]


def test_the_graph_network_alone_knows_where_it_is(tmp_path):
    """The published method with a quarter of its steps and a fifth of the images, before any pose is refused."""
    data = ["dataset=ace", f"dataset.root={ROOM}", "dataset.frame_step=5"]
    code = main(
        ["train", "experiment=gnn_relpose/compact", *data, "estimator.train.iterations=500",
         "calibration.enabled=false", f"map_dir={tmp_path / 'map'}", f"output_dir={tmp_path / 'fit'}"]
    )  # fmt: skip
    assert code == 0
    found = evaluate(tmp_path, "out", f"dataset.root={ROOM}", "dataset.split=test",
                     "dataset.frame_step=10")  # fmt: skip
    assert found["localized"] == found["queries"] == 20
    assert found["median_translation_m"] < 0.25
    assert found["median_rotation_deg"] < 8.5  # the best-retrieved reference is more than 10 off


def test_another_place_is_not_localized(work):
    found = evaluate(work, "other", f"dataset.root={OTHER}", "dataset.frame_step=5")
    assert found["localized"] == 0

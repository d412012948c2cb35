"""`benchmarks/matrix.py` on a room of a few images with two estimators that take no time."""

import importlib.util
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from reloc_core import registry
from reloc_core.cli.main import main
from reloc_core.config import build
from reloc_core.hooks import ENTRY_POINT_GROUP
from reloc_core.pipeline import Pipeline

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "matrix.py"


@pytest.fixture(scope="module")
def matrix():
    """The script as a module, which runs the verbs in this process."""
    spec = importlib.util.spec_from_file_location("reloc_matrix", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        points = EntryPoint("toy_points", "matrix_tools", ENTRY_POINT_GROUP)
        entries = registry._entry_points
        patch.setattr(registry, "_entry_points", lambda: [*entries(), points])
        registry.default_registry.cache_clear()
        yield module
    registry.default_registry.cache_clear()


@pytest.fixture
def run(matrix, monkeypatch, toy_plugin, tmp_path):
    """Run the script; returns its rows and the verbs that it ran."""
    verbs = []

    def reloc(*arguments):
        verbs.append(arguments[0])
        small = ["dataset.width=80", "dataset.height=60"]
        return main([*arguments, *(small if "dataset=synthetic" in arguments else [])]) == 0

    monkeypatch.setattr(matrix, "reloc", reloc)

    def script(*arguments):
        verbs.clear()
        command = ["matrix.py", "--work", str(tmp_path / "work"), "--train", "10", "--test", "5",
                   "--threads", "1", "--estimators", "toy", "toy_points"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        matrix.main()
        rows = json.loads((tmp_path / "work/matrix.json").read_text())["rows"]
        return rows, list(verbs)

    return script


def test_every_combination_that_fits_is_measured_once(run, tmp_path):
    rows, verbs = run()
    assert {(r["estimator"], r["solver"], r["refiner"]) for r in rows} == {
        ("toy", "prior", ""), ("toy", "prior", "toy_push"),
        *(("toy_points", solver, refiner) for solver in ("pnp", "dsac") for refiner in ("", "toy_push")),
    }  # fmt: skip
    assert verbs == ["train"] * 2 + ["evaluate"] * 6
    # All are the pose of the most similar image, whatever says it.
    work = tmp_path / "work/room"
    pipeline = Pipeline.from_map(work / "toy/map", refiners=[])
    options = {"train_frames": 10, "test_frames": 5, "width": 80, "height": 60, "split": "test"}
    queries = build({"_target_": "synthetic", **options}, "dataset")
    errors = [
        np.linalg.norm(pipeline.localize(q).world_from_cam[:3, 3] - q.world_from_cam[:3, 3])
        for q in map(queries.__getitem__, range(5))
    ]
    for row in rows:
        assert row["status"] == "ok"
        assert row["localized"] == row["queries"] == 5
        tolerance = 1e-2 if row["solver"] == "dsac" else 1e-5
        assert row["values"]["median_translation_m"] == pytest.approx(
            float(np.median(errors)), rel=tolerance
        )
        low, high = row["intervals"]["median_translation_m"]
        assert low <= row["values"]["median_translation_m"] <= high
        assert row["own_map"] == (row["estimator"] == "toy" or not row["refiner"])
        assert row["query_ms"] >= row["estimate_ms"] > 0
        assert row["query_peak_mb"] > 0
        assert row["map_mb"] > 0
    text = (tmp_path / "work/matrix.md").read_text()
    assert text.count("| toy_points |") == 4
    assert "| toy_push * |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert (tmp_path / "work/matrix.png").stat().st_size > 5000


def test_it_goes_on_where_it_was_stopped(run, tmp_path):
    first, _ = run()
    again, verbs = run()
    assert verbs == []
    assert again == first
    (tmp_path / "work/room/toy/prior/result.json").unlink()
    again, verbs = run()
    assert verbs == ["evaluate"]
    with pytest.raises(SystemExit, match="other settings"):
        run("--train", "11")


def test_what_fails_is_a_row_that_says_so(run, matrix, monkeypatch, tmp_path):
    working = matrix.reloc

    def reloc(*arguments):
        if "solver=dsac" in arguments:
            return False
        if arguments[0] == "train" and "experiment=toy/compact" in arguments:
            return False
        return working(*arguments)

    monkeypatch.setattr(matrix, "reloc", reloc)
    rows, _ = run()
    status = {(r["estimator"], r.get("solver", "")): r["status"] for r in rows}
    assert status == {
        ("toy", ""): "mapping failed", ("toy_points", "pnp"): "ok", ("toy_points", "dsac"): "failed",
    }  # fmt: skip
    text = (tmp_path / "work/matrix.md").read_text()
    assert "| toy |  |  | mapping failed |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_published_rows_have_the_columns_of_the_others(matrix):
    row = {"scene": "redkitchen_seq01", "estimator": "x", "status": "mapping failed"}
    text = matrix.table([row], {"size": "tiny", "threads": 1})
    assert "*published*" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_verb_that_fails_says_why(matrix, capsys):
    spec = importlib.util.spec_from_file_location("reloc_matrix_alone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert not module.reloc("evaluate", "map_dir=nowhere", "dataset=synthetic")
    finally:
        del sys.modules[spec.name]
    assert "nowhere" in capsys.readouterr().out

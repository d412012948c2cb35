"""`benchmarks/matrix.py` on a room of a few images with two estimators that take no time."""

import importlib.util
import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reloc_core import registry
from reloc_core.cli.main import main
from reloc_core.config import build
from reloc_core.hooks import ENTRY_POINT_GROUP
from reloc_core.pipeline import Pipeline

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "matrix.py"


@pytest.fixture(scope="module")
def matrix(toy_plugin_of_module):
    """The script as a module, with two toy estimators installed."""
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


class Script:
    """The script over a folder of work; its verbs run on tiny images, and are remembered."""

    def __init__(self, module, work):
        self.module, self.work, self.verbs = module, work, []

    def reloc(self, *arguments):
        self.verbs.append(arguments[0])
        small = ["dataset.width=80", "dataset.height=60"]
        return main([*arguments, *(small if "dataset=synthetic" in arguments else [])]) == 0

    def __call__(self, *arguments):
        """Returns the rows."""
        self.verbs.clear()
        command = ["matrix.py", "--work", str(self.work), "--train", "10", "--test", "5",
                   "--threads", "1", "--estimators", "toy", "toy_points"]  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.module, "reloc", self.reloc)
            patch.setattr(sys, "argv", [*command, *arguments])
            self.module.main()
        return json.loads((self.work / "matrix.json").read_text())["rows"]


def tangent(found, truth):
    """The error (6,) in the axes of the camera that was found."""
    turn = found[:3, :3].T @ truth[:3, :3]
    return np.concatenate([
        Rotation.from_matrix(turn).as_rotvec(), found[:3, :3].T @ (truth[:3, 3] - found[:3, 3])
    ])  # fmt: skip


@pytest.fixture(scope="module")
def finished(matrix, tmp_path_factory):
    """The whole script, run once: the script and its rows."""
    script = Script(matrix, tmp_path_factory.mktemp("matrix") / "work")
    return script, script()


def test_every_combination_that_fits_is_measured_once(finished):
    script, rows = finished
    assert {(r["estimator"], r["solver"], r["refiner"]) for r in rows} == {
        ("toy", "prior", ""), ("toy", "prior", "toy_push"),
        *(("toy_points", solver, refiner) for solver in ("pnp", "dsac") for refiner in ("", "toy_push")),
    }  # fmt: skip
    assert script.verbs == ["train"] * 2 + ["evaluate"] * 6
    # All are the pose of the most similar image, whatever says it.
    pipeline = Pipeline.from_map(script.work / "room/toy/map", refiners=[])
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
    alone = next(r for r in rows if r["estimator"] == "toy" and not r["refiner"])
    inside = []
    for query in map(queries.__getitem__, range(5)):
        found = pipeline.localize(query)
        error = tangent(found.world_from_cam, query.world_from_cam)
        # The map's calibration widened the toy's own covariance.
        assert np.all(np.diag(found.covariance) > 0.01)
        inside.append(error @ np.linalg.solve(found.covariance, error) < 12.592)
    assert alone["within_95"] == pytest.approx(np.mean(inside))
    text = (script.work / "matrix.md").read_text()
    assert text.count("| toy_points |") == 4
    assert "| toy_push * |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert (script.work / "matrix.png").stat().st_size > 5000


def test_it_goes_on_where_it_was_stopped(finished, tmp_path):
    before, rows = finished
    script = Script(before.module, shutil.copytree(before.work, tmp_path / "work"))
    (script.work / "room/toy/prior/result.json").unlink()
    again = script()
    assert script.verbs == ["evaluate"]
    for row, same in zip(rows, again, strict=True):
        assert row["values"] == same["values"]
    with pytest.raises(SystemExit, match="other settings"):
        script("--train", "11")


def test_what_fails_is_a_row_that_says_so(finished, tmp_path, monkeypatch):
    before, _ = finished
    script = Script(before.module, shutil.copytree(before.work, tmp_path / "work"))
    (script.work / "room/toy/fit.json").unlink()
    (script.work / "room/toy_points/dsac/result.json").write_text('{"status": "failed"}')
    monkeypatch.setattr(script, "reloc", lambda *arguments: False)
    status = {(r["estimator"], r.get("solver", "")): r["status"] for r in script()}
    assert status == {
        ("toy", ""): "mapping failed", ("toy_points", "pnp"): "ok", ("toy_points", "dsac"): "failed",
    }  # fmt: skip
    text = (script.work / "matrix.md").read_text()
    assert "| toy |  |  | mapping failed |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_published_rows_have_the_columns_of_the_others(matrix):
    row = {"scene": "redkitchen_seq01", "estimator": "x", "status": "mapping failed"}
    text = matrix.table([row], {"size": "tiny", "threads": 1})
    assert "*published*" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_verb_that_fails_says_why(matrix, capsys):
    assert not matrix.reloc("evaluate", "map_dir=nowhere", "dataset=synthetic")
    assert "nowhere" in capsys.readouterr().out

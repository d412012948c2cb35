from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy.spatial.transform import Rotation

from reloc_core.engine import evaluate
from reloc_core.errors import DataError
from reloc_core.evaluation import (
    read_localizations,
    result_content,
    summarize_results,
    summary_table,
    write_result_files,
)


@pytest.fixture
def written(tmp_path, room, scripted):
    data = room(5, unreadable=[3], names=["a.png", "b c.png", "d.png", "e.png", "f.png"])
    results = evaluate(scripted(data, [0.01, 0.02, None, 0.0, 0.06]), data).results
    write_result_files(tmp_path, results)
    return tmp_path, data, results


def body(path):
    return [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]


def test_poses_txt_is_world_to_camera_in_eleven_columns(written):
    folder, _, results = written
    lines = body(folder / "poses.txt")
    found = [r for r in results if r.localized]
    assert len(lines) == len(found) == 3
    for columns, result in zip(lines, found, strict=True):
        assert len(columns) == 11
        w, x, y, z, *t = map(float, columns[1:8])
        matrix = np.linalg.inv(result.world_from_cam)
        assert Rotation.from_quat([x, y, z, w]).as_matrix() == pytest.approx(
            matrix[:3, :3], abs=1e-8
        )
        assert t == pytest.approx(matrix[:3, 3], abs=1e-8)
        assert float(columns[9]) == pytest.approx(result.translation_error_m, abs=1e-6)
        assert columns[10] == "40"
    assert lines[1][0] == "b%20c.png"  # columns are separated by blanks


def test_poses_txt_names_its_frame_and_the_failures(written):
    head = [line for line in (written[0] / "poses.txt").read_text().splitlines() if line[0] == "#"]
    assert "world-to-camera" in head[0]
    assert "3 of 5 queries localized" in head[2]
    assert head[3:] == ["#   d.png: too few inliers", "#   e.png: unreadable: e.png is truncated."]


def test_poses_tum_is_camera_to_world(written):
    folder, _, results = written
    assert "camera-to-world" in (folder / "poses_tum.txt").read_text().splitlines()[0]
    found = [r for r in results if r.localized]
    for columns, result in zip(body(folder / "poses_tum.txt"), found, strict=True):
        stamp, *t, x, y, z, w = map(float, columns)
        assert stamp == pytest.approx(result.timestamp)
        assert t == pytest.approx(result.world_from_cam[:3, 3], abs=1e-8)
        rotation = Rotation.from_quat([x, y, z, w]).as_matrix()
        assert rotation == pytest.approx(result.world_from_cam[:3, :3], abs=1e-8)


def test_localizations_survive_a_round_trip(written):
    folder, _, results = written
    again = read_localizations(folder / "localizations.jsonl")
    assert [r.as_dict() for r in again] == [r.as_dict() for r in results]
    assert summarize_results(again).as_dict() == summarize_results(results).as_dict()
    assert again[2].translation_error_m == math.inf
    assert again[0].stages[0][0] == "solve"


def test_localizations_are_strict_json(written):
    def refuse(name):
        raise AssertionError(name)

    for line in (written[0] / "localizations.jsonl").read_text().splitlines():
        content = json.loads(line, parse_constant=refuse)
        assert content["status"] in ("localized", "not_localized")
        assert {"world_from_cam", "covariance", "score", "inliers", "seconds"} <= content.keys()


def test_a_damaged_line_is_named(tmp_path, written):
    path = written[0] / "localizations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_localizations(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_localizations(tmp_path / "absent.jsonl")


def test_index_replaces_missing_timestamps(tmp_path, room, scripted):
    data = room(3)
    object.__setattr__(data.frames[1], "timestamp", None)
    write_result_files(tmp_path, evaluate(scripted(data, [None, 0.0, 0.0]), data).results)
    assert [float(line[0]) for line in body(tmp_path / "poses_tum.txt")] == [1, 2]


def test_errors_are_nan_in_poses_txt_without_truth(tmp_path, room, scripted):
    data = room(2, unposed=[0, 1])
    write_result_files(tmp_path, evaluate(scripted(data, [0.0, 0.0]), data).results)
    assert all(line[8:10] == ["nan", "nan"] for line in body(tmp_path / "poses.txt"))


def test_result_content_is_json_with_the_contract_keys(written):
    _, data, results = written
    content = result_content(results, data)
    json.dumps(content, allow_nan=False)
    assert content["metrics"]["queries"] == 5
    assert content["metrics"]["localized"] == 3
    assert content["metrics"]["recall"]["5cm_5deg"] == pytest.approx(2 / 5)
    assert content["metrics"]["median_translation_m"] == pytest.approx(0.06)
    seconds = content["seconds"]
    assert seconds["stages"]["estimate"] == {"median": 0.03, "p95": 0.03}
    assert seconds["per_query"]["median"] <= seconds["per_query"]["p95"]
    assert content["dataset"]["name"] == "room/test"
    assert len(content["dataset"]["fingerprint"]) == 16


def test_the_terminal_table_says_what_matters(written):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table(written[2], "room/test with scripted"))
    text = console.export_text()
    for part in (
        "room/test with scripted",
        "5 cm, 5°",
        "40.0 %",
        "Not localized (2)",
        "too few inliers",
    ):
        assert part in text


def test_the_terminal_table_without_truth(room, scripted):
    data = room(2, unposed=[0, 1])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(evaluate(scripted(data, [0.0, 0.0]), data).results))
    assert "median error" not in console.export_text()


def test_in_scene_units_success_is_a_share_of_the_depth(room, scripted):
    data = room(4, unit="scene unit")
    results = evaluate(scripted(data, [0.1, 0.2, 3.0, 4.0]), data).results
    scored = [replace(r, score=s) for r, s in zip(results, (0.9, 0.8, 0.2, 0.1), strict=True)]
    assert math.isnan(summarize_results(scored, 10.0).score_auroc)  # all beyond five "centimetres"
    assert summarize_results(scored, 10.0, data.unit).score_auroc == 1.0

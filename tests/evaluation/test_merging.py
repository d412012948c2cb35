"""Results of an ensemble merged into one."""

import json
import math

import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.errors import DataError
from reloc_core.evaluation.merging import merge_results
from reloc_core.evaluation.results import (
    QueryResult,
    read_localizations,
    write_localizations,
)
from reloc_core.types import Status


def result(name, inliers, x=0.0, localized=True):
    pose = np.eye(4)
    pose[0, 3] = x
    if not localized:
        return QueryResult(
            name, Status.NOT_LOCALIZED, "lost", num_inliers=inliers, truth=np.eye(4),
            translation_error_m=math.inf, rotation_error_deg=math.inf,
        )  # fmt: skip
    return QueryResult(
        name, Status.LOCALIZED, world_from_cam=pose, num_inliers=inliers, truth=np.eye(4),
        translation_error_m=x, rotation_error_deg=0.0, total_seconds=0.5, seconds={"solve": 0.25},
    )  # fmt: skip


ONE = [
    result("a", 10, 1.0),
    result("b", 7, 1.0),
    result("c", 0, 1.0),
    result("d", 9, localized=False),
]
TWO = [result("d", 3, 2.0), result("a", 11, 2.0), result("b", 7, 2.0), result("c", 0, 2.0)]


def test_the_pose_with_most_inliers_is_taken():
    merged = merge_results([ONE, TWO])
    assert [r.name for r in merged] == ["a", "b", "c", "d"]
    # a: more inliers; b: equal, the first; c: none anywhere; d: a failure counts as none.
    assert [r.translation_error_m for r in merged] == [2.0, 1.0, math.inf, 2.0]
    assert [r.localized for r in merged] == [True, True, False, True]
    assert merged[2].world_from_cam is None
    assert merged[0].total_seconds == 1.0
    assert merged[0].seconds == {"solve": 0.5}


def test_other_images_are_refused():
    with pytest.raises(DataError, match="d is in one only"):
        merge_results([ONE, TWO[1:]])


def write(folder, results, fingerprint="f"):
    folder.mkdir()
    write_localizations(folder / "localizations.jsonl", results)
    dataset = {"name": "wall", "frames": 4, "fingerprint": fingerprint, "unit": "metre"}
    (folder / "result.json").write_text(json.dumps({"dataset": dataset}))
    return str(folder)


def test_verb(tmp_path, capsys):
    runs = [write(tmp_path / "one", ONE), write(tmp_path / "two", TWO)]
    out = tmp_path / "both"
    assert main(["report", "merge", f"output_dir={out}", *runs]) == 0
    assert "3 of 4 images localized" in capsys.readouterr().err
    merged = read_localizations(out / "localizations.jsonl")
    assert [r.num_inliers for r in merged] == [11, 7, 0, 3]
    told = json.loads((out / "result.json").read_text())
    assert told["metrics"]["queries"] == 4
    assert told["failures"] == [{"name": "c", "reason": "no correspondence supports a pose"}]
    assert told["dataset"]["name"] == "wall"
    assert len((out / "poses.txt").read_text().splitlines()) > 3
    assert (out / "poses_tum.txt").is_file()
    # A result like any other.
    assert (
        main(["report", "compare", f"truth={runs[0]}", str(out), f"output_dir={tmp_path / 'c'}"])
        == 0
    )


def test_mistakes_are_told(tmp_path, capsys):
    one = write(tmp_path / "one", ONE)
    other = write(tmp_path / "other", ONE, "g")
    for arguments, says in (
        ([one, other], "output_dir=DIR"),
        ([f"output_dir={tmp_path / 'out'}", one], "at least two"),
        ([f"output_dir={one}", one, other], "overwritten"),
        ([f"output_dir={tmp_path / 'out'}", one, other], "another dataset"),
        ([f"output_dir={tmp_path / 'out'}", one, str(tmp_path / "none")], "another dataset"),
    ):
        assert main(["report", "merge", *arguments]) == 2
        assert says in capsys.readouterr().err

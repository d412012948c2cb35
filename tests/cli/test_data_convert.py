import json

import numpy as np
import pytest

from reloc_core.cli.main import main


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_there_and_back(run, ace_scene, tmp_path):
    code, _, err = run(
        "data", "convert", "dataset=ace", f"dataset.root={ace_scene}", "to=transforms", "output=tr",
        "splits=[train,test]",
    )  # fmt: skip
    assert code == 0, err
    assert "16 frames" in err
    content = json.loads((tmp_path / "tr/transforms_test.json").read_text())
    assert len(content["frames"]) == 4
    code, _, err = run(
        "data", "convert", "dataset=transforms", "dataset.root=tr", "dataset.unit=metre", "to=ace",
        "output=back", "splits=[train,test]", "images=hardlink",
    )  # fmt: skip
    assert code == 0, err
    for split in ("train", "test"):
        for file in sorted((ace_scene / split / "poses").iterdir()):
            found = np.loadtxt(tmp_path / "back" / split / "poses" / file.name)
            np.testing.assert_allclose(found, np.loadtxt(file), atol=1e-9)
    assert not (tmp_path / "outputs").exists()


def test_what_cannot_be_done_is_said_and_leaves_nothing(run, ace_scene, tmp_path):
    ace = ["data", "convert", "dataset=ace", f"dataset.root={ace_scene}"]
    for more, match in (
        (["to=colmap", "output=x"], "cannot represent the sequence"),
        (["to=ace", "output=x", "splits=[train,val]"], "no split 'val'"),
        (["to=ace", "output=x", "splits=[train,train]"], "name each split once"),
        (["to=colmapp", "output=x"], "Did you mean 'colmap'"),
        (["output=x"], "to=..."),
        (["to=ace", f"output={tmp_path}"], "exists"),
    ):
        code, _, err = run(*ace, *more)
        assert code == 2
        assert match in err
    assert not list(tmp_path.iterdir())
    code, _, err = run("data", "konvert")
    assert (code, "Did you mean 'convert'" in err) == (2, True)


def test_help_and_config(run, ace_scene):
    code, out, _ = run("data", "convert", "--help")
    assert code == 0
    assert "drop" in out
    code, out, _ = run(
        "config",
        "check",
        "data",
        "convert",
        "dataset=kapture",
        "dataset.root=x",
        "to=ace",
        "output=y",
    )
    assert code == 0
    assert "time_unit: index" in out
    assert run("data", "--help")[1].count("reloc data") == 4


def test_poses_are_adjusted_on_the_way(run, tmp_path):
    room = [
        "dataset=synthetic",
        "dataset.width=320",
        "dataset.height=240",
        "dataset.train_frames=24",
    ]
    code, _, err = run(
        "data", "convert", *room, "to=transforms", "output=out", "adjust=true", "drop=[depth]"
    )
    assert code == 0, err
    # What cannot be done is said before minutes of work.
    code, _, again = run(
        "data", "convert", *room, "to=transforms", "output=out", "adjust=true", "drop=[depth]"
    )
    assert (code, "exists" in again, "Matching" in again) == (2, True, False)
    assert "synthetic/train: 24 of 24 poses adjusted with " in err.replace("\n", " ")
    code, _, err = run("data", "convert", *room, "to=transforms", "output=plain", "drop=[depth]")
    assert code == 0, err
    found, exact = (
        np.array(
            [
                f["transform_matrix"]
                for f in json.loads((tmp_path / d / "transforms.json").read_text())["frames"]
            ]
        )
        for d in ("out", "plain")
    )
    # Poses that are exact hardly move: by what key points of a small image allow.
    apart = np.linalg.norm(found[:, :3, 3] - exact[:, :3, 3], axis=1)
    assert 0 < np.median(apart) < 0.01

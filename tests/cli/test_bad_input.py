"""Mistakes of users: one or two lines that say what to do, exit code 2, nothing half-written."""

import json
import shutil

import numpy as np
import pytest
import yaml

from reloc_core.cli.main import main


@pytest.fixture
def scene(ace_scene, tmp_path):
    copy = tmp_path / "scene"
    shutil.copytree(ace_scene, copy)
    return copy


@pytest.fixture
def fails(toy_plugin, tmp_path, monkeypatch, capsys):
    """Run `reloc ARGUMENTS`, expect a user error, return its message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RELOC_DEBUG", raising=False)

    def run(*arguments):
        code = main([str(a) for a in arguments])
        err = capsys.readouterr().err
        assert code == 2, err
        message = err[err.index("reloc: error:") :]
        assert "Traceback" not in err
        assert len(message.strip().splitlines()) <= 3, message
        assert not (tmp_path / "map").exists()
        return message

    return run


def train(scene, *more):
    return ["train", "estimator=toy", "dataset=ace", f"dataset.root={scene}", "map_dir=map", *more]


def first(scene, folder):
    return sorted((scene / "train" / folder).iterdir())[0]


def test_missing_folder(fails, tmp_path):
    assert "nowhere" in fails(*train(tmp_path / "nowhere"))


def test_names_cannot_drive_the_terminal(fails, scene, request, tmp_path, capsys):
    name = "\x1b]0;owned\x07\x1b[31m"
    wild = scene.with_name(name)
    scene.rename(wild)
    message = fails(*train(wild, "dataset.split=nowhere"))
    assert "\\x1b" in message
    scene_map = request.getfixturevalue("toy_map")
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(first(wild, "rgb"), folder / f"{name}.png")
    (folder / f"{name}2.png").write_bytes(b"no image")
    asked = ["localize", f"map_dir={scene_map}", f"images={folder}", "camera.focal=100"]
    assert main([*asked, "output_dir=out"]) in (0, 2)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out
    assert "\x07" not in shown.err + shown.out


def test_empty_split(fails, scene):
    for file in (scene / "train" / "rgb").iterdir():
        file.unlink()
    assert "train" in fails(*train(scene))


def test_missing_split_names_what_is_there(fails, scene):
    shutil.rmtree(scene / "train")
    assert "test" in fails(*train(scene))


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_unreadable_image(fails, scene, damage):
    file = first(scene, "rgb")
    data = file.read_bytes()
    file.write_bytes(
        {"empty": b"", "text": b"no image", "truncated": data[: len(data) // 2]}[damage]
    )
    assert file.name in fails(*train(scene))


def test_count_mismatch(fails, scene):
    first(scene, "poses").unlink()
    message = fails(*train(scene))
    assert "12" in message
    assert "11" in message


@pytest.mark.parametrize(
    ("pose", "text"),
    [(np.diag([1.0, 2, 1, 1]), "rotation"), (np.diag([1.0, 1, -1, 1]), "reflection")],
)
def test_bad_pose(fails, scene, pose, text):
    file = first(scene, "poses")
    np.savetxt(file, pose)
    message = fails(*train(scene))
    assert text in message
    assert file.name in message


def test_nan_poses_are_skipped_with_a_count(toy_plugin, scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savetxt(first(scene, "poses"), np.full((4, 4), np.nan))
    assert main(train(scene)) == 0
    assert "1" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "map/map.yaml").read_text())["dataset"]["frames"] == 11


def test_only_nan_poses(fails, scene):
    for file in (scene / "train" / "poses").iterdir():
        np.savetxt(file, np.full((4, 4), np.nan))
    assert "pose" in fails(*train(scene))


@pytest.mark.parametrize("focal", ["0", "-5", "nan", "abc"])
def test_bad_focal(fails, scene, focal):
    first(scene, "calibration").write_text(focal)
    message = fails(*train(scene))
    assert "calibration" in message or "ocal" in message


def test_unknown_key_suggests_the_nearest(fails, scene):
    assert "Did you mean 'estimator.size'" in fails(*train(scene, "estimator.sizes=3"))
    assert "Did you mean 'map_dir'" in fails(*train(scene, "mapdir=x"))


def test_unknown_choices(fails, scene):
    assert "Did you mean 'toy'" in fails("train", "estimator=toi", "dataset=ace", "map_dir=map")
    assert "Did you mean 'ace'" in fails("train", "estimator=toy", "dataset=acee", "map_dir=map")
    assert "Did you mean 'train'" in fails("trian")
    assert "scr_glace/compact" in fails(
        "train",
        "experiment=scr_glace/compct",
        "dataset=ace",
        f"dataset.root={scene}",
        "map_dir=map",
    )


def test_wrong_type(fails, scene):
    message = fails(*train(scene, "estimator.size=big"))
    assert "size" in message
    assert "big" in message


def test_missing_options_are_named(fails):
    message = fails("train", "estimator=toy", "dataset=ace")
    assert "map_dir" in message
    assert "dataset.root" in message


def test_no_method_chosen(fails, scene):
    assert "experiment=" in fails("train", "dataset=ace", f"dataset.root={scene}", "map_dir=map")


@pytest.fixture
def trained(toy_plugin, ace_scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}", "map_dir=made"])
        == 0
    )
    return tmp_path / "made"


def evaluate(trained, scene, *more):
    return [
        "evaluate",
        f"map_dir={trained}",
        "dataset=ace",
        f"dataset.root={scene}",
        "output_dir=out",
        *more,
    ]


def test_an_option_of_a_solver_that_is_not_named(fails, trained, ace_scene):
    message = fails(*evaluate(trained, ace_scene, "solver.estimate_focal=true"))
    assert "add solver=NAME" in message
    assert "pnp" in message


def test_solver_that_does_not_fit(trained, fails, ace_scene):
    message = fails(*evaluate(trained, ace_scene, "solver=pnp"))
    assert "PosePrior" in message
    assert "prior" in message


def test_map_of_another_format(trained, fails, ace_scene):
    file = trained / "map.yaml"
    file.write_text(file.read_text().replace("format_version: 1", "format_version: 7"))
    assert "format 7" in fails(*evaluate(trained, ace_scene))


def test_map_for_another_configuration(trained, fails, ace_scene):
    assert "not 8" in fails(*evaluate(trained, ace_scene, "estimator.size=8"))


def test_truncated_map(trained, fails, ace_scene):
    file = trained / "images.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "truncated" in fails(*evaluate(trained, ace_scene))


def test_no_map(fails, ace_scene, tmp_path):
    assert "reloc train" in fails(*evaluate(tmp_path / "none", ace_scene))


def test_failed_runs_leave_no_output(trained, fails, ace_scene, tmp_path):
    fails(*evaluate(trained, ace_scene, "solver=pnp"))
    assert not (tmp_path / "out").exists()


def test_existing_map_is_kept(trained, fails, ace_scene):
    before = (trained / "map.yaml").read_text()
    assert "overwrite=true" in fails(
        "train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}", f"map_dir={trained}"
    )
    assert (trained / "map.yaml").read_text() == before


def test_broken_query_image_counts_as_failure(trained, fails, scene, tmp_path):
    broken = sorted((scene / "test/rgb").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:100])
    message = fails(*evaluate(trained, scene, "report=false"))
    assert broken.name.split(".")[0] in message
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["status"] == "partial"
    assert (result["metrics"]["queries"], result["metrics"]["localized"]) == (4, 3)
    assert len(result["failures"]) == 1


def test_localize_needs_a_focal_length(trained, fails, ace_scene):
    message = fails(
        "localize", f"map_dir={trained}", f"images={ace_scene / 'test/rgb'}", "output_dir=out"
    )
    assert "camera.focal" in message
    assert "camera" in fails(
        "localize",
        f"map_dir={trained}",
        f"images={ace_scene / 'test/rgb'}",
        "camera.focal=0",
        "output_dir=out",
    )


def test_device_and_threads(fails, scene):
    assert "device" in fails(*train(scene, "device=gpu"))
    assert "at least 0" in fails(*train(scene, "threads=-1"))


def test_file_in_the_way(fails, scene, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "file" in fails(
        "train", "estimator=toy", "dataset=ace", f"dataset.root={scene}", "map_dir=file/map"
    )


@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]])
@pytest.mark.parametrize("choice", ["experiment=null", "estimator=null", "dataset=None"])
def test_choosing_nothing(fails, scene, choice, flags):
    message = fails("train", *flags, "dataset=ace", f"dataset.root={scene}", choice)
    assert f"Leave {choice.partition('=')[0]}= out" in message

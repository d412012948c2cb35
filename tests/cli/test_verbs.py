import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reloc_core.cli.main import main
from reloc_core.errors import DataError


def cli(capsys, *arguments):
    """Exit code, standard output and standard error of `reloc ARGUMENTS`."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def trained(toy_plugin, ace_scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(
        capsys, "train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}", "map_dir=map"
    )
    assert code == 0, err
    return tmp_path / "map"


def test_contract_files_of_evaluate(trained, ace_scene, tmp_path, capsys):
    out = tmp_path / "out"
    code, _, err = cli(
        capsys, "evaluate", f"map_dir={trained}", "dataset=ace", f"dataset.root={ace_scene}",
        "dataset.split=test", f"output_dir={out}", "session=s1",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "ok"
    metrics = result["metrics"]
    assert set(metrics["recall"]) == {
        "1cm_1deg", "2cm_2deg", "5cm_5deg", "10cm_5deg", "25cm_2deg", "50cm_5deg", "5m_10deg"
    }  # fmt: skip
    assert (metrics["queries"], metrics["localized"]) == (4, 4)
    assert {"total", "per_query", "stages"} <= set(result["seconds"])
    assert {"median", "p95"} <= set(result["seconds"]["per_query"])
    for key in ("peak_memory_mb", "overrides", "config_hash", "versions"):
        assert result[key], key
    lines = [json.loads(line) for line in (out / "localizations.jsonl").read_text().splitlines()]
    # Oracle: the metrics recomputed from the poses that were written.
    translation, rotation = [], []
    for line, pose_file in zip(lines, sorted((ace_scene / "test/poses").iterdir()), strict=True):
        truth, found = np.loadtxt(pose_file), np.array(line["world_from_cam"])
        translation.append(np.linalg.norm(truth[:3, 3] - found[:3, 3]))
        relative = Rotation.from_matrix(truth[:3, :3].T @ found[:3, :3])
        rotation.append(np.degrees(relative.magnitude()))
    assert metrics["median_translation_m"] == pytest.approx(sorted(translation)[2], abs=1e-6)
    assert metrics["median_rotation_deg"] == pytest.approx(sorted(rotation)[2], abs=1e-4)
    page = (out / "report.html").read_text()
    assert "<html" in page
    assert 'src="http' not in page
    assert (out / "poses.txt").read_text() == (out / "poses_map_s1.txt").read_text()
    assert len([x for x in (out / "poses_tum.txt").read_text().splitlines() if x[0] != "#"]) == 4


def test_evaluate_needs_the_queried_split_only(trained, ace_scene, tmp_path, capsys):
    alone = tmp_path / "alone"
    shutil.copytree(ace_scene / "test", alone / "test")
    for root in (alone, alone / "test"):
        code, _, err = cli(
            capsys, "evaluate", f"map_dir={trained}", "dataset=ace", f"dataset.root={root}",
            "dataset.split=test", f"output_dir={tmp_path / root.name}", "report=false",
        )  # fmt: skip
        assert code == 0, err


def test_localize_without_poses(trained, ace_scene, tmp_path, capsys):
    out = tmp_path / "out"
    for images in (ace_scene / "test/rgb", ace_scene / "test/rgb/*.png"):
        code, stdout, err = cli(
            capsys, "localize", f"map_dir={trained}", f"images={images}", "camera.focal=525",
            f"output_dir={out}",
        )  # fmt: skip
        assert code == 0, err
        assert len([json.loads(line) for line in stdout.splitlines()]) == 4
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"]["median_translation_m"] is None
    assert result["metrics"]["localized"] == 4


def test_ground_truth_does_not_reach_the_result(trained, ace_scene, tmp_path, capsys):
    # The same images with wrong poses must be localized at the same places.
    moved = tmp_path / "moved"
    shutil.copytree(ace_scene / "test", moved / "test")
    for file in (moved / "test/poses").iterdir():
        pose = np.loadtxt(file)
        pose[:3, 3] += 5
        np.savetxt(file, pose)
    poses = []
    for root in (ace_scene, moved):
        out = tmp_path / f"out_{root.name}"
        code, _, err = cli(
            capsys, "evaluate", f"map_dir={trained}", "dataset=ace", f"dataset.root={root}",
            f"output_dir={out}", "report=false",
        )  # fmt: skip
        assert code == 0, err
        lines = (out / "localizations.jsonl").read_text().splitlines()
        poses.append([json.loads(line)["world_from_cam"] for line in lines])
    assert poses[0] == poses[1]


def test_interrupted_training_resumes(toy_plugin, ace_scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    code, _, err = cli(capsys, *base, "map_dir=map", "estimator.stop_at=5")
    assert code == 130
    assert "resumes" in err
    assert not (tmp_path / "map").exists()
    # Another configuration must not continue from this checkpoint.
    code, _, err = cli(capsys, *base, "map_dir=map")
    assert code == 2
    assert "resume=false" in err
    code, _, _ = cli(capsys, *base, "map_dir=map", "resume=false")
    assert code == 0


def test_a_mapping_is_shown_in_a_video(toy_plugin, ace_scene, tmp_path, capsys):
    place = ("dataset=ace", f"dataset.root={ace_scene}", f"map_dir={tmp_path / 'map'}")
    out = tmp_path / "out"
    code, _, err = cli(capsys, "train", "estimator=toy", *place, "video=true", f"output_dir={out}")
    assert code == 0, err
    video = cv2.VideoCapture(str(out / "video.mp4"))
    mapped = json.loads((out / "result.json").read_text())["dataset"]["frames"]
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == mapped


def test_multirun_sweeps_and_records_failures(toy_plugin, ace_scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, _ = cli(
        capsys, "train", "-m", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}",
        "map_dir=maps/${estimator.size}", "estimator.size=8,16", "output_dir=sweep",
    )  # fmt: skip
    assert code == 0
    statuses = [
        json.loads(p.read_text())["status"] for p in sorted(tmp_path.glob("sweep/*/result.json"))
    ]
    assert statuses == ["ok", "ok"]
    assert (tmp_path / "maps/8/map.yaml").exists()
    code, _, err = cli(
        capsys, "train", "-m", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}",
        "map_dir=maps/${estimator.size}", "estimator.size=8,12", "output_dir=again",
    )  # fmt: skip
    assert code == 1
    assert "1 of 2 jobs failed" in err
    results = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("again/*/result.json"))]
    assert [r["status"] for r in results] == ["failed", "ok"]
    assert "overwrite=true" in results[0]["error"]


@pytest.mark.parametrize("arguments", [["--help"], ["plugin", "list"], ["train", "--help"]])
def test_start_up_is_quick_and_imports_no_torch(arguments):
    composed = "hydra" if arguments[0] == "train" else ""
    script = (
        "import sys, time; t = time.process_time(); from reloc_core.cli.main import main;"
        f"code = main({arguments!r}); spent = time.process_time() - t;"
        "heavy = {'torch', 'hydra', 'cv2', 'matplotlib', 'rerun', 'tensorboard'} & set(sys.modules);"
        f"heavy -= {{{composed!r}}}; assert not heavy, heavy;"
        "print(spent, file=sys.stderr); sys.exit(code)"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stderr.split()[-1]))
    # Of CPU time: on a machine that is busy with other things the clock on the wall says nothing.
    assert min(seconds) < (1.0 if composed else 0.5)


@pytest.mark.parametrize("verb", ["train", "evaluate", "localize", "demo"])
def test_help_teaches(verb, toy_plugin, capsys):
    code, out, _ = cli(capsys, verb, "--help")
    assert code == 0
    assert f"reloc {verb}" in out
    assert "Options and defaults" in out
    if verb == "train":
        assert "estimator=" in out
        assert "toy" in out


def test_config_check(toy_plugin, ace_scene, capsys):
    code, out, _ = cli(capsys, "config", "check")
    assert code == 0, out
    code, out, _ = cli(
        capsys, "config", "check", "train", "estimator=toy", "dataset=ace",
        f"dataset.root={ace_scene}", "map_dir=m", "estimator.size=4",
    )  # fmt: skip
    assert code == 0
    assert "size: 4" in out


def test_completion(toy_plugin, capsys):
    def complete(line):
        return cli(capsys, "completion", "_query", line)[1].split()

    assert complete("reloc tr") == ["track", "train"]
    assert "dataset=ace" in complete("reloc train dataset=")
    assert "estimator=toy" in complete("reloc train estimator=t")
    assert "dataset.root=" in complete("reloc train dataset=ace dataset.r")
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = cli(capsys, "completion", shell)
        assert code == 0
        assert "reloc" in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_sleep_soon_unless_told_otherwise(given, expected):
    """In a process of its own: PyTorch must not be loaded before the variable is set."""
    script = (
        "import os, sys\n"
        "from reloc_core.cli.main import main\n"
        "main(['--version'])\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    known = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**known, **given}
    )
    assert done.stdout.split()[-2:] == [expected, "False"], done.stderr
    script = (
        "import os, sys\n"
        "from reloc_core.runs import resolve_runtime\n"
        "resolve_runtime('cpu', 1, 0)\n"
        "import torch\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**known, **given}
    )
    assert done.stdout.split()[-2:] == [expected, "1"], done.stderr


def test_observers_hear_of_the_end_of_a_run_that_fails(
    toy_plugin, ace_scene, tmp_path, observer, monkeypatch
):
    """Of an interrupted one, of one that is refused, and once of each job of a sweep that fails."""
    from toy import ToyEstimator

    def refuse(self, dataset, run):
        raise DataError("the images are blank")

    train = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}",
             f"map_dir={tmp_path}/${{now:%f}}", f"output_dir={tmp_path}/out"]  # fmt: skip
    assert main([*train, "estimator.stop_at=2"]) == 130
    monkeypatch.setattr(ToyEstimator, "fit", refuse)
    assert main(train) == 2
    assert main(["train", "-m", *train[1:], "estimator.size=8,9"]) == 1
    told = [(kind, what.get("status")) for kind, _, what in observer.events if kind != "query"]
    assert told == [("started", None), ("finished", "failed")] * 4
    assert observer.events[-1][2]["error"] == "the images are blank"

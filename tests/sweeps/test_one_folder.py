"""Sweeps in one folder: begun again, resumed, refused; and what a folder from elsewhere may not do."""

import json
import shutil

import pytest
import yaml
from sweep_tools import written_scene

from reloc_core.cli.main import main
from reloc_core.evaluation.sweeps import read_sweep

pytestmark = pytest.mark.usefixtures("toy_plugin_of_module")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, toy_plugin_of_module):
    """Sweep two sizes: sweep(FOLDER, ...) -> exit code."""
    scene = written_scene(tmp_path_factory.mktemp("noise"))
    arguments = ["estimator=toy", "dataset=ace", f"dataset.root={scene}", "calibration.enabled=false",
                 "threads=1", "estimator.size=4,8", "seed=${estimator.size}"]  # fmt: skip

    def run(folder, *more, verb="benchmark"):
        own = ["report=false"] if verb == "benchmark" else []
        return main([verb, "-m", *arguments, *own, *more, f"output_dir={folder}"])

    return run


def times(folder):
    """When each job wrote its result."""
    return {p.parent.name: p.stat().st_mtime_ns for p in sorted(folder.glob("*/result.json"))}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, sweep):
    path = tmp_path_factory.mktemp("swept") / "s"
    assert sweep(path) == 0
    return path


@pytest.fixture
def copy(swept, tmp_path):
    """A sweep of two finished jobs, to be changed."""
    return shutil.copytree(swept, tmp_path / "s")


def test_resumed_jobs_resolve_references_to_their_own_values(copy):
    shutil.rmtree(copy / "1")
    kept = times(copy)
    assert main(["sweep", "resume", str(copy)]) == 0
    for job, size in (("0", 4), ("1", 8)):
        info = yaml.safe_load((copy / job / "map/map.yaml").read_text())
        assert (info["config"]["size"], info["dataset"]["seed"]) == (size, size)
    assert times(copy)["0"] == kept["0"]
    assert [job.status for job in read_sweep(copy).jobs] == ["ok", "ok"]


def test_the_same_sweep_again_runs_what_is_missing_alone(sweep, copy, capsys):
    shutil.rmtree(copy / "1")
    kept = times(copy)
    assert sweep(copy) == 0
    assert "what has finished is not run again" in capsys.readouterr().err
    assert times(copy)["0"] == kept["0"]
    assert [job.status for job in read_sweep(copy).jobs] == ["ok", "ok"]


def test_another_sweep_into_the_folder_is_refused(sweep, copy, tmp_path, capsys):
    kept, record = times(copy), (copy / "sweep.json").read_bytes()
    for change in (["seed=5"], ["estimator.size=2,4"]):
        assert sweep(copy, *change) == 2
        assert f"continue that one: reloc sweep resume {copy}" in capsys.readouterr().err
    assert sweep(copy, f"map_dir={tmp_path}/m", verb="train") == 2
    assert "holds another sweep: reloc benchmark -m" in capsys.readouterr().err
    assert (times(copy), (copy / "sweep.json").read_bytes()) == (kept, record)
    (tmp_path / "other" / "0").mkdir(parents=True)
    assert sweep(tmp_path / "other") == 2
    assert "holds other results" in capsys.readouterr().err


def test_a_defect_of_a_plugin_fails_its_job_alone(sweep, tmp_path, monkeypatch, capsys):
    import toy

    estimate = toy.ToyEstimator.estimate

    def broken(self, query):
        if self.config.size == 4:
            raise ZeroDivisionError("nothing to\n divide by")
        return estimate(self, query)

    monkeypatch.setattr(toy.ToyEstimator, "estimate", broken)
    folder = tmp_path / "s"
    assert sweep(folder) == 1
    assert "1 of 2 jobs failed" in capsys.readouterr().err
    first = json.loads((folder / "0/result.json").read_text())
    assert first["status"] == "failed"
    assert first["error"] == "ZeroDivisionError: nothing to divide by"
    assert "in broken" in first["traceback"]
    assert read_sweep(folder).jobs[1].finished
    assert main(["sweep", "table", str(folder)]) == 0
    assert "job 0: failed. ZeroDivisionError: nothing to divide by" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["sweep", "resume", str(folder)]) == 0
    assert all(job.finished for job in read_sweep(folder).jobs)


@pytest.mark.parametrize("record", [True, False], ids=["both files", "multirun.yaml alone"])
def test_a_folder_calls_nothing_that_it_names(copy, tmp_path, record, capsys):
    """Callbacks, launchers and sweepers of a stranger's multirun.yaml are neither made nor called."""
    called = tmp_path / "called"
    evil = {"_target_": "os.mkdir", "path": str(called)}
    content = yaml.safe_load((copy / "multirun.yaml").read_text())
    hydra = content["hydra"]
    hydra["callbacks"] = {"evil": dict(evil)}
    hydra["launcher"], hydra["job_logging"] = dict(evil), dict(evil)
    words = [f"+hydra.callbacks.evil={{_target_: os.mkdir, path: {called}}}"]
    hydra["overrides"]["hydra"] += words
    (copy / "multirun.yaml").write_text(yaml.safe_dump(content))
    begun = json.loads((copy / "sweep.json").read_text())
    begun["overrides"] += words
    (copy / "sweep.json").write_text(json.dumps(begun))
    if not record:
        (copy / "sweep.json").unlink()
    shutil.rmtree(copy / "1")
    assert main(["sweep", "table", str(copy)]) == 0
    assert main(["sweep", "resume", str(copy)]) == 0
    assert "Not taken from the folder: '+hydra.callbacks.evil" in capsys.readouterr().err
    assert all(job.finished for job in read_sweep(copy).jobs)
    assert not called.exists()

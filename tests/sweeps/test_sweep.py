"""Sweeps: finished, failed and killed jobs; tables; resuming; launchers and optimisers."""

import json
import shutil

import pytest
from sweep_tools import SMALL, reloc

from reloc_core.cli.main import main
from reloc_core.evaluation.sweeps import average, read_sweep


@pytest.fixture(scope="module")
def swept(environment, tmp_path_factory):
    """Two sizes by two seeds; one size makes no sense to OpenCV, so that its jobs fail."""
    path = tmp_path_factory.mktemp("sweeps") / "a sweep"
    child = reloc(environment, "benchmark", "-m", "estimator=toy", *SMALL, "estimator.size=4,8",
                  "seed=1,2,3", f"output_dir='{path}'")  # fmt: skip
    assert child.returncode == 0, child.stderr
    return path


def test_every_job_has_its_result(swept):
    sweep = read_sweep(swept)
    assert (sweep.record.verb, len(sweep.jobs)) == ("benchmark", 6)
    assert all(job.finished for job in sweep.jobs)
    assert sweep.varied == ["estimator.size", "seed"]
    assert [job.overrides["seed"] for job in sweep.jobs] == ["1", "2", "3"] * 2


def test_table_averages_over_seeds(swept, capsys):
    assert main(["sweep", "table", str(swept), "format=csv"]) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["estimator.size", "finished", "median cm"]
    assert [line[:2] for line in lines[1:]] == [["4", "3/3"], ["8", "3/3"]]
    # The toy has nothing random: its interval over seeds is empty.
    assert all(line[2].endswith("± 0.00") for line in lines[1:])
    result = json.loads((swept / "0/result.json").read_text())
    centimetres = 100 * result["metrics"]["median_translation_m"]
    assert lines[1][2].startswith(f"{centimetres:.2f}")
    assert main(["sweep", "table", str(swept), "over=estimator.size"]) == 0
    assert "2/2" in capsys.readouterr().out


def test_broken_sweeps_are_read_and_resumed(swept, environment, tmp_path):
    path = tmp_path / "moved"
    shutil.copytree(swept, path)
    shutil.rmtree(path / "1")  # never begun
    (path / "3/result.json").write_text('{"status": "ok", "met')  # killed while writing
    shutil.rmtree(path / "3/map")
    failed = json.loads((path / "4/result.json").read_text())
    failed.update(status="failed", error="the disk was full")
    (path / "4/result.json").write_text(json.dumps(failed))
    kept = (path / "0/result.json").stat().st_mtime_ns
    table = reloc(environment, "sweep", "table", str(path))
    assert table.returncode == 0, table.stderr
    assert "job 4: failed. the disk was full" in table.stdout
    assert "job 1: missing" in table.stdout
    assert "3 of 6 jobs are not finished" in table.stdout
    child = reloc(environment, "sweep", "resume", str(path))
    assert child.returncode == 0, child.stderr
    assert "3 of 6 jobs are finished, 3 to do" in child.stdout
    assert all(job.finished for job in read_sweep(path).jobs)
    assert (path / "0/result.json").stat().st_mtime_ns == kept
    assert "0 to do" in reloc(environment, "sweep", "resume", str(path)).stdout


def test_plot(swept, tmp_path, capsys):
    path = tmp_path / "copy"
    shutil.copytree(swept, path)
    assert main(["sweep", "plot", str(path), "value=seconds.total"]) == 0
    assert capsys.readouterr().out.strip() == str(path / "sweep.png")
    assert (path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert main(["sweep", "plot", str(path), "value=metrics.nothing"]) == 2
    assert "metrics.nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel", "x"], "Did you mean 'table'"),
        (["table"], "takes one DIR"),
        (["table", "x", "by=seed"], "takes one DIR"),
        (["table", "nowhere"], "is no sweep"),
    ],
)
def test_bad_commands(arguments, message, capsys):
    assert main(["sweep", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_intervals():
    # Oracle: three values, t(2) = 4.303.
    found = average([1.0, 2.0, None, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.303 / 3**0.5, rel=1e-4)
    assert average([None]).mean is None
    assert average([5.0]).half_width is None


def test_joblib_runs_jobs_side_by_side(environment, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    child = reloc(environment, "benchmark", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
                  "estimator=toy", *SMALL, "seed=1,2", f"output_dir={tmp_path}/s")  # fmt: skip
    assert child.returncode == 0, child.stderr
    sweep = read_sweep(tmp_path / "s")
    assert [job.status for job in sweep.jobs] == ["ok", "ok"]
    assert "hydra/launcher=joblib" in sweep.record.hydra


def test_submitit_runs_jobs_on_this_machine(environment, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    child = reloc(environment, "benchmark", "-m", "hydra/launcher=submitit_local", "estimator=toy",
                  *SMALL, "seed=1,2", f"output_dir={tmp_path}/s")  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert [job.status for job in read_sweep(tmp_path / "s").jobs] == ["ok", "ok"]


def test_optuna_looks_at_one_number(environment, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    child = reloc(environment, "benchmark", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3",
                  "hydra.sweeper.n_jobs=1", "objective=metrics.median_translation_m", "estimator=toy",
                  *SMALL, "estimator.size=choice(2,4,8)", f"output_dir={tmp_path}/s")  # fmt: skip
    assert child.returncode == 0, child.stderr
    best = (tmp_path / "s/optimization_results.yaml").read_text()
    values = [job.value("metrics.median_translation_m") for job in read_sweep(tmp_path / "s").jobs]
    assert len(values) == 3
    assert f"best_value: {min(values)}" in best
    # Interrupted after its first trial: the other two are made again, knowing the first.
    shutil.rmtree(tmp_path / "s/1")
    shutil.rmtree(tmp_path / "s/2")
    first = (tmp_path / "s/0/result.json").read_bytes()
    child = reloc(environment, "sweep", "resume", f"{tmp_path}/s")
    assert child.returncode == 0, child.stderr
    jobs = read_sweep(tmp_path / "s").jobs
    assert [job.number for job in jobs] == [0, 10, 11]
    assert all(job.finished for job in jobs)
    assert (tmp_path / "s/0/result.json").read_bytes() == first
    values = [job.value("metrics.median_translation_m") for job in jobs]
    assert f"best_value: {min(values)}" in (tmp_path / "s/optimization_results.yaml").read_text()
    assert reloc(environment, "sweep", "resume", f"{tmp_path}/s").returncode == 0
    assert len(read_sweep(tmp_path / "s").jobs) == 3

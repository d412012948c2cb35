"""Sweeps: finished, failed and killed jobs; tables; resuming; launchers and optimisers."""

import csv
import json
import shutil
import statistics

import numpy as np
import pytest
from matplotlib.figure import Figure
from sweep_tools import reloc

from reloc_core.cli.main import main
from reloc_core.evaluation.paired import holm, paired_tests, sign_test
from reloc_core.evaluation.sweep_table import COLUMNS, interval, sweep_table
from reloc_core.evaluation.sweeps import Job, Record, Sweep, average, read_sweep


@pytest.fixture(scope="module")
def swept(environment, small, tmp_path_factory):
    """Two sizes by two seeds; one size makes no sense to OpenCV, so that its jobs fail."""
    path = tmp_path_factory.mktemp("sweeps") / "a sweep"
    child = reloc(environment, "benchmark", "-m", "estimator=toy", *small, "estimator.size=4,8",
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
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["estimator.size"], row["finished"]) for row in rows] == [("4", "3"), ("8", "3")]
    # The toy has nothing random: its interval over seeds is empty.
    result = json.loads((swept / "0/result.json").read_text())
    centimetres = 100 * result["metrics"]["median_translation_m"]
    for end in ("", "_low", "_high"):
        assert float(rows[0][f"median_cm{end}"]) == pytest.approx(centimetres)
    assert float(rows[0]["median_cm_std"]) == pytest.approx(0, abs=1e-9)
    for action in ("table", "plot"):
        assert main(["sweep", action, str(swept), "over=sed"]) == 2
        assert "Did you mean 'seed'" in capsys.readouterr().err
    assert main(["sweep", "table", str(swept), "over=estimator.size"]) == 0
    assert "2/2" in capsys.readouterr().out


def test_tables_for_papers(swept, capsys):
    assert main(["sweep", "table", str(swept), "format=markdown", "columns=median_cm,map_mb"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| estimator.size | finished | median cm | map MB |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert "± 0.00 [" in lines[2]
    assert "standard deviation" in "".join(lines)
    assert main(["sweep", "table", str(swept), "format=latex", "columns=recall_5cm_5deg"]) == 0
    latex = capsys.readouterr().out
    assert latex.startswith("\\begin{tabular}{lrr}")
    assert "5cm 5deg \\% \\\\" in latex
    assert main(["sweep", "table", str(swept), "columns=median_mm"]) == 2
    assert "Did you mean 'median_cm'" in capsys.readouterr().err


def test_a_sweep_is_compared_as_it_is(swept, tmp_path, capsys):
    assert (
        main(["report", "compare", str(swept), f"one={swept}/0", f"output_dir={tmp_path}/c"]) == 0
    )
    compared = json.loads((tmp_path / "c/compare.json").read_text())
    text = json.dumps(compared)
    assert "size=4, seed=1" in text
    assert "size=8, seed=3" in text
    assert '"one"' in text


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["0", "3"], ["size=4", "size=8"]),  # seeds 1 and 1
        (["0", "4/localizations.jsonl"], ["size=4, seed=1", "size=8, seed=2"]),
        (["5"], ["size=8, seed=3"]),
        (["mine=1", "3"], ["mine", "size=8, seed=1"]),
    ],
)
def test_jobs_of_a_sweep_are_labelled_by_what_differs(swept, tmp_path, given, labels):
    paths = [
        f"{label}{equals}{swept}/{job}" for label, equals, job in (g.rpartition("=") for g in given)
    ]
    output = [f"output_dir={tmp_path}", "bootstrap=0"]
    assert main(["report", "compare", f"truth={swept}/0", *paths, *output]) == 0
    scene = next(iter(json.loads((tmp_path / "compare.json").read_text())["scenes"].values()))
    assert [row["method"] for row in scene] == labels


def test_overconfident_jobs_are_marked(tmp_path):
    def job(number, solver, nees, within, count=60):
        calibration = {"mean_nees": nees, "within_95": within, "with_covariance": count}
        result = {"metrics": {"median_translation_m": 0.01, "calibration": calibration}}
        return Job(number, tmp_path / str(number), {"solver": solver}, "ok", result)

    jobs = (job(0, "pnp", 6.1, 0.95), job(1, "dsac", 35.0, 0.6), job(2, "few", 35.0, 0.6, 20),
            job(3, "none", None, None, 0))  # fmt: skip
    table = sweep_table(Sweep(tmp_path, Record("benchmark", [], [], [], False), jobs))
    assert table.overconfident == (0, 1, 0, 0)
    assert [row[1] for row in table.cells()[1:]] == ["1/1", "1/1 †", "1/1", "1/1"]
    assert "† The poses of at least one job are overconfident" in table.markdown()
    assert "1/1 $\\dagger$" in table.latex()
    assert [record["overconfident"] for record in table.records()] == [0, 1, 0, 0]
    table = sweep_table(Sweep(tmp_path, Record("benchmark", [], [], [], False), jobs[:1]))
    assert "overconfident:" not in table.markdown()


def test_default_columns_are_over_the_depth_where_the_unit_is_arbitrary(tmp_path):
    def job(number, unit):
        metrics = {"relative": {"median_translation_percent": 0.5, "recall": {"5%_5deg": 0.75}}}
        result = {"status": "ok", "metrics": metrics, "dataset": {"unit": unit}}
        return Job(number, tmp_path / str(number), {"seed": str(number)}, "ok", result)

    def titles(unit):
        record = Record("evaluate", [], [], [], False)
        table = sweep_table(Sweep(tmp_path, record, (job(0, unit), job(1, unit))))
        return table.cells()

    assert "median cm" in titles("metre")[0]
    head, row = titles("scene unit")
    assert "median % of the depth" in head
    assert "5% 5deg %" in head
    assert "median cm" not in head
    assert row[2].startswith("0.50")
    assert row[4].startswith("75.0")


def test_intervals_are_clipped_to_what_is_possible():
    found = average([0.98, 1.0, 0.9])
    low, high = interval(found, COLUMNS["recall_5cm_5deg"])
    assert (low, high) == (pytest.approx(100 * (found.mean - found.half_width)), 100.0)
    assert interval(average([0.0, 0.1]), COLUMNS["median_cm"])[0] == 0.0
    assert found.std == pytest.approx(statistics.stdev([0.98, 1.0, 0.9]))


def test_sign_tests_agree_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((0, 0), (1, 0), (5, 5), (9, 1), (40, 17), (0, 300)):
        expected = scipy_stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    # Holm's own example of step-down: 3 x 0.01, then 2 x 0.02, never decreasing.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


def test_pairs_of_pipelines_on_the_same_queries():
    rng = np.random.default_rng(0)
    good = {str(i): rng.uniform(0.01, 0.02, (3, 2)) for i in range(30)}
    worse = {name: 2 * errors for name, errors in good.items()}
    lost = {name: np.full((3, 2), np.inf) for name in good}
    tests = paired_tests({"a": good, "b": worse, "c": lost, "d": {"other": good["0"]}, "e": lost})
    assert [(t.first, t.second, t.wins, t.losses) for t in tests] == [
        ("a", "b", 30, 0), ("a", "c", 30, 0), ("a", "e", 30, 0), ("b", "c", 30, 0), ("b", "e", 30, 0),
        ("c", "e", 0, 0),
    ]  # fmt: skip
    assert [t.differs for t in tests] == [True] * 5 + [False]
    assert "differs beyond chance" in str(tests[0])


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


@pytest.mark.parametrize("subdir", ["named_{}", "{}1"])
def test_folders_of_jobs_named_by_hydra_sweep_subdir(swept, tmp_path, capsys, subdir):
    path = tmp_path / "renamed"
    shutil.copytree(swept, path)
    for number in range(6):
        (path / str(number)).rename(path / subdir.format(number))
    sweep = read_sweep(path)
    assert [(j.number, j.folder.name) for j in sweep.jobs] == [
        (number, subdir.format(number)) for number in range(6)
    ]
    arguments = ["format=markdown", "columns=median_cm,map_mb"]
    for folder in (swept, path):
        assert main(["sweep", "table", str(folder), *arguments]) == 0
    text = capsys.readouterr().out
    assert text[: len(text) // 2] == text[len(text) // 2 :]
    assert "4 against 8" in text
    assert main(["report", "compare", str(path), f"output_dir={tmp_path}/c", "bootstrap=0"]) == 0
    assert "size=8, seed=3" in (tmp_path / "c/compare.json").read_text()


def test_plot(swept, tmp_path, capsys, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    path = tmp_path / "copy"
    shutil.copytree(swept, path)
    assert main(["sweep", "plot", str(path), "value=seconds.total"]) == 0
    assert capsys.readouterr().out.strip() == str(path / "sweep.png")
    assert (path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert drawn[0].get_suptitle() == "copy: 6 of 6 jobs"
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["mean over seed", "95 % interval of the mean"]
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


def test_joblib_runs_jobs_side_by_side(environment, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    child = reloc(environment, "benchmark", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
                  "estimator=toy", *small, "seed=1,2", f"output_dir={tmp_path}/s")  # fmt: skip
    assert child.returncode == 0, child.stderr
    sweep = read_sweep(tmp_path / "s")
    assert [job.status for job in sweep.jobs] == ["ok", "ok"]
    assert "hydra/launcher=joblib" in sweep.record.hydra


def test_submitit_runs_jobs_on_this_machine(environment, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    child = reloc(environment, "benchmark", "-m", "hydra/launcher=submitit_local", "estimator=toy",
                  *small, "seed=1,2", f"output_dir={tmp_path}/s")  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert [job.status for job in read_sweep(tmp_path / "s").jobs] == ["ok", "ok"]


def test_optuna_looks_at_one_number(environment, small, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    child = reloc(environment, "benchmark", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3",
                  "hydra.sweeper.n_jobs=1", "objective=metrics.median_translation_m", "estimator=toy",
                  *small, "estimator.size=choice(2,4,8)", f"output_dir={tmp_path}/s")  # fmt: skip
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

import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
import benchmark_archives as archives

from reloc_core.cli.main import main
from reloc_core.config import compose, experiments
from reloc_core.datasets.benchmarks import BENCHMARKS, FetchOptions
from reloc_core.evaluation.published import read_published

PAPER = [name for name in experiments() if name.startswith("paper/")]


@pytest.fixture
def wayspots(tmp_path, capsys):
    mirror = tmp_path / "mirror" / "wayspots"
    mirror.mkdir(parents=True)
    (mirror / "wayspots.tar.gz").write_bytes(archives.wayspots())
    arguments = ["scenes=bears,map", f"mirror={mirror.parent}", f"root={tmp_path / 'data'}"]
    assert main(["data", "fetch", "wayspots", "--accept-license", *arguments]) == 0
    capsys.readouterr()
    return tmp_path / "data"


def test_sweep_over_fetched_scenes_beside_published_numbers(
    toy_plugin, wayspots, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "benchmark", "-m", "estimator=toy", "dataset=ace", "dataset.root=${root}/wayspots_${scene}",
        f"root={wayspots}", "scene=bears,map", "published_table=wayspots", "output_dir=sweep", "report=false",
        "hydra.sweep.subdir=${scene}",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    for scene, ace in (("bears", "0.807"), ("map", "0.565")):
        result = json.loads((tmp_path / "sweep" / scene / "result.json").read_text())
        assert (result["status"], result["metrics"]["queries"]) == ("ok", 2)
        with open(tmp_path / "sweep" / scene / "compare.csv") as file:
            rows = {(r["method"], r["kind"]): r for r in csv.DictReader(file)}
        assert rows["ACE", "published"]["recall_10cm_5deg"] == ace
        assert rows["toy + default solver", "measured"]["queries"] == "2"
    stamp = (tmp_path / "sweep/map/map/map.yaml").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "sweep/map/map/map.yaml").stat().st_mtime_ns == stamp


def test_what_would_fail_after_training_fails_before(toy_plugin, wayspots, tmp_path, capsys):
    arguments = ["benchmark", "estimator=toy", "dataset=ace", f"dataset.root={wayspots}/wayspots_map",
                 f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    for more, match in (
        (["published_table=wayspots", "scene=maps"], "has no scene 'maps'"),
        (["published_table=wayspot"], "Did you mean 'wayspots'"),
        (["test_split=query"], "no split 'query'"),
    ):
        assert main([*arguments, *more]) == 2
        assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PAPER)
def test_paper_sweeps_fit_the_fetched_folders_and_published_tables(name):
    benchmark = BENCHMARKS[
        next(
            b
            for b in BENCHMARKS
            if b in name.replace("7scenes_", "7scenes/").replace("12scenes_", "12scenes/")
        )
    ]
    options = FetchOptions(poses="sfm" if name.endswith("_sfm") else "dslam")
    text = (Path(__file__).parents[2] / "conf" / "experiment" / f"{name}.yaml").read_text()
    scenes = text.partition("      scene: ")[2].strip().split(",")
    scenes = scenes if scenes != [""] else ["aachen"]
    assert set(scenes) == set(benchmark.scenes)
    cfg = compose("benchmark", [f"experiment={name}", "root=R"])
    assert cfg.solver._target_ == "dsac"
    for scene in scenes:
        cfg.scene = scene
        assert cfg.dataset.root == f"R/{benchmark.folder(scene, options)}"
        if cfg.published_table:
            assert scene in read_published(cfg.published_table).scenes


def test_there_are_paper_sweeps():
    assert {"paper/ace_7scenes_sfm", "paper/glace_cambridge", "paper/glace_aachen"} <= set(PAPER)

import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
import benchmark_archives as archives

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.config import experiments
from reloc_core.datasets.benchmarks import BENCHMARKS, FetchOptions
from reloc_core.evaluation.published import read_published

# All but the preset of room lists, which is of no single benchmark (plugins/scr_glace tests it).
PAPER = [n for n in experiments() if n.startswith("paper/") and n != "paper/glace_rooms"]


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
        assert rows["toy + prior + toy_push", "measured"]["queries"] == "2"
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


def test_a_map_whose_refiner_was_trained_otherwise_is_refused(
    toy_plugin, wayspots, tmp_path, capsys
):
    arguments = ["benchmark", "estimator=toy_other", "dataset=ace", "report=false", "cache=false",
                 f"dataset.root={wayspots}/wayspots_map", f"map_dir={tmp_path / 'map'}",
                 f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    assert main([*arguments, "refiners=[{name: toy_push, train: {size: 8}}]"]) == 0
    # How far it pushes is no matter of the training.
    assert main([*arguments, "refiners=[{name: toy_push, push: 1, train: {size: 8}}]"]) == 0
    capsys.readouterr()
    for refiner in ("{name: toy_push, train: {size: 12}}", "toy_push"):
        assert main([*arguments, f"refiners=[{refiner}]"]) == 2
        assert "holds a map of another training of toy_push" in capsys.readouterr().err


SOLVERS = {"ace": "dsac", "glace": "dsac", "gnn": "single_reference", "gsplat": "pnp",
           "nefes": None, "kfnet": None}  # fmt: skip
# Presets whose published table leaves scenes out.
WITHOUT = {"paper/gsplat_cambridge": {"GreatCourt"}, "paper/nefes_cambridge": {"GreatCourt"}}


def dataset_of(name):
    key = next(b for b in BENCHMARKS if f"_{b}" in name)
    poses = "sfm" if name.endswith("_sfm") else "dslam"
    if name in ("paper/nefes_7scenes_dslam", "paper/gnn_7scenes_dslam"):
        poses = "original"  # of the depth camera, as their networks learned them
    return BENCHMARKS[key], FetchOptions(poses=poses)


def scenes_of(name):
    text = (Path(__file__).parents[2] / "conf" / "experiment" / f"{name}.yaml").read_text()
    scenes = text.partition("      scene: ")[2].strip()
    return scenes.split(",") if scenes else ["aachen"]


@pytest.mark.parametrize("name", PAPER)
def test_paper_sweeps_fit_the_fetched_folders_and_published_tables(name):
    benchmark, options = dataset_of(name)
    scenes = scenes_of(name)
    assert set(scenes) == set(benchmark.scenes) - WITHOUT.get(name, set())
    cfg = compose("benchmark", [f"experiment={name}", "root=R"])
    solver = SOLVERS[name.removeprefix("paper/").partition("_")[0]]
    assert (cfg.get("solver") or {}).get("_target_") == solver
    for scene in scenes:
        cfg.scene = scene
        assert cfg.dataset.root == f"R/{benchmark.folder(scene, options)}"
        if cfg.published_table:
            assert scene in read_published(cfg.published_table).scenes
    if "aachen" not in name:
        assert cfg.published_table.partition("_")[0] in name


@pytest.mark.parametrize("name", PAPER)
def test_paper_sweeps_run_up_to_the_training(name, ace_scene, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    benchmark, options = dataset_of(name)
    scenes = scenes_of(name)[:2]
    (tmp_path / "data").mkdir()
    for scene in scenes:
        (tmp_path / "data" / benchmark.folder(scene, options)).symlink_to(ace_scene)
    code = main(["benchmark", "-m", f"experiment={name}", f"scene={','.join(scenes)}", "root=data",
                 "output_dir=out", "dry_run=true"])  # fmt: skip
    captured = capsys.readouterr()
    # Weights that may not be passed on are asked for; nothing else is missing.
    errors = [line for line in captured.err.splitlines() if "reloc: error" in line]
    assert all("official weights" in line for line in errors)
    assert code == bool(errors)
    assert captured.err.count("12 images to map") + len(errors) == len(scenes)
    assert not list(tmp_path.glob("out/*/map"))


def test_a_dry_run_finds_what_would_fail(toy_plugin, wayspots, capsys):
    arguments = [
        "benchmark",
        "estimator=toy",
        "dataset=ace",
        f"dataset.root={wayspots}/wayspots_map",
        "dry_run=true",
    ]
    assert main(arguments) == 0
    assert "toy + prior + toy_push" in capsys.readouterr().err
    for more, match in (
        (["solver=pnp"], "accepts"),
        (["refiners=[toy_pull]"], "Did you mean 'toy_push'"),
    ):
        assert main([*arguments, *more]) == 2
        assert match in capsys.readouterr().err


def test_a_map_of_other_images_is_neither_measured_nor_replaced(toy_plugin, tmp_path, capsys):
    data = {"width": 64, "height": 48, "train_frames": 5, "test_frames": 2, "seed": 0}

    def benchmark(name, **changes):
        chosen = [f"dataset.{k}={v}" for k, v in {**data, **changes}.items()]
        arguments = ["estimator=toy", "dataset=synthetic", *chosen, "calibration.enabled=false"]
        return main(["benchmark", *arguments, "report=false", f"map_dir={tmp_path}/map",
                     f"output_dir={tmp_path}/{name}"])  # fmt: skip

    assert benchmark("first") == 0
    kept = (tmp_path / "map/map.yaml").stat().st_mtime_ns
    capsys.readouterr()
    for number, changes in enumerate(({"width": 96}, {"seed": 3})):
        assert benchmark(f"other{number}", **changes) == 2
        told = capsys.readouterr().err
        assert "holds a map of another dataset synthetic/train. Choose another map_dir" in told
        assert not (tmp_path / f"other{number}/result.json").exists()
    assert benchmark("again") == 0
    assert "Using the map" in capsys.readouterr().err
    assert (tmp_path / "map/map.yaml").stat().st_mtime_ns == kept


def test_there_are_paper_sweeps_of_every_method():
    assert {p.removeprefix("paper/").partition("_")[0] for p in PAPER} == set(SOLVERS)
    assert {"paper/ace_7scenes_sfm", "paper/glace_cambridge", "paper/glace_aachen"} <= set(PAPER)

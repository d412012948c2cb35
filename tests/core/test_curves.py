"""Runs in TensorBoard, read back with TensorBoard's own reader."""

import sys

import pytest

from reloc_core.cli.main import main

pytest.importorskip("tensorboard")


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(point.step, point.value) for point in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_numbers_of_progress_and_events(tmp_path):
    from omegaconf import OmegaConf

    from reloc_core.interfaces import Runtime
    from reloc_core.runs import RunDirectory

    cfg = OmegaConf.create({"tensorboard": True})
    run = RunDirectory(tmp_path / "out", "train", cfg, [], Runtime())
    run.create()
    with run.progress("Training", 4) as progress:
        progress.advance(2)  # resumed: nothing to show
        progress.advance(1, loss=0.5, phase="warm up")
        progress.advance(1, loss=0.25, rate=float("nan"))
    run.log("iteration", step=7, loss=3.0, sure=True)
    run.log("validated", psnr=20)
    run.log("validated", psnr=21)
    run.result("ok", metrics={"median_translation_m": 0.25, "recall": {"5cm_5deg": 1.0}})
    found = curves(tmp_path / "out/tensorboard")
    results = {tag: found.pop(tag) for tag in list(found) if tag.startswith("result/")}
    assert results["result/metrics.median_translation_m"] == [(0, 0.25)]
    assert results["result/metrics.recall.5cm_5deg"] == [(0, 1.0)]
    assert found["Training/loss"] == [(3, 0.5), (4, 0.25)]
    assert found["iteration/loss"] == [(7, 3.0)]
    assert found["validated/psnr"] == [(0, 20.0), (1, 21.0)]
    assert set(found) == {"Training/loss", "iteration/loss", "validated/psnr", "finished/seconds"}


def test_long_trainings_are_thinned_out(tmp_path):
    from reloc_core.curves import Curves

    writer = Curves(tmp_path)
    for step in range(1, 5001):
        writer.progress("Training", step, 5000, {"loss": 1 / step})
    writer.close()
    (points,) = curves(tmp_path).values()
    assert 900 <= len(points) <= 1100


def test_training_writes_them_if_asked(toy_plugin, ace_scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*command, "map_dir=a", "output_dir=out/a", "tensorboard=true"]) == 0
    assert main([*command, "map_dir=b", "output_dir=out/b"]) == 0
    assert "finished/seconds" in curves(tmp_path / "out/a/tensorboard")
    assert not (tmp_path / "out/b/tensorboard").exists()


def test_queries_options_and_results(toy_map, ace_scene, tmp_path):
    """Of each run its own, also after one that failed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    command = ["evaluate", f"map_dir={toy_map}", "dataset=ace", "report=false", "tensorboard=true"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/failed").write_text("no folder")
    root = f"dataset.root={ace_scene}"
    assert main([*command, root, f"output_dir={tmp_path}/out/failed"]) == 2
    for name in ("a", "b"):
        assert main([*command, root, f"output_dir={tmp_path}/out/{name}", "seed=7"]) == 0
        found = curves(tmp_path / "out" / name / "tensorboard")
        assert [step for step, _ in found["query/score"]] == [0, 1, 2, 3]
        assert [value for _, value in found["query/localized"]] == [1.0] * 4
        assert found["result/metrics.localized"] == [(0, 4.0)]
    events = EventAccumulator(str(tmp_path / "out/a/tensorboard")).Reload()
    (content,) = events.PluginTagToContent("hparams").values()
    options = HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["seed"].number_value == 7
    assert options["dataset.root"].string_value == str(ace_scene)


def test_without_tensorboard_it_says_how_to_get_it(
    toy_plugin, ace_scene, tmp_path, monkeypatch, capsys
):
    for name in ("tensorboard", "tensorboard.summary.writer.event_file_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    code = main(["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}",
                 f"map_dir={tmp_path}/a", f"output_dir={tmp_path}/out", "tensorboard=true"])  # fmt: skip
    assert code == 2
    assert "pip install 'reloc[tensorboard]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

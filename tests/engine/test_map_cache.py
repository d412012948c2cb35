"""What was fitted once is not fitted again, and never taken for anything else."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml

import reloc_core
from reloc_core import Pipeline, map_cache
from reloc_core.calibration import CalibrationConfig
from reloc_core.cli.main import main
from reloc_core.config import build
from reloc_core.datasets.subset import Subset
from reloc_core.map_cache import ENTRY_FILE, MapCache
from reloc_core.maps import MapInfo, MapWriter
from reloc_core.registry import default_registry
from reloc_core.runs import Reporter


@pytest.fixture
def data(toy_plugin, ace_scene):
    return build({"_target_": "ace", "root": str(ace_scene), "split": "train"}, "dataset")


@pytest.fixture
def fits(toy_plugin, monkeypatch):
    """Sizes of the thumbnails of every fit that really happened."""
    import toy

    fit, calls = toy.ToyEstimator.fit, []

    def spy(self, dataset, run):
        calls.append(self.config.size)
        run.map.details["said"] = "by fit"
        fit(self, dataset, run)

    monkeypatch.setattr(toy.ToyEstimator, "fit", spy)
    return calls


def train(data, folder, estimator="toy", **options):
    quiet = Reporter(quiet=True)
    return reloc_core.train(data, folder, estimator, reporter=quiet, threads=1, **options)


def test_a_map_from_the_cache_is_the_map_that_fit_makes(data, fits, tmp_path):
    cache = MapCache(tmp_path / "cache")
    push = {"name": "toy_push", "push": 0.25, "train": {"size": 8}}
    plain, first, second = (
        train(data, tmp_path / name, "toy_other", refiners=[push], cache=c)
        for name, c in (("plain", None), ("first", cache), ("second", cache))
    )
    assert fits == [16, 8, 16, 8]
    kinds = {entry.identity["component"] for entry in cache.entries()}
    assert kinds == {"toy_other", "toy"}
    for name in ("images", "frames", "refiner_toy_push.images", "calibration"):
        expected = plain.tensors(name, "np")
        for other in (first, second):
            found = other.tensors(name, "np")
            assert found[0].keys() == expected[0].keys()
            for key, value in expected[0].items():
                np.testing.assert_array_equal(found[0][key], value)
    described = [
        yaml.safe_load((tmp_path / m / "map.yaml").read_text()) for m in ("plain", "second")
    ]
    assert described[1] == described[0]
    assert described[1]["details"]["said"] == "by fit"
    poses = [Pipeline.from_map(m).localize(data[3]).world_from_cam for m in (plain, second)]
    np.testing.assert_array_equal(*poses)


@pytest.mark.parametrize(
    "change", ["option", "seed", "image", "held out", "code", "another estimator"]
)
def test_whatever_decides_the_outcome_makes_another_entry(
    change, data, fits, tmp_path, monkeypatch
):
    cache = MapCache(tmp_path / "cache")
    train(data, tmp_path / "first", cache=cache)
    options = {"estimator": "toy"}
    if change == "option":
        options["estimator"] = {"name": "toy", "size": 12}
    elif change == "another estimator":
        options["estimator"] = "toy_other"
    elif change == "seed":
        options["seed"] = 7
    elif change == "image":
        data = Subset(data, range(len(data) - 1))
    elif change == "held out":
        options["calibration"] = CalibrationConfig(least_images=5, fraction=0.2)
    else:
        monkeypatch.setattr(map_cache, "_fingerprint", lambda package: f"edited {package}")
    train(data, tmp_path / "second", cache=cache, **options)
    assert len(fits) == 2
    assert len(cache.entries()) == 2


def test_the_code_of_the_plugin_is_part_of_the_key(tmp_path, monkeypatch, toy_plugin):
    component = default_registry().get("estimator", "toy")
    package = tmp_path / "somewhere"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        (package / "__init__.py").write_text(text)
        map_cache._fingerprint.cache_clear()
        found.append(map_cache.code_fingerprint(replace(component, target="somewhere.sub:Class")))
    assert found[0] == found[2] != found[1]


def test_files_that_options_name_are_part_of_the_key(tmp_path):
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "w.pt").write_bytes(b"one")
    (tmp_path / "folder/inner/x").write_bytes(b"x")
    config = {
        "a": str(tmp_path / "w.pt"),
        "b": [{"c": str(tmp_path / "folder")}],
        "d": "none",
        "e": 3,
    }
    first = map_cache.files_fingerprint(config)
    assert set(first) == {config["a"], config["b"][0]["c"]}
    assert map_cache.files_fingerprint(config) == first
    (tmp_path / "w.pt").write_bytes(b"two")
    second = map_cache.files_fingerprint(config)
    assert second != first
    (tmp_path / "folder/inner/x").unlink()
    assert map_cache.files_fingerprint(config) != second
    (tmp_path / "w.pt").unlink()
    assert set(map_cache.files_fingerprint(config)) == {config["b"][0]["c"]}
    assert map_cache.files_fingerprint({"a": "x" * 5000, "b": "nul\0", "c": ""}) == {}


def test_damaged_entries_are_fitted_anew(data, fits, tmp_path):
    cache = MapCache(tmp_path / "cache")
    train(data, tmp_path / "first", cache=cache)
    (entry,) = cache.entries()
    file = cache.root / entry.key / "images.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    train(data, tmp_path / "second", cache=cache)
    assert len(fits) == 2
    (cache.root / entry.key / ENTRY_FILE).write_text("{")
    train(data, tmp_path / "third", cache=cache)
    assert len(fits) == 3
    described = json.loads((cache.root / entry.key / ENTRY_FILE).read_text())
    described["files"]["../outside.safetensors"] = described["files"]["images.safetensors"]
    (cache.root / entry.key / ENTRY_FILE).write_text(json.dumps(described))
    train(data, tmp_path / "fourth", cache=cache)
    assert len(fits) == 4


def test_two_at_once_fit_once(toy_plugin, tmp_path):
    component = default_registry().get("estimator", "toy")
    cache, calls, notes = MapCache(tmp_path / "cache"), [], []

    def job(number):
        info = MapInfo("estimator", "toy", "toy", "1", {}, {})
        writer = MapWriter(tmp_path / f"map{number}", info)

        def fit():
            calls.append(number)
            time.sleep(0.8)
            writer.save("images", {"x": np.arange(4)}, {"from": number})

        cache.fit(component, {"config": {}}, writer, fit, notes.append)
        made.append(writer.finish().tensors("images", "np"))

    made = []
    threads = [threading.Thread(target=job, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert [metadata["from"] for _, metadata in made] == calls * 3
    assert any("Waiting for" in note for note in notes)


def test_it_is_bounded(data, tmp_path, fits):
    cache = MapCache(tmp_path / "cache")
    for size in (8, 9):
        train(data, tmp_path / f"map{size}", {"name": "toy", "size": size}, cache=cache)
    room = sum(e.bytes for e in cache.entries()) * 1.3e-9
    small = MapCache(cache.root, limit_gb=room)
    train(data, tmp_path / "again", {"name": "toy", "size": 8}, cache=small)  # used last
    train(data, tmp_path / "third", {"name": "toy", "size": 10}, cache=small)
    kept = [entry.identity["config"]["size"] for entry in small.entries()]
    assert kept == [10, 8]


def test_an_interrupted_fit_keeps_nothing(data, tmp_path):
    cache = MapCache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "map", {"name": "toy", "stop_at": 3}, cache=cache)
    assert cache.entries() == []
    assert not list(cache.root.iterdir())


def test_a_sweep_over_refiners_fits_once(ace_scene, fits, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RELOC_CACHE", str(tmp_path / "kept"))
    arguments = ["benchmark", "-m", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}",
                 "refiners=[],[{name:toy_push,push:0.5}]", "report=false"]  # fmt: skip
    assert main([*arguments, f"output_dir={tmp_path}/sweep"]) == 0, capsys.readouterr().err
    assert fits == [16]
    assert main([*arguments, f"output_dir={tmp_path}/anew", "cache=false"]) == 0
    assert fits == [16] * 3
    for job in "01":
        one, other = (
            json.loads((tmp_path / name / job / "result.json").read_text())["metrics"]
            for name in ("sweep", "anew")
        )
        assert one == other
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    listed = capsys.readouterr().err
    (entry,) = MapCache().entries()
    assert entry.key in listed
    assert "toy" in listed
    assert main(["cache", "clear", "0123"]) == 2
    assert "There is no '0123'" in capsys.readouterr().err
    assert main(["cache", "clear", entry.key]) == 0
    assert "Removed 1 of 1" in capsys.readouterr().err
    assert MapCache().entries() == []

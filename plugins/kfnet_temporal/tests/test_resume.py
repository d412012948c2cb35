"""A training that is killed at any moment ends as if nothing had happened."""

import pytest
import torch
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.estimator import TemporalEstimator

from reloc_core.maps import MapWriter
from reloc_core.training import checkpoint


def config():
    result = TemporalConfig()
    result.process.resolution = 96
    result.process.iterations, result.joint.iterations = 6, 4
    result.joint.frames, result.joint.stretches, result.joint.window = 12, 2, 4
    result.measurement.options = {
        "resolution": 96, "keyframes": 8, "retrieve": 3, "train_frames": 6, "iterations": 10, "exclusion": 1,
    }  # fmt: skip
    return result


def train(path, data, start_run):
    run = start_run(path, data)
    TemporalEstimator(config()).fit(data, run)
    return run.map.finish()


class Killed(BaseException):
    """What nothing catches, as a SIGKILL."""


@pytest.mark.parametrize(("stage", "done"), [("", ["measurement"]), ("flow", []), ("joint", [])])
def test_killed_and_resumed(film, start_run, tmp_path, monkeypatch, stage, done):
    """Nothing runs after the checkpoint was written that the second training could profit from."""
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    data = film(24)
    whole = train(tmp_path / "whole", data, start_run)
    expected = whole.tensors("filter")[0]
    save = MapWriter.save_checkpoint

    def save_and_die(self, tensors, metadata):
        save(self, tensors, metadata)
        reached = bool(stage) and metadata.get("stage") == stage
        if reached or (done and set(done) <= set(metadata.get("done", []))):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MapWriter, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            train(tmp_path / "cut", data, start_run)
    assert not (tmp_path / "cut").exists()
    measured = (tmp_path / ".cut.partial" / "measurement.memory.safetensors").stat().st_mtime_ns
    found = train(tmp_path / "cut", data, start_run)
    # The measurement was not trained again.
    assert (tmp_path / "cut" / "measurement.memory.safetensors").stat().st_mtime_ns == measured
    tensors = found.tensors("filter")[0]
    assert tensors.keys() == expected.keys()
    assert whole.info.details["measurement"]["keyframes"] == 8
    assert found.info.details["measurement"] == whole.info.details["measurement"]
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value)

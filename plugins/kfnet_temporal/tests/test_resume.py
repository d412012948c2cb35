"""A training that is killed at any moment ends as if nothing had happened."""

import os
import signal
import time

import pytest
import torch
from kfnet_temporal import resume
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.estimator import TemporalEstimator

from reloc_core.maps import load_tensors


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


def stage_of(path):
    try:
        return load_tensors(path)[1]
    except Exception:
        return {"stage": "", "done": []}


@pytest.mark.parametrize(("stage", "done"), [("", ["measurement"]), ("flow", []), ("joint", [])])
def test_killed_and_resumed(film, start_run, tmp_path, monkeypatch, stage, done):
    monkeypatch.setattr(resume, "_SECONDS", 0.0)
    data = film(24)
    expected = train(tmp_path / "whole", data, start_run).tensors("filter")[0]
    child = os.fork()
    if child == 0:
        train(tmp_path / "cut", data, start_run)
        os._exit(0)
    checkpoint = tmp_path / ".cut.partial" / "checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
        if checkpoint.is_file():
            found = stage_of(checkpoint)
            if (stage and found["stage"] == stage) or (done and set(done) <= set(found["done"])):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
        time.sleep(0.005)
    assert not (tmp_path / "cut").exists()
    measured = (tmp_path / ".cut.partial" / "measurement.memory.safetensors").stat().st_mtime_ns
    found = train(tmp_path / "cut", data, start_run)
    # The measurement was not trained again.
    assert (tmp_path / "cut" / "measurement.memory.safetensors").stat().st_mtime_ns == measured
    tensors = found.tensors("filter")[0]
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value)

"""The sweep presets: every job composes and fits, and a small one runs."""

import math
import os
from itertools import product
from pathlib import Path

import pytest
import yaml
from sweep_tools import reloc

from reloc_core.composition import compose
from reloc_core.config import config_directory, experiments, typed_config
from reloc_core.evaluation.sweeps import read_sweep
from reloc_core.pipeline import check_fit
from reloc_core.registry import default_registry

PRESETS = sorted((config_directory() / "experiment/sweep").glob("*.yaml"))
JOBS = {"comparison": 3 * 3 * 2 * 3, "methods": 2 * 2 * 2 * 3, "published": 5}


def installed(*estimators):
    known = [c.name for c in default_registry().components("estimator")]
    return all(name in known or name in experiments() for name in estimators)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_job_composes_and_fits(path: Path):
    params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    if "(" in "".join(map(str, params.values())):  # an optimiser's choices
        assert installed("landmarks")
        compose("benchmark", [f"experiment=sweep/{path.stem}", "estimator.keypoints.query=300"])
        return
    options = [[f"{key}={v}" for v in str(value).split(",")] for key, value in params.items()]
    assert math.prod(map(len, options)) == JOBS[path.stem]
    if not installed(*(o.partition("=")[2] for o in options[0])):
        pytest.skip("not all of its estimators are installed")
    registry = default_registry()
    # One value of everything else: the room and the seed change nothing about what fits.
    for choice in product(*options[:2]):
        cfg = compose("benchmark", [f"experiment=sweep/{path.stem}", *choice])
        chosen = {
            i: registry.get(i, cfg[i]._target_) for i in ("estimator", "solver") if cfg.get(i)
        }
        if "solver" in chosen:  # else what the method recommends
            check_fit(chosen["estimator"], chosen["solver"], registry)
        if "experiment" in choice[0]:
            method = choice[0].partition("=")[2]
            assert (
                cfg.estimator
                == compose("benchmark", [f"experiment={method}", "dataset=synthetic"]).estimator
            )
        for interface, component in chosen.items():
            typed_config(component, cfg[interface])


def test_options_on_the_command_line_replace_those_of_a_preset(tmp_path):
    if not installed("kfnet_memory"):
        pytest.skip("needs the estimator kfnet_memory")
    path = tmp_path / "sweep"
    child = reloc(
        {**os.environ, "OMP_NUM_THREADS": "1"}, "benchmark", "-m", "experiment=sweep/comparison",
        "estimator=kfnet_memory", "solver=pnp,dsac_256", "dataset.seed=0", "seed=1,2",
        "dataset.train_frames=12", "dataset.test_frames=2", "dataset.width=160",
        "dataset.height=120", "estimator.iterations=2", "estimator.keyframes=8",
        "estimator.resolution=120", "threads=1", f"output_dir={path}",
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    sweep = read_sweep(path)
    assert [job.status for job in sweep.jobs] == ["ok"] * 4
    assert sweep.varied == ["solver", "seed"]
    table = reloc(dict(os.environ), "sweep", "table", str(path), "format=csv").stdout.splitlines()
    assert [line.split(",")[:2] for line in table[1:]] == [["pnp", "2"], ["dsac_256", "2"]]

"""`hydra/launcher=gpus`: every job its own device, leased by lock files; no GPU is needed to test it."""

import json
import os
import subprocess
import sys

import pytest
from sweep_tools import reloc

from reloc_core.cli.leases import Leases, visible_devices
from reloc_core.errors import ConfigError, RelocError
from reloc_core.evaluation.sweeps import read_sweep


def test_a_device_is_leased_once(tmp_path):
    ours, theirs = Leases(["0", "1"], folder=tmp_path), Leases(["0", "1"], folder=tmp_path)
    first, second = ours.acquire(), theirs.acquire()
    assert {first.device, second.device} == {"0", "1"}
    assert ours.acquire() is None
    first.release()
    assert theirs.acquire().device == first.device


def test_devices_are_filled_evenly(tmp_path):
    leases = Leases(["0", "1"], per_device=2, folder=tmp_path)
    assert [leases.acquire().device for _ in range(4)] == ["0", "1", "0", "1"]
    assert leases.acquire() is None


def test_a_killed_holder_leaves_no_lease(tmp_path):
    script = (
        "import sys, time; from reloc_core.cli.leases import Leases;"
        f"lease = Leases(['0'], folder={str(tmp_path)!r}).acquire(); print(lease.device, flush=True);"
        "time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "0\n"
    leases = Leases(["0"], folder=tmp_path)
    assert leases.acquire() is None
    child.kill()
    child.wait()
    child.stdout.close()
    assert leases.acquire().device == "0"


def test_a_child_holds_the_lease_of_its_parent(tmp_path):
    leases = Leases(["0"], folder=tmp_path)
    lease = leases.acquire()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lease.descriptor])
    lease.release()
    assert leases.acquire() is None
    child.communicate()
    assert leases.acquire() is not None


def test_which_devices(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert visible_devices(None) == ["2", "3"]
    assert visible_devices([5]) == ["5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: B (UUID: y)'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_devices(None) == ["0", "1"]
    listing.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(ConfigError, match="joblib"):
        visible_devices(None)


@pytest.mark.parametrize(
    ("devices", "options", "message"),
    [
        ([], {}, "different devices"),
        (["0", "0"], {}, "different devices"),
        (["../0"], {}, "is no GPU"),
        (["0"], {"per_device": 0}, "per_device"),
    ],
)
def test_bad_options(devices, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Leases(devices, folder=tmp_path, **options)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RelocError, match="locks=DIR"):
        Leases(["0"], folder=tmp_path / "file" / "locks")


def test_jobs_see_their_device_and_failures_are_recorded(environment, small, tmp_path):
    """Four jobs on two made-up devices; two of them fail, and the sweep's exit code says so."""
    spy = tmp_path / "spy"
    spy.mkdir()
    # Imported by every Python process of the sweep: what does it see?
    (spy / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if sys.argv and 'reloc_core.cli.job' in ' '.join(sys.orig_argv):\n"
        f"    open(f'{spy}/{{os.getpid()}}', 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    variables = {**environment, "PYTHONPATH": f"{spy}:{environment['PYTHONPATH']}"}
    path = tmp_path / "a sweep"
    child = reloc(variables, "benchmark", "-m", "hydra/launcher=gpus", "hydra.launcher.devices=[6,7]",
                  f"hydra.launcher.locks={tmp_path}/locks", "estimator=toy", *small, "seed=1,2",
                  "solver=prior,pnp", f"output_dir='{path}'")  # fmt: skip
    assert child.returncode == 1, child.stderr
    assert "on GPU 6" in child.stdout
    sweep = read_sweep(path)
    assert [job.status for job in sweep.jobs] == ["ok", "failed", "ok", "failed"]
    assert sweep.varied == ["seed", "solver"]
    assert [job.overrides["seed"] for job in sweep.jobs] == ["1", "1", "2", "2"]
    assert "Solvers that fit" in json.loads((path / "1/result.json").read_text())["error"]
    assert (path / "0/job.log").stat().st_size > 0
    seen = [p.read_text() for p in spy.iterdir() if p.name.isdigit()]
    assert len(seen) == 4
    assert set(seen) == {"6", "7"}
    assert "hydra/launcher=gpus" in sweep.record.hydra
    again = reloc(variables, "sweep", "resume", str(path))
    assert "2 of 4 jobs are finished, 2 to do" in again.stdout
    assert again.returncode == 1


def test_without_a_gpu_it_says_what_to_do(environment, small, tmp_path):
    variables = {**environment, "CUDA_VISIBLE_DEVICES": ""}
    child = reloc(variables, "benchmark", "-m", "hydra/launcher=gpus", "estimator=toy", *small,
                  f"output_dir={tmp_path}/s")  # fmt: skip
    assert child.returncode == 2
    assert "hydra/launcher=joblib" in child.stderr
    assert "Traceback" not in child.stderr

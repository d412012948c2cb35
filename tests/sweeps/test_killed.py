"""Processes that are killed: what they started ends with them, and what they left can be resumed."""

import os
import signal
import subprocess
import sys
import time

import pytest
from sweep_tools import written_scene

from reloc_core.cli.main import main
from reloc_core.evaluation.sweeps import read_sweep

BEATS = """
import os, time
from reloc_core import hookimpl

def beat():
    while True:
        with open(os.environ["BEATS"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(0.05)

if os.environ.get("BEAT_AT") == "import":
    beat()

@hookimpl
def reloc_run_started(verb, config):
    if str(config["seed"]) in os.environ["BEAT_AT"]:
        beat()
"""


@pytest.fixture
def beating(environment, tmp_path):
    """Start `reloc` with a plugin that writes its process number for ever: beating(WHEN, ...)."""
    site = tmp_path / "site"
    info = site / "beat_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beat-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[reloc.plugins.v1]\nbeat = beat\n")
    (site / "beat.py").write_text(BEATS)
    path = f"{site}:{environment['PYTHONPATH']}"
    started = []

    def start(when, *arguments):
        variables = {**environment, "PYTHONPATH": path, "BEATS": str(tmp_path / "beats"), "BEAT_AT": when}  # fmt: skip
        child = subprocess.Popen([sys.executable, "-m", "reloc_core.cli", *arguments], env=variables,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
    for pid in beats(tmp_path / "beats"):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def beats(path):
    """The processes that have written."""
    return {int(line) for line in path.read_text().split()} if path.exists() else set()


def alive(pid):
    """Whether it runs and is of these tests: numbers are used again."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"BEATS=" in file.read()
    except OSError:
        return False


def wait_for(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def killed(child, path, count):
    """Kill it once `count` processes write; all of them must end soon."""
    wait_for(lambda: len(beats(path)) >= count or child.poll() is not None)
    assert child.poll() is None
    writers = beats(path)
    child.kill()
    child.wait()
    # Polls twice a second; the rest is for a busy machine.
    wait_for(lambda: not any(alive(pid) for pid in writers), 20)
    size = path.stat().st_size
    time.sleep(0.3)
    assert path.stat().st_size == size


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at /proc")
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_killed_sweep_leaves_nobody_writing_and_is_resumed(
    beating, launcher, toy_plugin, tmp_path, capsys
):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder, beaten = tmp_path / "s", "2" if launcher == "basic" else "1 2"
    more = [] if launcher == "basic" else ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    arguments = ["estimator=toy", "dataset=ace", f"dataset.root={written_scene(tmp_path / 'noise')}",
                 "calibration.enabled=false", "threads=1", "report=false", "seed=1,2", "estimator.size=4"]  # fmt: skip
    command = ["benchmark", "-m", *more, *arguments, f"output_dir={folder}"]
    child = beating(beaten, *command)
    wait_for(lambda: beats(tmp_path / "beats"))
    for other in (command, ["sweep", "resume", str(folder)]):
        assert main(other) == 2
        expected = f"{folder} is being run by process {child.pid} on this machine"
        assert expected in capsys.readouterr().err
    killed(child, tmp_path / "beats", len(beaten.split()))
    done = [job.number for job in read_sweep(folder).jobs if job.finished]
    assert done == ([0] if launcher == "basic" else [])
    assert main(["sweep", "resume", str(folder), "hydra/launcher=basic"]) == 0
    assert all(job.finished for job in read_sweep(folder).jobs)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child")
def test_what_the_doctor_examines_ends_with_it(beating, tmp_path):
    child = beating("import", "plugin", "doctor", "beat")
    wait_for(lambda: beats(tmp_path / "beats"))
    assert child.pid not in beats(tmp_path / "beats")
    killed(child, tmp_path / "beats", 1)

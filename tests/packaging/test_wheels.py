"""The wheels install into an empty environment and localize there."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted((ROOT / "plugins").iterdir())


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.real
def test_wheels_run_the_demo_in_an_empty_environment(tmp_path):
    wheels = tmp_path / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT, *PLUGINS)
    names = {p.name.split("-")[0] for p in wheels.glob("*.whl")}
    assert "reloc" in names
    assert len(names) == len(PLUGINS) + 1
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty/bin/python"
    constraints = ["-c", ROOT / "constraints.txt"]
    run(python, "-m", "pip", "install", "-q", *constraints, *wheels.glob("*.whl"))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    reloc = tmp_path / "empty/bin/reloc"
    listed = run(reloc, "plugin", "list", cwd=tmp_path, env=environment)
    assert "FAILED" not in listed
    assert all(plugin.name in listed for plugin in PLUGINS)
    run(reloc, "demo", "threads=1", "output_dir=out", cwd=tmp_path, env=environment)
    assert (tmp_path / "out/report.html").is_file()

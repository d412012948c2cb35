"""`reloc plugin new` writes plugins that work as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reloc_core.cli.main import main
from reloc_core.cli.plugin_new import write_plugin
from reloc_core.interfaces import INTERFACES

# What is known beforehand of the results that `reloc plugin check` shows beside those of estimators.
ON_THE_ROOM = {
    "solver": r"Correspondences with noise, 30 % of it wrong: 20 of 20, median error 0\.\d+ cm",
    "refiner": r"before: 20 of 20, median error 4 cm, 1\.5°\n +after:  20 of 20, median error 0\.",
    "dataset": r"poses:  40 of 40, median error 0 cm, \S+e-1\d°\n +pixels: 0 of 255 off\n +depth:  none",
}


@pytest.mark.parametrize(
    "kind",
    # Its suite trains and refines for most of a minute; other tests run it on other refiners.
    [pytest.param(k, marks=[pytest.mark.long] * (k == "refiner")) for k in sorted(INTERFACES)],
)
def test_a_new_plugin_passes_its_own_tests(kind, environment, tmp_path):
    folder = write_plugin("my_plugin", kind, tmp_path)
    environment.install_folder(folder)
    listed = environment.reloc("plugin", "list")
    assert f"{kind:10} my_plugin" in listed.stdout, listed.stdout + listed.stderr
    tests = environment.run("pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=folder)
    assert tests.returncode == 0, tests.stdout
    assert " passed" in tests.stdout
    if kind in ON_THE_ROOM:
        suite = str(folder / "tests/test_conformance.py")
        shown = environment.run("reloc_core.testing.room_result", kind, "my_plugin", suite)
        assert shown.returncode == 0, shown.stderr
        assert re.search(ON_THE_ROOM[kind], shown.stdout), shown.stdout


@pytest.mark.parametrize("kind", sorted(INTERFACES))
def test_a_new_plugin_is_tidy(kind, tmp_path):
    folder = write_plugin("my_plugin", kind, tmp_path)
    text = "".join(p.read_text() for p in folder.rglob("*") if p.is_file())
    assert "${name}" not in text
    assert "${Class}" not in text
    assert (folder / ".github/workflows/test.yml").read_text().count("${{ matrix.python }}") == 1
    pytest.importorskip("ruff")
    for action in (["check", "--select", "E,F,W,UP,B"], ["format", "--check"]):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *action, "--isolated", "--line-length", "100", str(folder)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert ruff.returncode == 0, ruff.stdout


def test_a_second_kind_goes_into_a_plugin_that_exists(environment, tmp_path):
    folder = write_plugin("my_plugin", "estimator", tmp_path)
    assert main(["plugin", "new", "my_polish", "--kind", "refiner", "--into", str(folder)]) == 0
    environment.install_folder(folder)
    listed = environment.reloc("plugin", "list")
    for line in ("estimator  my_plugin", "refiner    my_polish"):
        assert line in listed.stdout, listed.stdout + listed.stderr
    # Other tests run the suites, which train for most of a minute.
    quick = ("--ignore-glob", "*conformance.py")
    tests = environment.run("pytest", "-q", "-p", "no:cacheprovider", *quick, "tests", cwd=folder)
    assert tests.returncode == 0, tests.stdout
    assert {p.name for p in (folder / "tests").iterdir() if p.suffix} == {
        "test_conformance.py", "test_estimator.py",
        "test_my_polish_conformance.py", "test_my_polish_refiner.py",
    }  # fmt: skip


def test_a_second_kind_that_cannot_go_there_changes_nothing(tmp_path, capsys):
    folder = write_plugin("my_plugin", "estimator", tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/pyproject.toml").write_text("[project]\nname = 'x'\n")
    (folder / "my_plugin/taken").mkdir()
    for name, into, message in (
        ("second", tmp_path / "empty", "cannot be read"),
        ("second", tmp_path / "other", "offers no plugin"),
        ("taken", folder, "exists already"),
        ("pnp", folder, "already, from plugin"),
    ):
        kind = "solver" if name == "pnp" else "refiner"
        assert main(["plugin", "new", name, "--kind", kind, "--into", str(into)]) == 2
        assert message in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_templates_are_packaged_whole():
    """Excluded are folders at the top; `tests` without a slash would leave out those of templates."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    excluded = re.search(r"^sdist\.exclude = \[(.*)\]$", text, re.M).group(1)
    assert all(pattern.startswith('"/') for pattern in excluded.split(", "))


def test_check_runs_everything(environment, tmp_path):
    folder = write_plugin("my_plugin", "solver", tmp_path)
    environment.install_folder(folder)
    child = environment.reloc("plugin", "check", "my_plugin")
    assert child.returncode == 0, child.stdout + child.stderr
    assert "my_plugin on the embedded room:\n  Correspondences" in child.stdout
    assert "my_plugin: all checks passed" in child.stdout
    # A defect in the method is found.
    solver = folder / "my_plugin" / "solver.py"
    solver.write_text(solver.read_text().replace("- center, plane[chosen]", ", plane[chosen]"))
    child = environment.reloc("plugin", "check", "my_plugin", "--quick")
    assert child.returncode == 2
    assert "CHECKS FAILED" in child.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: name"),
        (["My-Plugin"], "lower case letters"),
        (["class"], "cannot be a plugin's name"),
        (["pnp", "--kind", "solver"], "already, from plugin 'reloc_core'"),
        (["numpy"], "Python package 'numpy' already"),
        (["x", "--kind", "estimate"], "invalid choice"),
        (["there"], "exists already"),
        (["x", "--directory", "file/below"], "file is in the way"),
    ],
)
def test_bad_names_and_places(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    assert main(["plugin", "new", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"there", "file"}
    assert not any((tmp_path / "there").iterdir())


def test_checking_what_is_not_installed(capsys):
    assert main(["plugin", "check", "nothing_here"]) == 2
    assert "pip install -e nothing_here" in capsys.readouterr().err

"""Broken plugins of every kind, installed together: none disturbs the others or reloc."""

import pytest

GOOD = """
    from dataclasses import dataclass
    from reloc_core import Component, hookimpl

    @dataclass
    class Config:
        size: int = 1

    @hookimpl
    def reloc_register_components(registry):
        registry.add(
            Component(
                interface="solver", name="{name}", target="{target}", config=Config,
                accepts=("PosePrior",), summary="a solver",
            )
        )
"""
SOLVER = """
    from reloc_core import Localization, PosePrior, Solver

    class Thing(Solver):
        accepts = (PosePrior,)

        def __init__(self, config):
            pass

        def solve(self, evidence, camera, runtime):
            return Localization.failure("never")
"""
ABORTS = "import os\nos.abort()\n"
SEGFAULTS = "import ctypes\nctypes.string_at(0)\n"


def good(name, target):
    return GOOD.format(name=name, target=target)


@pytest.fixture(scope="module")
def zoo(zoo_folder):
    install = zoo_folder.install
    install("fine", good("fine", "fine_solver:Thing"), fine_solver=SOLVER)
    install("chatty", "print('hello from chatty')\n" + SOLVER.replace("\n    ", "\n"))
    install("missing", "import no_such_module_anywhere\n")
    install("quitting", "import sys\nsys.exit('no licence found')\n")
    install("raising", """
        from reloc_core import hookimpl

        @hookimpl
        def reloc_register_components(registry):
            raise RuntimeError("no luck today")
    """)  # fmt: skip
    install("misspelt", """
        from reloc_core import hookimpl

        @hookimpl
        def reloc_register_component(registry):
            pass
    """)  # fmt: skip
    install("old", "x = 1\n", group="reloc.plugins.v0")
    install("slow", "import time\ntime.sleep(2.2)\n")
    install("heavy", "import cv2\n")
    install("aborting", good("aborting", "aborting_solver:Thing"), aborting_solver=ABORTS)
    install("segfaulting", good("segfaulting", "segfaulting_c:Thing"), segfaulting_c=SEGFAULTS)
    install("taking", good("fine", "fine_solver:Thing"))
    install("impostor", good("impostor", "fine_solver:Thing"), entry="fine")
    install("lying", good("lying", "lying_solver:Thing"),
            lying_solver=SOLVER.replace("PosePrior", "Correspondences"))  # fmt: skip
    install("ailing", good("ailing", "fine_solver:Thing") + """
    @hookimpl
    def reloc_health_checks():
        return {"weights": "the weights file is missing"}
    """)  # fmt: skip
    return zoo_folder


def test_list_names_every_cause(zoo):
    child = zoo.reloc("plugin", "list")
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    for name, cause in (
        ("missing", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("quitting", "SystemExit: no licence found"),
        ("raising", "RuntimeError: no luck today"),
        ("misspelt", "Did you mean 'reloc_register_components'?"),
        ("old", "targets reloc.plugins.v0, this is API version 1"),
        ("taking", "solver 'fine' is already from 'fine'"),
        ("fine@impostor", "another plugin is already called 'fine'"),
    ):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert "FAILED" in line
        assert cause in line
    assert any(line.startswith("  slow: takes 2.") for line in lines)
    components = {line.split()[1] for line in lines if line.startswith("  solver ")}
    assert {"fine", "aborting", "segfaulting", "pnp", "dsac", "prior"} <= components
    assert child.stdout.count("solver     fine ") == 1


def test_the_rest_of_reloc_works(zoo):
    child = zoo.reloc("config", "check", "demo", "solver=fine")
    assert child.returncode == 0, child.stderr
    assert "_target_: fine" in child.stdout


def test_asking_for_a_broken_plugin_says_why(zoo):
    child = zoo.reloc("config", "check", "demo", "solver=missing")
    assert child.returncode == 2
    assert "no_such_module_anywhere" in child.stderr
    assert "reloc plugin doctor missing" in child.stderr
    assert "Traceback" not in child.stderr


def test_doctor_finds_them_all(zoo):
    child = zoo.reloc("plugin", "doctor")
    assert child.returncode == 2
    found = {}
    for line in child.stdout.splitlines():
        if not line.startswith(" "):
            name = line.partition(":")[0]
            found[name] = [line]
        else:
            found[name].append(line)
    for name in ("reloc_core", "fine", "chatty"):
        assert ": ok" in found[name][0]
    for name, cause in (
        ("missing", "No module named"),
        ("quitting", "no licence found"),
        ("raising", "no luck today"),
        ("misspelt", "Did you mean"),
        ("old", "API version"),
        ("slow", "takes 2."),
        ("heavy", "imports cv2 when it registers"),
        ("aborting", "SIGABRT"),
        ("segfaulting", "SIGSEGV"),
        ("taking", "already from 'fine'"),
        ("fine@impostor", "already called 'fine'"),
        ("lying", "says it accepts"),
        ("ailing", "weights file is missing"),
    ):
        assert "FAILED" in found[name][0], name
        assert cause in "\n".join(found[name][1:]), name
    # A crash is located.
    assert "aborting_solver.py" in "".join(found["aborting"])


def test_a_plugin_that_crashes_on_import_can_be_found_and_left_out(environment):
    environment.install("deadly", SEGFAULTS)
    assert environment.reloc("plugin", "list").returncode != 0
    child = environment.reloc("plugin", "doctor", "deadly", "reloc_core")
    assert child.returncode == 2
    assert "SIGSEGV" in child.stdout
    assert "deadly.py" in child.stdout
    assert "RELOC_DISABLE_PLUGINS=deadly" in child.stdout
    assert "reloc_core: ok" in child.stdout
    child = environment.reloc("plugin", "list", RELOC_DISABLE_PLUGINS="deadly")
    assert child.returncode == 0
    assert "deadly" not in child.stdout

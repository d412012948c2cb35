import json
import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from reloc_core import Component, ConfigError, PluginError, Registry, hookimpl
from reloc_core.hooks import ENTRY_POINT_GROUP
from reloc_core.pipeline import check_fit, default_solver


@dataclass
class Config:
    size: int = 1


def component(name, **values):
    defaults = {
        "interface": "solver", "target": "somewhere:Thing", "config": Config, "summary": "a thing",
        "accepts": ("Correspondences",),
    }  # fmt: skip
    return Component(name=name, **{**defaults, **values})


def plugin(name, body):
    """An importable module with the given attributes, and its entry point."""
    module = types.ModuleType(name)
    for key, value in body.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return EntryPoint(name, name, ENTRY_POINT_GROUP)


def registering(*components):
    @hookimpl
    def reloc_register_components(registry):
        for item in components:
            registry.add(item)

    return {"reloc_register_components": reloc_register_components}


def unmarked(registry):
    """A hook without its decorator."""


@hookimpl
def reloc_register_componets(registry):
    """A misspelt hook."""


def test_broken_plugins_do_not_disturb_the_others():
    points = [
        plugin("good_plugin", registering(component("good"))),
        EntryPoint("missing_plugin", "no_such_module_anywhere", ENTRY_POINT_GROUP),
        EntryPoint("future_plugin", "sys", "reloc.plugins.v99"),
        plugin("typo_plugin", {"reloc_register_componets": reloc_register_componets}),
        plugin("unmarked_plugin", {"reloc_register_components": unmarked}),
        plugin("greedy_plugin", registering(component("mine"), component("good"))),
    ]
    registry = Registry()
    registry.discover(points)
    problems = {name: info.problem for name, info in registry.plugins.items()}
    assert problems["good_plugin"] == ""
    assert "No module named" in problems["missing_plugin"]
    assert "reloc.plugins.v99" in problems["future_plugin"]
    assert "Did you mean 'reloc_register_components'" in problems["typo_plugin"]
    assert "@hookimpl" in problems["unmarked_plugin"]
    # All of a plugin's components or none: the duplicate takes "mine" down with it.
    assert "already from 'good_plugin'" in problems["greedy_plugin"]
    assert [c.name for c in registry.components("solver")] == ["good"]


def test_half_registered_plugin_leaves_nothing_behind():
    registry = Registry()
    registry.discover([plugin("a_plugin", registering(component("taken"))),
                       plugin("b_plugin", registering(component("fresh"), component("taken")))])  # fmt: skip
    assert [c.name for c in registry.components()] == ["taken"]
    assert registry.plugins["b_plugin"].problem.startswith("PluginError")


def test_asking_for_a_broken_plugin_names_the_cause():
    registry = Registry()
    registry.discover([EntryPoint("gone", "no_such_module_anywhere", ENTRY_POINT_GROUP)])
    with pytest.raises(PluginError, match="No module named.*reloc plugin doctor gone"):
        registry.get("estimator", "gone")


def test_unknown_component_suggests_the_nearest():
    registry = Registry()
    registry.discover([plugin("p_plugin", registering(component("pnp")))])
    with pytest.raises(ConfigError, match="Did you mean 'pnp'"):
        registry.get("solver", "pmp")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interface": "solvr"}, "Did you mean 'solver'"),
        ({"name": "Bad-Name"}, "lower_snake_case"),
        ({"target": "no colon"}, "package.module:Class"),
        ({"importer": "no colon"}, "package.module:function"),
        ({"config": int}, "dataclass"),
        ({"accepts": ("Correspondence",)}, "Did you mean 'Correspondences'"),
        ({"accepts": ()}, "must say what it accepts"),
    ],
)
def test_component_descriptions_are_checked(values, message):
    with pytest.raises(PluginError, match=message):
        component(**{"name": "x", **values})


def test_component_of_another_interface_is_refused():
    with pytest.raises(PluginError, match="is no Solver"):
        component("path", target="pathlib:Path").load()
    with pytest.raises(PluginError, match="cannot be imported: ModuleNotFoundError"):
        component("gone", target="no_such_module:Thing").load()


def test_estimator_and_solver_must_fit():
    registry = Registry()
    registry.discover(
        [
            plugin(
                "fit_plugin",
                registering(component("pnp"), component("avg", accepts=("RelativePoses",))),
            )
        ]
    )
    estimator = component("e", interface="estimator", produces="Correspondences", accepts=())
    check_fit(estimator, registry.get("solver", "pnp"), registry)
    with pytest.raises(ConfigError, match="Solvers that fit: pnp"):
        check_fit(estimator, registry.get("solver", "avg"), registry)
    assert default_solver(estimator, registry).name == "pnp"


def test_a_former_name_still_finds_the_component():
    registry = Registry()
    registry.add(component("landmarks", aliases=("scr_landmarks",)))
    assert registry.get("solver", "scr_landmarks").name == "landmarks"
    assert [c.name for c in registry.components()] == ["landmarks"]
    with pytest.raises(PluginError, match="lower_snake_case"):
        component("good", aliases=("Not good",))


def test_importers_are_loaded_by_name():
    assert component("able", importer="json:loads").load_importer() is json.loads
    with pytest.raises(ConfigError, match="no files to import"):
        component("unable").load_importer()
    with pytest.raises(PluginError, match="cannot be imported"):
        component("broken", importer="json:no_such_function").load_importer()


class Odd(BaseException):
    """No Exception."""


@hookimpl
def ends(registry):
    raise SystemExit(3)


@hookimpl
def is_odd(registry):
    raise Odd("odd")


@hookimpl
def stops(registry):
    next(iter(()))


@hookimpl
def loops(registry):
    while True:
        try:
            pass
        except Exception:
            continue


@hookimpl
def no_directories():
    raise ValueError("no folder")


def test_plugins_of_any_misbehaviour_are_isolated_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RELOC_PLUGIN_SECONDS", "0.3")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "endless_import.py").write_text("while True:\n    pass\n")
    (tmp_path / "ending_import.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "odd_import.py").write_text(
        "class Odd(BaseException): pass\nraise Odd('at import')\n"
    )
    points = [
        plugin("good_plugin", registering(component("good"))),
        *(EntryPoint(n, n, ENTRY_POINT_GROUP) for n in ("endless_import", "ending_import", "odd_import")),
        *(plugin(f"plugin_{hook.__name__}", {"reloc_register_components": hook})
          for hook in (ends, is_odd, stops, loops)),
        plugin("plugin_no_directories",
               {**registering(component("half")), "reloc_config_dirs": no_directories}),
        plugin("plugin_no_list", {"reloc_config_dirs": hookimpl(lambda: 3)}),
    ]  # fmt: skip
    registry = Registry()
    registry.discover(points)
    problems = {name: info.problem for name, info in registry.plugins.items()}
    assert problems.pop("good_plugin") == ""
    assert "endless loop" in problems["endless_import"]
    assert "endless loop" in problems["plugin_loops"]
    assert "at import" in problems["odd_import"]
    assert problems["plugin_ends"] == "SystemExit: 3"
    assert problems["plugin_stops"] == "StopIteration"
    assert "no folder" in problems["plugin_no_directories"]
    assert all(problems.values())
    assert [c.name for c in registry.components()] == ["good"]
    assert registry.config_dirs() == []


def test_an_observer_that_fails_is_named_once(capsys):
    calls = []

    @hookimpl
    def reloc_run_started(verb):
        calls.append(verb)
        raise Odd("look away")

    registry = Registry()
    registry.discover([plugin("nosy_plugin", {"reloc_run_started": reloc_run_started})])
    for verb in ("train", "evaluate"):
        registry.manager.hook.reloc_run_started(verb=verb, config={})
    assert calls == ["train"]
    err = capsys.readouterr().err
    assert err.count("nosy_plugin") == 1
    assert "look away" in err

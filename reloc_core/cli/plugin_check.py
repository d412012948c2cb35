"""`reloc plugin check`: everything a plugin's author wants to know before publishing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from urllib.parse import unquote, urlparse

from reloc_core.cli.plugin_doctor import doctor, installed_plugins
from reloc_core.composition import compose
from reloc_core.errors import ConfigError, RelocError, did_you_mean
from reloc_core.registry import BUILTIN, Component, default_registry

_SUITES = {
    "dataset": "DatasetConformance",
    "estimator": "EstimatorConformance",
    "refiner": "RefinerConformance",
    "solver": "SolverConformance",
}
_ROOM = ("dataset=synthetic", "dataset.train_frames=100", "dataset.test_frames=20")


def check(arguments: Sequence[str]) -> int:
    """Run the action: doctor, presets, conformance, and a result on the embedded room."""
    flags = [a for a in arguments if a.startswith("-")]
    names = [a for a in arguments if not a.startswith("-")]
    if len(names) != 1 or set(flags) - {"--quick"}:
        raise ConfigError("Usage: reloc plugin check NAME [--quick]")
    (name,) = names
    points = installed_plugins()
    if name not in points:
        raise ConfigError(
            f"There is no plugin '{name}'.{did_you_mean(name, points)} A new one has to be installed "
            f"first: pip install -e {name}"
        )
    if doctor([name]):
        return 2
    components = [c for c in default_registry().components() if c.plugin == name]
    code = max(_check_presets(name), _check_conformance(points[name], components))
    if code == 0 and "--quick" not in flags:
        code = _room_result(components, source_tests(points[name]))
    print(f"\n{name}: {'all checks passed' if code == 0 else 'CHECKS FAILED'}")
    return code


def _check_presets(name: str) -> int:
    """Compose the presets in the plugin's own config directories."""
    registry = default_registry()
    hooks = registry.manager.get_plugin(name)
    directories: Sequence[Path] = getattr(hooks, "reloc_config_dirs", list)()
    failed = 0
    for directory in map(Path, directories):
        for file in sorted((directory / "experiment").rglob("*.yaml")):
            preset = file.relative_to(directory / "experiment").with_suffix("").as_posix()
            try:
                compose("train", [f"experiment={preset}", "dataset=synthetic", "map_dir=MAP"])
                print(f"experiment={preset}: ok")
            except RelocError as error:
                failed += 1
                print(f"experiment={preset}: {error}")
    return 2 if failed else 0


def _check_conformance(point: EntryPoint, components: Sequence[Component]) -> int:
    """Run the plugin's own tests where its sources are at hand, else the suites as they come."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        raise ConfigError("The conformance suites need pytest: pip install 'reloc[test]'") from None
    # reloc installed in place is imported before pytest can rewrite its assertions; no matter.
    quiet = ["-W", "ignore:Module already imported so cannot be rewritten"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quiet]
    tests = source_tests(point)
    if tests is not None:
        print(f"Conformance, by {tests}:")
        return (
            2 if subprocess.run([*command, str(tests)], cwd=tests.parent.parent).returncode else 0
        )
    chosen = [c for c in components if not _required_options(c)]
    for component in components:
        if component not in chosen:
            print(
                f"{component.interface} {component.name}: not tested, as it needs "
                f"{', '.join(_required_options(component))}; subclass "
                f"reloc_core.testing.{_SUITES[component.interface]} in its tests"
            )
    if not chosen:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"test_conformance_{point.name}.py"
        file.write_text(_generic_suite(chosen), "utf-8")
        return 2 if subprocess.run([*command, str(file)], cwd=folder).returncode else 0


def source_tests(point: EntryPoint) -> Path | None:
    """`tests/test_conformance.py` of a plugin that was installed in place, or None."""
    if point.name == BUILTIN or point.dist is None:
        return None
    try:
        origin = json.loads(point.dist.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    url = urlparse(str(origin.get("url", "")))
    if url.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
        return None
    tests = Path(unquote(url.path)) / "tests"
    # A distribution of several plugins has a suite for each that was added to it.
    added = tests / f"test_{point.name}_conformance.py"
    file = added if added.is_file() else tests / "test_conformance.py"
    return file if file.is_file() else None


def _required_options(component: Component) -> list[str]:
    return [k for k, v in vars(component.config()).items() if isinstance(v, str) and v == "???"]


def _generic_suite(components: Sequence[Component]) -> str:
    lines = ["from reloc_core import testing", ""]
    for component in components:
        lines += [
            "",
            f"class Test_{component.interface}_{component.name}(testing.{_SUITES[component.interface]}):",
            f"    component = {component.name!r}",
        ]
        if component.interface == "refiner":
            source = "refiner" if component.needs_map else None
            if component.reads_maps_of:
                source = component.reads_maps_of[0]
            lines.append(f"    map_from = {source!r}")
    return "\n".join(lines) + "\n"


def _room_result(components: Sequence[Component], tests: Path | None) -> int:
    """What each component does on the embedded room; the error of estimators is that of a demo."""
    from reloc_core.cli.hydra_app import run_verb

    code = 0
    for component in components:
        if component.interface != "estimator" and tests is None and _required_options(component):
            continue  # only its own tests know the options
        print(f"\n{component.name} on the embedded room:", flush=True)
        if component.interface == "estimator":
            found = run_verb("demo", [f"estimator={component.name}", "~experiment", *_ROOM])
        else:
            command = [sys.executable, "-m", "reloc_core.testing.room_result"]
            command += [component.interface, component.name, *([str(tests)] if tests else [])]
            found = subprocess.run(command).returncode
        code = max(code, found)
    return code

"""`reloc plugin doctor`: examine plugins, each in a process of its own.

The examining process loads no plugin itself, and each child loads only the one it examines, so a
plugin that ends the interpreter is a finding and not the end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint

from reloc_core import registry as registry_module
from reloc_core.errors import ConfigError, RelocError, did_you_mean
from reloc_core.isolation import DISABLE_VARIABLE
from reloc_core.registry import BUILTIN, SLOW_SECONDS, Registry

_TIMEOUT_S = 120
_HEAVY = ("torch", "cv2", "matplotlib", "hydra", "kornia", "pycolmap", "tensorflow", "jax")


def installed_plugins() -> dict[str, EntryPoint]:
    """Entry points by the name that the registry gives them, without loading any."""
    found: dict[str, EntryPoint] = {}
    points = registry_module._entry_points()
    for point in sorted(points, key=lambda p: (p.name != BUILTIN, p.name, p.value)):
        name = point.name if point.name not in found else f"{point.name}@{point.value}"
        found[name] = point
    return found


def examine(name: str) -> dict[str, str]:
    """Load everything of one plugin in this process: check name to "ok" or what is wrong."""
    points = installed_plugins()
    heavy_before = {m for m in _HEAVY if m in sys.modules}
    registry = Registry()
    registry.discover({id(p): p for p in (points[BUILTIN], points[name])}.values())
    heavy = sorted(m for m in _HEAVY if m in sys.modules and m not in heavy_before)
    plugin = registry.plugins[points[name].name]
    if plugin.problem:
        return {"import": plugin.problem}
    results = {"import": "ok"}
    if heavy:
        results["import"] = (
            f"imports {', '.join(heavy)} when it registers, so that every use of reloc waits for "
            "it. Name the class by string in its Component and import heavy packages there."
        )
    elif plugin.seconds > SLOW_SECONDS:
        results["import"] = (
            f"takes {plugin.seconds:.1f} s, which every use of reloc waits for. Leave in its "
            "plugin module only the registration."
        )
    for component in registry.components():
        if component.plugin != plugin.name:
            continue
        label = f"{component.interface} {component.name}"
        try:
            loaded = component.load()
            produces = getattr(getattr(loaded, "produces", None), "kind_name", None)
            accepts = tuple(kind.kind_name for kind in getattr(loaded, "accepts", ()))
            if component.produces != produces:
                results[label] = f"says it produces {component.produces}, its class {produces}"
            elif component.accepts and set(accepts) != set(component.accepts):
                results[label] = f"says it accepts {component.accepts}, its class {accepts}"
            else:
                results[label] = "ok"
        except RelocError as error:
            results[label] = str(error)
        except BaseException as error:
            results[label] = f"{type(error).__name__}: {error}"
    implementation = registry.manager.get_plugin(plugin.name)
    checks = getattr(implementation, "reloc_health_checks", None)
    if checks is not None:
        try:
            results.update({str(k): str(v) for k, v in checks().items()})
        except BaseException as error:
            results["health checks"] = f"{type(error).__name__}: {error}"
    return results


def doctor(names: Sequence[str]) -> int:
    """Examine plugins and print what was found; 2 if anything is wrong."""
    points = installed_plugins()
    for name in names:
        if name not in points:
            raise ConfigError(f"There is no plugin '{name}'.{did_you_mean(name, points)}")
    together = _in_child("_problems")
    failed = 0
    for name in names or list(points):
        results = _in_child("_examine", name)
        if set(results) != {"process"} and together.get(name):
            # Fine alone, not together with the others: a component's name is taken.
            results = {**results, "import": together[name]}
        bad = {check: text for check, text in results.items() if text != "ok"}
        failed += bool(bad)
        print(f"{name}: {'ok' if not bad else 'FAILED'} ({len(results)} checks)")
        for check, text in bad.items():
            print(f"  {check}: {text}")
            if check == "process":
                print(f"  {DISABLE_VARIABLE}={name} makes reloc do without it.")
    return 2 if failed else 0


def _in_child(*arguments: str) -> Mapping[str, str]:
    """What a child process reports, or how it ended under the key "process"."""
    command = [sys.executable, "-X", "faulthandler", "-m", "reloc_core.cli", "plugin", *arguments]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"process": f"did not finish within {_TIMEOUT_S} s"}
    if child.returncode != 0:
        return {"process": _ending(child.returncode, child.stderr)}
    try:
        report: dict[str, str] = json.loads(child.stdout.strip().splitlines()[-1])
        return report
    except (ValueError, IndexError):
        return {"process": f"printed no result: {child.stdout[-200:]!r}"}


def _is_standard(place: str) -> bool:
    """Whether a line of faulthandler, `File "PATH", line N`, is in the standard library."""
    path = place.split('"')[1]
    return path.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in path


def _ending(code: int, stderr: str) -> str:
    """How a process ended, with the place in its code for crashes and else its last words."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    if code < 0:
        try:
            how = f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was ended by signal {-code}"
        # Where the plugin was, rather than the library that it called.
        own = [line for line in places if not _is_standard(line)]
        at = (own or places)[:1]
        return f"{how}, a crash in native code" + (f": {at[0]}" if at else "")
    return f"ended with code {code}: {(lines or ['no message'])[-1]}"

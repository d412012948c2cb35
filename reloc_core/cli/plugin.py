"""`reloc plugin list` and `reloc plugin doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.registry import Registry, default_registry

USAGE = """\
Usage: reloc plugin list             components by plugin, and plugins that failed with their cause
       reloc plugin doctor [NAME]    load each plugin in a process of its own and check it
"""
_TIMEOUT_S = 120


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    action, rest = arguments[0], arguments[1:]
    if action == "list":
        print(listing(default_registry()), end="")
        return 0
    if action == "doctor":
        return doctor(rest, default_registry())
    if action == "_examine":
        print(json.dumps(examine(rest[0])))
        return 0
    raise ConfigError(
        f"There is no 'reloc plugin {action}'.{did_you_mean(action, ['list', 'doctor'])}"
    )


def listing(registry: Registry) -> str:
    """Components grouped by plugin, then what failed."""
    lines: list[str] = []
    for plugin in registry.plugins.values():
        if plugin.problem:
            continue
        lines.append(f"{plugin.name} {plugin.version}".rstrip())
        for component in registry.components():
            if component.plugin == plugin.name:
                needs = f"  [needs {', '.join(component.requires)}]" if component.requires else ""
                lines.append(
                    f"  {component.interface:10} {component.name:16} {component.summary}{needs}"
                )
    for plugin in registry.plugins.values():
        if plugin.problem:
            lines.append(f"{plugin.name} {plugin.version} FAILED: {plugin.problem}")
            lines.append(f"  see 'reloc plugin doctor {plugin.name}'")
    return "\n".join(lines) + "\n"


def examine(name: str) -> dict[str, str]:
    """Load everything of one plugin in this process: check name to "ok" or what is wrong."""
    registry = default_registry()
    plugin = registry.plugins[name]
    if plugin.problem:
        return {"import": plugin.problem}
    results = {"import": "ok"}
    for component in registry.components():
        if component.plugin != name:
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
        except Exception as error:
            results[label] = str(error)
    implementation = registry.manager.get_plugin(name)
    checks = getattr(implementation, "reloc_health_checks", None)
    if checks is not None:
        try:
            results.update(checks())
        except Exception as error:
            results["health checks"] = f"{type(error).__name__}: {error}"
    return results


def doctor(names: Sequence[str], registry: Registry) -> int:
    """Examine plugins, each in its own process so that a crash is a finding and not the end."""
    for name in names:
        if name not in registry.plugins:
            raise ConfigError(f"There is no plugin '{name}'.{did_you_mean(name, registry.plugins)}")
    failed = 0
    for name in names or list(registry.plugins):
        command = [sys.executable, "-m", "reloc_core.cli", "plugin", "_examine", name]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
            if child.returncode == 0:
                results = json.loads(child.stdout.strip().splitlines()[-1])
            else:
                ending = child.stderr.strip().splitlines()[-1:] or ["no message"]
                results = {"process": f"ended with code {child.returncode}: {ending[0]}"}
        except subprocess.TimeoutExpired:
            results = {"process": f"did not finish within {_TIMEOUT_S} s"}
        except (ValueError, IndexError):
            results = {"process": f"printed no result: {child.stdout[-200:]!r}"}
        bad = {check: text for check, text in results.items() if text != "ok"}
        failed += bool(bad)
        print(f"{name}: {'ok' if not bad else 'FAILED'} ({len(results)} checks)")
        for check, text in bad.items():
            print(f"  {check}: {text}")
    return 2 if failed else 0

"""`reloc plugin list | new | check | doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from reloc_core.cli.lifeline import end_with_parent
from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.registry import SLOW_SECONDS, Registry, default_registry

USAGE = """\
Usage: reloc plugin list             components by plugin, and plugins that failed with their cause
       reloc plugin new NAME [--kind estimator|refiner|solver|dataset] [--directory DIR]
                                     write a plugin that works: package, example, tests, preset
       reloc plugin new NAME [--kind ...] --into DIR
                                     the same inside the plugin in DIR: one distribution, two components
       reloc plugin check NAME [--quick]
                                     doctor, presets, conformance tests and a result on the embedded room
       reloc plugin doctor [NAME]    load each plugin in a process of its own and check it
"""
ACTIONS = ("list", "new", "check", "doctor")


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE, end="")
        return 0
    action, rest = arguments[0], arguments[1:]
    if action == "list":
        print(listing(default_registry()), end="")
        return 0
    if action == "new":
        from reloc_core.cli.plugin_new import new

        return new(rest)
    if action == "check":
        from reloc_core.cli.plugin_check import check

        return check(rest)
    if action == "doctor":
        from reloc_core.cli.plugin_doctor import doctor

        return doctor(rest)
    if action in ("_examine", "_problems"):
        end_with_parent()
    if action == "_examine":
        from reloc_core.cli.plugin_doctor import examine

        print(json.dumps(examine(rest[0])))
        return 0
    if action == "_problems":
        print(json.dumps({p.name: p.problem for p in default_registry().plugins.values()}))
        return 0
    raise ConfigError(f"There is no 'reloc plugin {action}'.{did_you_mean(action, ACTIONS)}")


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
        if plugin.seconds > SLOW_SECONDS:
            lines.append(
                f"  slow: takes {plugin.seconds:.1f} s to import, whatever reloc is asked to do; "
                f"see 'reloc plugin doctor {plugin.name}'"
            )
    for plugin in registry.plugins.values():
        if plugin.problem:
            lines.append(f"{plugin.name} {plugin.version} FAILED: {plugin.problem}")
            lines.append(f"  see 'reloc plugin doctor {plugin.name}'")
    return "\n".join(lines) + "\n"

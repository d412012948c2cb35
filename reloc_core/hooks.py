"""Hook specifications of the plugin interface (pluggy), version 1.

A plugin is a torch-free module named by an entry point in the group `reloc.plugins.v1`. It implements
the hooks it needs with `@hookimpl`; none is mandatory. Heavy code is named by string in a `Component`
and imported when the component is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from reloc_core.registry import Registry
    from reloc_core.types import Localization, Query

PROJECT = "reloc"
API_VERSION = 1
ENTRY_POINT_GROUP = f"reloc.plugins.v{API_VERSION}"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hooks; arguments that an implementation does not need may be left out."""

    @hookspec
    def reloc_register_components(self, registry: Registry) -> None:
        """Add components with `registry.add(Component(...))`."""

    @hookspec
    def reloc_config_dirs(self) -> Sequence[Path]:  # type: ignore[empty-body]
        """Directories to append to Hydra's search path, such as those with `experiment/` presets."""

    @hookspec
    def reloc_health_checks(self) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Results of cheap self-checks for `reloc plugin doctor`: name to "ok" or what is wrong."""

    @hookspec
    def reloc_run_started(self, verb: str, config: Mapping[str, Any]) -> None:
        """A verb started with this resolved configuration."""

    @hookspec
    def reloc_query_localized(self, query: Query, localization: Localization) -> None:
        """One query was processed (localized or not)."""

    @hookspec
    def reloc_run_finished(self, verb: str, result: Mapping[str, Any]) -> None:
        """A verb finished; `result` is what `result.json` holds, or `status` "failed" and `error`."""


HOOK_NAMES = frozenset(name for name in vars(Hooks) if name.startswith("reloc_"))

OBSERVERS = frozenset({"reloc_run_started", "reloc_query_localized", "reloc_run_finished"})
"""Hooks that only look on: one that fails is named, and what it observes goes on."""

"""Components, plugins and their isolated discovery.

Discovery does not use pluggy's own loader because that stops at the first plugin that fails. Here a
plugin that cannot be imported, implements a hook that does not exist or targets another API version
is recorded with its cause, and everything else keeps working.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from reloc_core.errors import ConfigError, PluginError, did_you_mean
from reloc_core.hooks import API_VERSION, ENTRY_POINT_GROUP, HOOK_NAMES, PROJECT, Hooks
from reloc_core.interfaces import INTERFACES, Dataset, Run
from reloc_core.isolation import DISABLE_VARIABLE, observed, one_line, time_limit
from reloc_core.types import EVIDENCE_KINDS
from reloc_core.weights import Weights

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
Importer = Callable[[Path, Any, Dataset, Run], None]
"""Writes the map of a component with this config from a file, into `run.map`; raises `MapError` where the
file is not its own. The dataset gives images, poses and cameras of the scene."""
BUILTIN = "reloc_core"
SLOW_SECONDS = 2.0
"""An import that takes longer is mentioned: every command waits for it."""


@dataclass(frozen=True)
class Component:
    """A named implementation of one interface, described without importing it.

    Attributes:
        interface: "dataset", "estimator", "solver" or "refiner".
        name: how configs and the command line call it; unique per interface.
        target: "package.module:Class", imported when the component is built.
        config: the typed config dataclass; the class is constructed as `Class(config)`.
        summary: one line for listings.
        produces: evidence kind of an estimator.
        accepts: evidence kinds of a solver.
        solver: name of the solver an estimator works best with.
        refiners: names of the refiners that belong to an estimator's method; used unless the user
            chooses others.
        reads_maps_of: estimators whose maps a refiner can work with, beside maps of its own.
        reads_depth: whether an estimator or refiner may look at the depth of a query when it localizes;
            where no stage does, depth maps are not read.
        needs_map: whether the component trains a map (estimators) or may (refiners).
        paper: citation.
        licence: SPDX identifier, with a remark where weights differ from code.
        requires: any of "cuda", "depth", "sequence"; a pipeline whose stage requires what the queries or
            the machine lack is refused before the first query.
        published: published results worth quoting, by name.
        weights: published files of weights that it can use.
        importer: "package.module:function" that writes a map from a file of weights instead of training
            one, called as `function(file, config, dataset, run)` in the place of `fit`; "" for none.
        aliases: names it had before; maps that were made under them still load.
        plugin: distribution module it came from; filled in by the registry.
    """

    interface: str
    name: str
    target: str
    config: type
    summary: str
    produces: str | None = None
    accepts: tuple[str, ...] = ()
    solver: str = ""
    refiners: tuple[str, ...] = ()
    reads_maps_of: tuple[str, ...] = ()
    reads_depth: bool = True
    needs_map: bool = False
    paper: str = ""
    licence: str = ""
    requires: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[Weights, ...] = ()
    importer: str = ""
    aliases: tuple[str, ...] = ()
    plugin: str = BUILTIN

    def __post_init__(self) -> None:
        if self.interface not in INTERFACES:
            raise PluginError(
                f"Component '{self.name}' names the interface '{self.interface}'."
                f"{did_you_mean(self.interface, INTERFACES)}"
            )
        for name in (self.name, *self.aliases):
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise PluginError(f"Component name '{name}' must be lower_snake_case.")
        if not _TARGET.fullmatch(self.target):
            raise PluginError(
                f"Component '{self.name}': target '{self.target}' must read 'package.module:Class'."
            )
        if self.importer and not _TARGET.fullmatch(self.importer):
            raise PluginError(
                f"Component '{self.name}': importer '{self.importer}' must read 'package.module:function'."
            )
        if not (isinstance(self.config, type) and is_dataclass(self.config)):
            raise PluginError(f"Component '{self.name}': config must be a dataclass.")
        for kind in (*self.accepts, *([self.produces] if self.produces else [])):
            if kind not in EVIDENCE_KINDS:
                raise PluginError(
                    f"Component '{self.name}': unknown evidence '{kind}'."
                    f"{did_you_mean(kind, EVIDENCE_KINDS)}"
                )
        if self.interface == "estimator" and not self.produces:
            raise PluginError(f"Estimator '{self.name}' must say what it produces.")
        if self.interface == "solver" and not self.accepts:
            raise PluginError(f"Solver '{self.name}' must say what it accepts.")

    def load(self) -> type:
        """Import the class.

        Raises:
            PluginError: the import fails or the class does not implement the interface.
        """
        loaded = self._imported(self.target)
        if not (isinstance(loaded, type) and issubclass(loaded, INTERFACES[self.interface])):
            raise PluginError(
                f"{self.target} of plugin '{self.plugin}' is no {INTERFACES[self.interface].__name__}."
            )
        return loaded

    def load_importer(self) -> Importer:
        """Import the function that turns a file into a map.

        Raises:
            ConfigError: the component imports no files.
            PluginError: the import fails.
        """
        if not self.importer:
            raise ConfigError(f"{self.interface} '{self.name}' has no files to import: train it.")
        loaded: Importer = self._imported(self.importer)
        return loaded

    def _imported(self, target: str) -> Any:
        module_name, _, name = target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), name)
        except Exception as error:
            raise PluginError(
                f"{self.interface} '{self.name}' of plugin '{self.plugin}' cannot be imported: "
                f"{type(error).__name__}: {error}. Run 'reloc plugin doctor {self.plugin}'."
            ) from error


@dataclass(frozen=True)
class PluginInfo:
    """What discovery found out about one plugin.

    Attributes:
        name: entry-point name.
        module: module of the entry point.
        version: version of its distribution, "" if unknown.
        problem: why it is not usable, "" when it is.
        seconds: how long its module took to import.
    """

    name: str
    module: str
    version: str
    problem: str = ""
    seconds: float = 0.0


class Registry:
    """All components by interface and name, and the plugins they came from."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], Component] = {}
        self._current_plugin = BUILTIN
        self._config_dirs: dict[str, list[Path]] = {}
        self.plugins: dict[str, PluginInfo] = {}
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(Hooks)

    def add(self, component: Component) -> None:
        """Register a component of the plugin being loaded.

        Raises:
            PluginError: the name is taken by another plugin.
        """
        key = (component.interface, component.name)
        if key in self._components:
            other = self._components[key].plugin
            raise PluginError(f"{component.interface} '{component.name}' is already from '{other}'")
        taken = {w.name: w for w in self.weights()}
        for weights in component.weights:
            if taken.get(weights.name, weights) != weights:
                raise PluginError(f"weights '{weights.name}' are already something else")
        values = {**vars(component), "plugin": self._current_plugin}
        self._components[key] = Component(**values)

    def components(self, interface: str | None = None) -> Iterator[Component]:
        """Components, sorted by interface and name."""
        for key in sorted(self._components):
            if interface is None or key[0] == interface:
                yield self._components[key]

    def weights(self) -> Iterator[Weights]:
        """Weights that components can use, sorted by name; each once."""
        found = {w.name: w for c in self._components.values() for w in c.weights}
        return (found[name] for name in sorted(found))

    def get(self, interface: str, name: str) -> Component:
        """Look up a component by its name, or by one that it had before.

        Raises:
            PluginError: its plugin is broken.
            ConfigError: no such component; names the nearest spelling.
        """
        found = self._components.get((interface, name)) or self.renamed(interface, name)
        if found is not None:
            return found
        broken = self.plugins.get(name) or next(
            (p for p in self.plugins.values() if p.problem and name.startswith(p.name)), None
        )
        if broken is not None and broken.problem:
            raise PluginError(
                f"{interface} '{name}' is not available because plugin '{broken.name}' failed: "
                f"{broken.problem}. Run 'reloc plugin doctor {broken.name}'."
            )
        known = [c.name for c in self.components(interface)]
        raise ConfigError(f"There is no {interface} '{name}'.{did_you_mean(name, known)}")

    def renamed(self, interface: str, name: str) -> Component | None:
        """The component that once had this name."""
        return next((c for c in self.components(interface) if name in c.aliases), None)

    def config_dirs(self) -> list[Path]:
        """Config directories that the plugins add to Hydra's search path."""
        return [directory for found in self._config_dirs.values() for directory in found]

    def load_module(self, info: PluginInfo, module: Any) -> PluginInfo:
        """Register one imported plugin module; all of its components or none."""
        problem = _hook_problem(module)
        if problem:
            return PluginInfo(info.name, info.module, info.version, problem)
        before = dict(self._components)
        self._current_plugin = info.name
        try:
            with time_limit(info.name):
                self.manager.register(observed(module, info.name), name=info.name)
                register = getattr(module, "reloc_register_components", None)
                if register is not None:
                    register(registry=self)
                directories: Sequence[Path | str] = getattr(module, "reloc_config_dirs", list)()
                self._config_dirs[info.name] = [Path(d) for d in directories]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._components = before
            if self.manager.has_plugin(info.name):
                self.manager.unregister(name=info.name)
            return PluginInfo(info.name, info.module, info.version, one_line(error))
        finally:
            self._current_plugin = BUILTIN
        return info

    def discover(self, points: Iterable[EntryPoint] | None = None) -> None:
        """Load every installed plugin, each isolated from the others.

        The core's own components come first, through an entry point like everybody's, so that no
        other plugin can take their names.
        """
        found = points if points is not None else _enabled(_entry_points())
        for point in sorted(found, key=lambda p: (p.name != BUILTIN, p.name, p.value)):
            version = point.dist.version if point.dist is not None else ""
            info = PluginInfo(point.name, point.value, version)
            if point.name in self.plugins:
                info = PluginInfo(f"{point.name}@{point.value}", point.value, version,
                                  f"another plugin is already called '{point.name}'")  # fmt: skip
            elif point.group != ENTRY_POINT_GROUP:
                info = PluginInfo(point.name, point.value, version,
                                  f"targets {point.group}, this is API version {API_VERSION}")  # fmt: skip
            else:
                begin = time.perf_counter()
                try:
                    with time_limit(point.name):
                        module = point.load()
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    info = PluginInfo(point.name, point.value, version, one_line(error))
                else:
                    info = self.load_module(info, module)
                info = replace(info, seconds=time.perf_counter() - begin)
            self.plugins[info.name] = info


def _entry_points() -> Sequence[EntryPoint]:
    """Entry points of every API version, so that plugins of another one can be named."""
    every = entry_points()
    return [p for group in every.groups if group.startswith("reloc.plugins.")
            for p in every.select(group=group)]  # fmt: skip


def _enabled(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Without the plugins named in `RELOC_DISABLE_PLUGINS`: a way past one that crashes Python."""
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    return [p for p in points if p.name == BUILTIN or p.name not in disabled]


def _hook_problem(module: Any) -> str:
    """Why a module is no usable plugin: hooks that do not exist, or hooks without the marker."""
    for name in dir(module):
        if not name.startswith("reloc_"):
            continue
        marked = hasattr(getattr(module, name), f"{PROJECT}_impl")
        if marked and name not in HOOK_NAMES:
            return f"implements unknown hook '{name}'.{did_you_mean(name, HOOK_NAMES)}"
        if not marked and name in HOOK_NAMES:
            return f"'{name}' lacks the @hookimpl decorator"
    return ""


@functools.lru_cache(maxsize=1)
def default_registry() -> Registry:
    """The registry of everything installed, discovered once per process."""
    registry = Registry()
    registry.discover()
    return registry

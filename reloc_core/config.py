"""Typed configuration over Hydra, and the one `build` that turns it into components.

Every component's config dataclass becomes an option of its interface's config group, with `_target_`
set to the component's registered name. `build` resolves `_target_` among registered components only;
nothing in a config can name arbitrary code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from reloc_core.errors import ConfigError, MapError, PluginError, did_you_mean
from reloc_core.maps import Map
from reloc_core.registry import Component, Registry, default_registry

TARGET = "_target_"
CHOICES = frozenset({"dataset", "estimator", "solver", "refiner", "experiment"})
"""Config groups that a command line chooses from."""
_QUOTED_KEYS = ("map_dir", "output_dir", "output", "images", "results", "dataset.root", "root")


def config_directory() -> Path:
    """The primary config directory: inside the wheel, or at the top of a source checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ConfigError("reloc's own config directory is missing: install reloc again.")


def plain(cfg: Any) -> Any:
    """A config as plain dicts, lists and scalars with interpolations resolved."""
    if dataclasses.is_dataclass(cfg) and not isinstance(cfg, type):
        return dataclasses.asdict(cfg)
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def literal(value: Any) -> Any:
    """Plain values such that OmegaConf takes every text as it is: `${` refers to nothing."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + "\\${", value)
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    return value


def config_hash(cfg: Any) -> str:
    """First 12 hex digits of the SHA-256 of a config's canonical JSON."""
    text = json.dumps(plain(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def typed_config(component: Component, *layers: Mapping[str, Any] | DictConfig) -> Any:
    """Merge layers over a component's defaults into an instance of its config dataclass.

    Interpolations of a composed config are resolved in it; in a mapping `${...}` is text.

    Raises:
        ConfigError: a key is unknown (names the nearest spelling) or a value has the wrong type.
    """
    where = f"{component.interface} '{component.name}'"
    try:
        merged = OmegaConf.structured(component.config)
    except OmegaConfBaseException as error:
        raise PluginError(
            f"{where} of plugin '{component.plugin}' has a configuration that cannot be used: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        for layer in layers:
            content = literal(plain(layer) or {})
            merged = OmegaConf.merge(merged, {k: v for k, v in content.items() if k != TARGET})
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            keys = ", ".join(f"{component.interface}.{key}" for key in missing)
            raise ConfigError(f"{where} needs a value for {keys}.")
        return OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        known = [".".join(path) for path in _leaves(OmegaConf.structured(component.config))]
        raise ConfigError(f"{where} has no option '{key}'.{did_you_mean(key, known)}") from error
    except ValidationError as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"{where}, option '{error.full_key}': {message}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error


def config_of_map(
    component: Component, scene_map: Map, *layers: Mapping[str, Any] | DictConfig
) -> Any:
    """The config that a component was trained with, with the user's options over it.

    Args:
        component: that reads the map.
        scene_map: made by it, perhaps by an older version.
        layers: options of the user.

    Raises:
        MapError: the map has options that the component does not have (any more).
        ConfigError: the user's options are wrong.
    """
    try:
        typed_config(component, scene_map.info.config)
    except ConfigError as error:
        made_by = scene_map.info.plugin_version or "another version"
        raise MapError(
            f"{scene_map.path} was made by {scene_map.info.plugin} {made_by}, this version cannot read "
            f"its configuration ({error}). Train it again: reloc train "
            f"{component.interface}={component.name} dataset=... map_dir={scene_map.path} overwrite=true"
        ) from error
    return typed_config(component, scene_map.info.config, *layers)


def build(
    cfg: Mapping[str, Any] | DictConfig, interface: str, registry: Registry | None = None
) -> Any:
    """Construct the component that a config names.

    Args:
        cfg: has `_target_`, the registered name, and the component's options.
        interface: "dataset", "estimator", "solver" or "refiner".
        registry: where to look; the installed components by default.

    Raises:
        ConfigError: no target, unknown component or option, or a value the component refuses.
        PluginError: the component's plugin cannot be loaded.
    """
    if not cfg or TARGET not in cfg:
        raise ConfigError(f"No {interface} was chosen: add {interface}=NAME.")
    component = (registry or default_registry()).get(interface, str(cfg[TARGET]))
    config = typed_config(component, cfg)
    return component.load()(config)


def _leaves(cfg: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(cfg, DictConfig) and not cfg._is_none() and not cfg._is_missing():
        for key in cfg:
            yield (*prefix, str(key))
            node = cfg._get_node(key)
            if isinstance(node, DictConfig):
                yield from _leaves(node, (*prefix, str(key)))


# --------------------------------------------------------------------------- composition by Hydra


def register_with_hydra(registry: Registry) -> None:
    """Make components' configs and plugins' config directories known to Hydra in this process.

    The search path plugin is registered here, not in the `hydra_plugins` namespace, which would reach
    every other Hydra program of the environment.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    store = ConfigStore.instance()
    for component in registry.components():
        typed = dataclasses.make_dataclass(
            component.config.__name__,
            [(TARGET, str, dataclasses.field(default=component.name))],
            bases=(component.config,),
            kw_only=True,
        )
        store.store(
            group=component.interface, name=component.name, node=typed, provider=component.plugin
        )

    directories = registry.config_dirs()

    class RelocSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            for directory in directories:
                search_path.append("reloc", f"file://{directory}")

    Plugins.instance().register(RelocSearchPath)


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Quote the values of path options so that blanks, commas and such need no escaping."""
    result = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key in _QUOTED_KEYS and value and value[0] not in "'\"[{$":
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            override = f"{key}='{escaped}'"
        result.append(override)
    return result


def refuse_empty_choices(overrides: Sequence[str]) -> None:
    """Refuse `experiment=null` and the like, for which Hydra has no message.

    Raises:
        ConfigError: says what to write instead.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in CHOICES and value.strip("'\" ").lower() in ("null", "none"):
            raise ConfigError(
                f"{override} chooses nothing. Leave {key}= out, or write '~{key}' to drop what a preset "
                "chose."
            )


@contextmanager
def hydra_session() -> Iterator[None]:
    """Hydra initialised on reloc's config directory, and cleared afterwards."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_directory()), version_base="1.3", job_name="reloc"):
            yield
    finally:
        GlobalHydra.instance().clear()


def compose(verb: str, overrides: Sequence[str], registry: Registry | None = None) -> DictConfig:
    """Compose a verb's configuration.

    Args:
        verb: "train", "evaluate", "localize" or "demo".
        overrides: Hydra overrides as on the command line.
        registry: the installed components by default.

    Raises:
        ConfigError: in one or two lines, with the nearest spelling of unknown keys and options.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    refuse_empty_choices(overrides)
    registry = registry or default_registry()
    register_with_hydra(registry)
    with hydra_session():
        try:
            cfg = hydra_compose(config_name=verb, overrides=quote_paths(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, verb, overrides, registry) from error
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        options = "\n".join(f"  {key}=..." for key in missing)
        raise ConfigError(f"'reloc {verb}' needs a value for:\n{options}")
    return cfg


def _explain(
    error: Exception, verb: str, overrides: Sequence[str], registry: Registry
) -> ConfigError:
    """Shorten Hydra's message and add the nearest spelling."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    option = re.search(r"Could not find '([\w/.-]+)'", text)
    if option:
        group, _, name = option.group(1).rpartition("/")
        if group in ("estimator", "solver", "refiner", "dataset"):
            try:
                registry.get(group, name)
            except Exception as cause:
                return ConfigError(str(cause))
        known = experiments(registry) if group.startswith("experiment") else []
        if known:
            full = f"{group}/{name}".removeprefix("experiment/")
            return ConfigError(f"There is no experiment '{full}'.{did_you_mean(full, known)}")
        return ConfigError(f"There is no config '{option.group(1)}'.")
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        chosen = [o for o in overrides if o.partition("=")[0] in CHOICES and o.partition("=")[2]]
        with hydra_session():
            from hydra import compose as hydra_compose
            from hydra.errors import HydraException

            try:
                base = hydra_compose(config_name=verb, overrides=chosen)
                known = [".".join(path) for path in _leaves(base)]
            except (HydraException, OmegaConfBaseException):
                known = []  # the choices are wrong too; no spelling to suggest
        name = key.group(1)
        if name in ("estimator", "solver", "refiner") and name not in known:
            names = [c.name for c in registry.components(name)]
            return ConfigError(
                f"'reloc {verb}' takes no {name} by that name; installed: {', '.join(names) or 'none'}."
            )
        value = re.search(r"Value '.*' .*(could not|cannot) be converted.*|Invalid value.*", text)
        if value or name in known:
            return ConfigError(f"Option '{name}': {lines[-1] if not value else value.group(0)}")
        if name.startswith("solver.") and not any(o.startswith("solver=") for o in chosen):
            names = [c.name for c in registry.components("solver")]
            return ConfigError(
                f"'{name}' is an option of a solver that is not named: add solver=NAME; installed: "
                f"{', '.join(names)}."
            )
        return ConfigError(f"There is no option '{name}'.{did_you_mean(name, known)}")
    choose = re.search(r"You must specify '(\w+)'", text)
    if choose:
        names = [c.name for c in registry.components(choose.group(1))]
        return ConfigError(
            f"'reloc {verb}' needs {choose.group(1)}=NAME: one of {', '.join(names)}."
        )
    group_error = re.search(
        r"Could not (?:override|delete) '(\w+)'\. No match in the defaults", text
    )
    if group_error:
        return ConfigError(f"'reloc {verb}' has no config group '{group_error.group(1)}'.")
    # "Error merging override X" alone says nothing; its cause follows it or is chained.
    chained = str(error.__cause__).splitlines()[:1] if error.__cause__ else []
    return ConfigError(" ".join([*lines[:2], *chained]))


def experiments(registry: Registry | None = None) -> list[str]:
    """Names of all presets, such as "scr_glace/compact"."""
    roots = [config_directory(), *(registry or default_registry()).config_dirs()]
    return sorted(
        path.relative_to(root / "experiment").with_suffix("").as_posix()
        for root in roots
        for path in (root / "experiment").rglob("*.yaml")
    )

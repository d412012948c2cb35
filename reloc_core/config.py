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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from reloc_core.errors import ConfigError, MapError, PluginError, did_you_mean
from reloc_core.maps import Map
from reloc_core.registry import Component, Registry, default_registry

TARGET = "_target_"


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


def option_names(cfg: Any, prefix: str = "") -> list[str]:
    """Dotted names of all options of a config, nodes included."""
    found = []
    for key in cfg:
        found.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            found += option_names(node, f"{prefix}{key}.")
    return found


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
        known = option_names(OmegaConf.structured(component.config))
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


def experiments(registry: Registry | None = None) -> list[str]:
    """Names of all presets, such as "landmarks/default"."""
    roots = [config_directory(), *(registry or default_registry()).config_dirs()]
    return sorted(
        path.relative_to(root / "experiment").with_suffix("").as_posix()
        for root in roots
        for path in (root / "experiment").rglob("*.yaml")
    )

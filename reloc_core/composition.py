"""Composing a verb's configuration with Hydra, and saying in a line what is wrong with it."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from reloc_core.config import TARGET, config_directory, experiments, option_names, plain
from reloc_core.errors import ConfigError, RelocError, did_you_mean
from reloc_core.overrides import take_literally
from reloc_core.registry import Registry, default_registry
from reloc_core.verb_options import check_kind

CHOICES = frozenset({"dataset", "estimator", "solver", "refiner", "experiment"})
"""Config groups that a command line chooses from."""
_INTERFACES = ("estimator", "solver", "refiner", "dataset")
_known: Any = None  # what Hydra was told, and which of its singletons were


def register_with_hydra(registry: Registry) -> None:
    """Make components' configs and plugins' config directories known to Hydra in this process.

    The search path plugin is registered here, not in the `hydra_plugins` namespace, which would reach
    every other Hydra program of the environment.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    global _known
    store, plugins, directories = (
        ConfigStore.instance(),
        Plugins.instance(),
        registry.config_dirs(),
    )
    content = (store, plugins, list(registry.components()), directories)
    if content == _known:
        return  # half of the time that composing takes
    _known = content
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

    class RelocSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            for directory in directories:
                search_path.append("reloc", f"file://{directory}")

    plugins.register(RelocSearchPath)


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


def prepare(
    verb: str, overrides: Sequence[str], registry: Registry, sweep: bool = False
) -> list[str]:
    """Overrides as Hydra reads them: paths and texts are taken as typed.

    Raises:
        ConfigError: `experiment=null` and the like, for which Hydra has no message, or a value that
            refers to a misspelt option.
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in CHOICES and value.strip("'\" ").lower() in ("null", "none"):
            raise ConfigError(
                f"{override} chooses nothing. Leave {key}= out, or write '~{key}' to drop what a preset "
                "chose."
            )
    return take_literally(
        overrides, registry, lambda others: known_options(verb, others, registry), sweep
    )


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

    registry = registry or default_registry()
    register_with_hydra(registry)
    prepared = prepare(verb, overrides, registry)
    with explained(verb, overrides, registry), hydra_session():
        cfg = hydra_compose(config_name=verb, overrides=prepared)
    check_values(verb, cfg)
    return cfg


def check_values(verb: str, cfg: DictConfig, complete: bool = True) -> None:
    """Refuse a config that lacks values, refers to what is not there, or has values of the wrong kind.

    Args:
        verb: the config is for.
        cfg: composed for it.
        complete: all values must be there; where it is only shown, some may be missing.

    Raises:
        ConfigError: names all options that need a value, or the reference, or the value.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg)) if complete else []
    except OmegaConfBaseException as error:
        raise ConfigError(_reference_message(error, cfg)) from error
    if missing:
        options = "\n".join(f"  {key}=..." for key in missing)
        raise ConfigError(f"'reloc {verb}' needs a value for:\n{options}")
    for name in map(str, cfg):
        try:
            value = plain(cfg[name])
            check_kind(verb, name, value)
            if nowhere := _not_a_number(name, value):
                raise ConfigError(f"{nowhere} must be a number, got nan.")
        except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
            if complete:
                raise ConfigError(_reference_message(error, cfg)) from error
        except OmegaConfBaseException as error:
            raise ConfigError(_reference_message(error, cfg)) from error


def _not_a_number(name: str, value: Any) -> str:
    """The first option at or below a value that is NaN, which no comparison refuses; "" for none."""
    if isinstance(value, dict):
        return next(filter(None, (_not_a_number(f"{name}.{k}", v) for k, v in value.items())), "")
    return name if isinstance(value, float) and value != value else ""


def _reference_message(error: OmegaConfBaseException, cfg: Any) -> str:
    where = f"Option '{error.full_key}'" if error.full_key else "An option"
    name = re.search(r"Interpolation key '([^']*)' not found", str(error))
    if isinstance(error, InterpolationKeyError) and name:
        hint = did_you_mean(name.group(1), option_names(cfg))
        hint = hint if "Did you mean" in hint else ""
        return f"{where} refers to ${{{name.group(1)}}}, which is no option.{hint}"
    if isinstance(error, InterpolationToMissingValueError):
        return f"{where} refers to an option without a value: {str(error).splitlines()[0]}"
    return f"{where}: {str(error).splitlines()[0]}"


def known_options(verb: str, overrides: Sequence[str], registry: Registry) -> dict[str, Any]:
    """Options of a verb and their defaults, with the choices among the overrides.

    Empty where these do not compose.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    chosen = [
        o
        for o in overrides
        if o.partition("=")[0] in CHOICES and o.partition("=")[2] and "," not in o
    ]
    register_with_hydra(registry)
    with hydra_session():
        try:
            cfg = hydra_compose(config_name=verb, overrides=chosen)
            raw = OmegaConf.to_container(cfg, resolve=False)
        except (HydraException, OmegaConfBaseException):
            return {}
    return {name: _at(raw, name) for name in option_names(cfg)}


def _at(node: Any, name: str) -> Any:
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


@contextmanager
def explained(verb: str, overrides: Sequence[str], registry: Registry) -> Iterator[None]:
    """Turn whatever Hydra and OmegaConf raise into a `ConfigError` of a line."""
    from hydra.errors import HydraException

    try:
        yield
    except RelocError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, verb, overrides, registry) from error
    except RecursionError as error:
        raise ConfigError("An option is nested too deeply.") from error
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        if not _is_hydras_own(error):
            raise
        raise ConfigError(
            f"The options cannot be read ({' '.join(str(error).split())[:200]})."
        ) from error


def _is_hydras_own(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf raised an error of a kind that they have no class for."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return module.partition(".")[0] in ("hydra", "omegaconf", "antlr4")


def _explain(
    error: Exception, verb: str, overrides: Sequence[str], registry: Registry
) -> ConfigError:
    """Shorten Hydra's message and add the nearest spelling."""
    text = str(error)
    option = re.search(r"Could not find '([\w/.-]+)'", text)
    if option:
        return _unknown_choice(option.group(1), registry)
    key = re.search(r"Could not (?:override|append to config\.|delete) '?([^'\s]+?)'?[.\n]", text)
    key = re.search(r"Could not override '([^']+)'", text) or (
        key if "No match in the defaults" not in text else None
    )
    choice = re.search(
        r"Could not (?:override|delete) '([\w/]+)'\.\s+No match in the defaults", text
    )
    if choice and "." not in choice.group(1):
        return ConfigError(f"'reloc {verb}' has no config group '{choice.group(1)}'.")
    if key:
        return _unknown_key(key.group(1), text, verb, overrides, registry)
    choose = re.search(r"You must specify '(\w+)'", text)
    if choose:
        names = [c.name for c in registry.components(choose.group(1))]
        return ConfigError(
            f"'reloc {verb}' needs {choose.group(1)}=NAME: one of {', '.join(names)}."
        )
    if isinstance(error, InterpolationKeyError):
        return ConfigError(_reference_message(error, DictConfig({})))
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if several:
        return ConfigError(
            f"{several.group(1)}={several.group(2)} is several values: run all of them by "
            f"'reloc {verb} -m ...', or write a list as {several.group(1)}=[{several.group(2)}]."
        )
    kind = re.search(
        r"Error merging override \+*([\w./]+)=[\s\S]*Value '([\s\S]*)' of type '\w+' "
        r"could not be converted to (Integer|Float)",
        f"{text}\n{error.__cause__}",
    )
    if kind:
        words = {"Integer": "a whole number", "Float": "a number"}[kind.group(3)]
        return ConfigError(f"{kind.group(1)} must be {words}, got {kind.group(2)[:60]!r}.")
    # "Error merging override X" alone says nothing; its cause follows it or is chained.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chained = str(error.__cause__).splitlines()[:1] if error.__cause__ else []
    return ConfigError(" ".join([*lines[:2], *chained])[:400])


def _unknown_choice(choice: str, registry: Registry) -> ConfigError:
    group, _, name = choice.rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper"):
        kind = group.rpartition("/")[2]
        installed = _of_hydra(kind)
        if choice == "hydra/launcher/ray":
            return ConfigError(f"{group}={name} comes with: pip install 'reloc[ray]'")
        return ConfigError(
            f"There is no {group} '{name}'.{did_you_mean(name, installed)}{_extra(installed)}"
        )
    if group in _INTERFACES:
        renamed = registry.renamed(group, name)
        if renamed is not None:
            return ConfigError(
                f"{group} '{name}' is now called '{renamed.name}': write {group}={renamed.name}."
            )
        try:
            registry.get(group, name)
        except RelocError as cause:
            return ConfigError(str(cause))
    known = experiments(registry) if group.startswith("experiment") else []
    if known:
        full = f"{group}/{name}".removeprefix("experiment/")
        return ConfigError(f"There is no experiment '{full}'.{did_you_mean(full, known)}")
    return ConfigError(f"There is no config '{choice}'.")


def _of_hydra(kind: str) -> dict[str, list[str]]:
    """Hydra's launchers or sweepers that are installed, each with its options."""
    from hydra.core.config_store import ConfigStore

    group: Any = ConfigStore.instance().repo.get("hydra", {}).get(kind, {})
    return {
        file.removesuffix(".yaml"): [f"hydra.{kind}.{o}" for o in option_names(stored.node)]
        for file, stored in group.items()
        if hasattr(stored, "node")
    }


def _extra(known: Iterable[str]) -> str:
    if {"joblib", "optuna"} & set(known):
        return ""
    return " Those for joblib, submitit and Optuna come with: pip install 'reloc[sweep]'"


def _unknown_of_hydra(name: str, overrides: Sequence[str]) -> ConfigError:
    """An option of Hydra that does not exist, or belongs to a launcher or sweeper that is not chosen."""
    from hydra.conf import HydraConf

    kind = name.split(".")[1]
    if kind not in ("launcher", "sweeper"):
        known = [f"hydra.{f.name}" for f in dataclasses.fields(HydraConf)]
        top = ".".join(name.split(".")[:2])
        return ConfigError(f"There is no option '{name}'.{did_you_mean(top, known)}")
    installed = _of_hydra(kind)
    prefix = f"hydra/{kind}="
    chosen = next((o[len(prefix) :] for o in reversed(overrides) if o.startswith(prefix)), "basic")
    owners = sorted(k for k, options in installed.items() if name in options)
    if owners and chosen not in owners:
        choose = " or ".join(f"hydra/{kind}={owner}" for owner in owners)
        return ConfigError(
            f"'{name}' is no option of the {kind} '{chosen}'. Choose one that has it: {choose}."
        )
    options = [o for o in installed.get(chosen, []) if not o.endswith("_")]
    return ConfigError(
        f"The {kind} '{chosen}' has no option '{name}'.{did_you_mean(name, options)}{_extra(installed)}"
    )


def _unknown_key(
    name: str, text: str, verb: str, overrides: Sequence[str], registry: Registry
) -> ConfigError:
    """An option that does not exist, or exists with another type."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    value = re.search(r"Value '.*' .*(could not|cannot) be converted.*|Invalid value.*", text)
    if name.startswith("hydra.") and not value:
        return _unknown_of_hydra(name, overrides)
    known = known_options(verb, overrides, registry)
    if name in ("estimator", "solver", "refiner") and name not in known:
        names = [c.name for c in registry.components(name)]
        return ConfigError(
            f"'reloc {verb}' takes no {name} by that name; installed: {', '.join(names) or 'none'}."
        )
    if value or name in known:
        return ConfigError(f"Option '{name}': {lines[-1] if not value else value.group(0)}")
    if name.startswith("solver.") and not any(
        o.startswith("solver=") and o != "solver=" for o in overrides
    ):
        names = [c.name for c in registry.components("solver")]
        return ConfigError(
            f"'{name}' is an option of a solver that is not named: add solver=NAME; installed: "
            f"{', '.join(names)}."
        )
    return ConfigError(f"There is no option '{name}'.{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest spelling; of options below a node that exists, among the options of that node."""
    node = name.rpartition(".")[0]
    below: list[str] = []
    while node and not below:
        below = [k for k in known if k.startswith(f"{node}.") and not k.endswith(TARGET)]
        node = node.rpartition(".")[0] if not below else node
    if not below:
        return did_you_mean(name, known)
    # The node is right: what stands below it is compared, or any option of it would be near.
    start = len(node) + 1
    close = difflib.get_close_matches(name[start:], [k[start:] for k in below], n=1)
    if close:
        return f" Did you mean '{node}.{close[0]}'?"
    return did_you_mean("", [k for k in below if "." not in k[start:]])

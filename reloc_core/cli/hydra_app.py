"""Running a verb over Hydra: one run, a look at its configuration, or a multirun over a sweep."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from reloc_core.cli.help import verb_help
from reloc_core.composition import (
    check_values,
    compose,
    explained,
    hydra_session,
    prepare,
    register_with_hydra,
)
from reloc_core.config import option_names
from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.overrides import open_overrides
from reloc_core.registry import default_registry

_FLAGS = {
    "-m": "multirun", "--multirun": "multirun", "-r": "run", "--run": "run",
    "--resolve": "resolve", "-c": "cfg", "--cfg": "cfg", "-p": "package", "--package": "package",
    "-i": "info", "--info": "info",
}  # fmt: skip
_WITH_VALUE = {"cfg": ("job", "hydra", "all"), "package": (),
               "info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")}  # fmt: skip


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Hydra's flags and the overrides.

    Raises:
        ConfigError: an unknown flag, one without its value, or `-m` after an option.
    """
    flags: dict[str, str] = {}
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        flag = _FLAGS.get(name)
        if flag is None:
            raise ConfigError(
                f"There is no flag '{name}'.{did_you_mean(name, [*_FLAGS, '--help'])}"
            )
        if flag == "multirun" and overrides:
            raise ConfigError(
                f"{name} stands right after the verb: reloc VERB {name} OPTION=VALUE ..."
            )
        choices = _WITH_VALUE.get(flag)
        if choices is None:
            flags[flag] = ""
            continue
        if not equals and rest and (not choices or rest[0] in choices):
            value = rest.pop(0)
        elif flag == "info" and not equals:
            value = "all"
        if not value or (choices and value not in choices):
            raise ConfigError(f"{name} takes {' | '.join(choices) or 'a name'}.")
        flags[flag] = value
    return flags, overrides


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb with Hydra's flags and overrides; returns the exit code."""
    if any(a in ("-h", "--help", "--hydra-help") for a in arguments):
        print(verb_help(verb, default_registry()), end="")
        return 0
    flags, overrides = split_flags(arguments)
    if "cfg" in flags or "info" in flags:
        return _show(verb, flags, overrides)
    if "multirun" in flags:
        from reloc_core.cli.multirun import multirun

        return multirun(verb, overrides)
    from reloc_core.cli.jobs import verb_function

    cfg = compose(verb, open_overrides(verb, overrides))
    code = verb_function(verb)(cfg, overrides)
    return code if isinstance(code, int) else 0


@contextmanager
def _logging_as_before() -> Iterator[None]:
    """Hydra's `--info` logs all there is to the screen, and would go on doing so."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _check_package(package: str, cfg: DictConfig) -> None:
    """Refuse a package that is not there, for which Hydra ends the process.

    Raises:
        ConfigError: with the nearest spelling.
    """
    try:
        if package == "_global_" or OmegaConf.select(cfg, package) is not None:
            return
    except OmegaConfBaseException:  # below a value that has no parts
        pass
    hint = did_you_mean(package, option_names(cfg))
    raise ConfigError(
        f"-p {package}: there is nothing of that name.{hint if 'Did you mean' in hint else ''}"
    )


def _show(verb: str, flags: dict[str, str], overrides: Sequence[str]) -> int:
    """`--cfg` and `--info`, by Hydra."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    registry = default_registry()
    register_with_hydra(registry)
    prepared = prepare(verb, open_overrides(verb, overrides), registry)
    with explained(verb, overrides, registry), hydra_session(), _logging_as_before():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if "cfg" in flags:
            cfg = hydra.compose_config(verb, prepared, RunMode.RUN, with_log_configuration=False)
            whole = cfg.copy()
            with open_dict(cfg):
                del cfg["hydra"]
            check_values(verb, cfg, complete=False)
            if "package" in flags:
                _check_package(flags["package"], cfg if flags["cfg"] == "job" else whole)
            hydra.show_cfg(verb, prepared, flags["cfg"], flags.get("package"), "resolve" in flags)
        else:
            hydra.show_info(flags["info"], verb, prepared)
    sys.stdout.flush()
    return 0

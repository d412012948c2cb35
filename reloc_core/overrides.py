r"""Options as people type them: names of files are taken as they are, whatever characters they have.

Hydra's grammar gives `[`, `{`, `'`, `=`, `,`, `\\` and `${` a meaning. Where an option is a path or a text
they have none, unless no such file exists and the value makes sense as a list, a sweep or a reference.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from reloc_core.config import TARGET, literal
from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.registry import Registry

PATH_OPTIONS = frozenset(
    {"map_dir", "output_dir", "output", "images", "results", "dataset.root", "root", "times", "bag"}
)
_LISTS = frozenset({"images", "results"})
"""Paths of which there may be several."""
_OWN = frozenset({"output_dir", "output"})
"""Paths that a sweep has one of."""
_OPEN_NODES = dict.fromkeys(
    ("evaluate", "localize", "track", "serve", "view"), ("estimator.", "tracker.")
)
"""Overrides of a map's own estimator are merged over the config stored in the map, so to Hydra they are
additions to an empty node."""
_FUNCTION = re.compile(
    r"\s*(choice|range|interval|glob|shuffle|sort|tag|extend_list|str|int|float)\("
)
_REFERENCE = re.compile(r"(\\*)\$\{(?:([^${}]*)\})?")
_MAX_LENGTH = 20_000


def quoted(text: str) -> str:
    """A text in quotes, by the rules of Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.single).with_quotes())


def open_overrides(verb: str, overrides: Sequence[str]) -> list[str]:
    """Mark overrides below a verb's open nodes as additions."""
    prefixes = _OPEN_NODES.get(verb, ())
    result = []
    for override in overrides:
        for prefix in prefixes:
            if override.startswith(prefix):
                override = f"++{override}"
            elif override.startswith(f"{prefix[:-1]}="):
                # The map says which estimator it is for; naming it again is checked against that.
                override = f"++{prefix}{TARGET}={override.partition('=')[2]}"
        result.append(override)
    return result


def take_literally(
    overrides: Sequence[str],
    registry: Registry,
    known: Callable[[Sequence[str]], Mapping[str, Any]],
    sweep: bool = False,
) -> list[str]:
    """Quote the values of paths and texts, and whatever Hydra's grammar cannot read.

    Args:
        overrides: as typed.
        registry: says which options of components are texts.
        known: the options that exist with the given overrides, and their defaults; asked only where it
            matters.
        sweep: values may be several, separated by commas.

    Raises:
        ConfigError: a value refers to an option that does not exist but nearly does.
    """
    names: Mapping[str, Any] | None = None
    result = []
    for override in overrides:
        key, equals, value = override.partition("=")
        bare = key.lstrip("+")
        if not bare:
            raise ConfigError(f"'{override[:80]}' names no option: write OPTION=VALUE.")
        if not equals or not value or key.startswith("~"):
            result.append(override)
            continue
        text = bare in PATH_OPTIONS or _is_text(bare, overrides, registry)
        odd = len(override) > _MAX_LENGTH or not _parses(override)
        if names is None and ((text and "${" in value) or (odd and not text)):
            names = known([o for o in overrides if "${" not in o])
        if text:
            result.append(f"{key}={_value(bare, value, sweep, names or ())}")
        elif odd and isinstance((names or {}).get(bare), str):
            result.append(f"{key}={quoted(value)}")
        elif odd:
            raise ConfigError(
                f"The value of '{key[:60]}' cannot be read: {value[:60]}. Brackets and quotes must be "
                f"closed; a text with such characters is written \"{key[:60]}='TEXT'\"."
            )
        else:
            result.append(override)
    return result


def _value(key: str, value: str, sweep: bool, known: Collection[str]) -> str:
    """A path or text for Hydra's grammar."""
    if _exists(value):
        return quoted(literal(value))
    if value[0] in "'\"" and value[-1] == value[0] and len(value) > 1 and _parses(f"x={value}"):
        return value
    if value in ("null", "???") or _FUNCTION.match(value):
        return value
    if value[0] == "[" and key in _LISTS and _parses(f"x={value}"):
        return value
    if sweep and "," in value and key not in _OWN and (_exists_all(value) or _parses(f"x={value}")):
        return ",".join(_value(key, part, False, known) for part in value.split(",") if part)
    return quoted(_references(key, value, known))


def _references(key: str, value: str, known: Collection[str]) -> str:
    """Escape every `${` that refers to nothing; refuse what looks like a misspelt option."""
    if re.search(r"\$\{[^{}]*\$\{", value):  # a reference within a reference is meant
        return value

    def keep_or_escape(match: re.Match[str]) -> str:
        slashes, name = match.group(1), match.group(2)
        escaped = slashes * 2 + "\\" + match.group(0)[len(slashes) :]
        if name is None:
            return escaped
        resolver, colon, _ = name.partition(":")
        if colon:
            return match.group(0) if OmegaConf.has_resolver(resolver) else escaped
        if name.startswith(".") or name in known:
            return match.group(0)
        hint = did_you_mean(name, known) if known else ""
        if "Did you mean" in hint:
            raise ConfigError(f"{key}={value} refers to ${{{name}}}, which is no option.{hint}")
        return escaped

    return _REFERENCE.sub(keep_or_escape, value)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(path))
    except ValueError:
        return False


def _exists_all(value: str) -> bool:
    return all(_exists(part) for part in value.split(",") if part)


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except (HydraException, RecursionError):
        return False
    return True


def _is_text(key: str, overrides: Iterable[str], registry: Registry) -> bool:
    """Whether an option of a chosen component is a text by its config dataclass."""
    interface, _, path = key.partition(".")
    if not path:
        return False
    chosen = [o.partition("=")[2] for o in overrides if o.partition("=")[0] == interface]
    component = next((c for c in registry.components(interface) if c.name in chosen[-1:]), None)
    kind: Any = component.config if component else None
    for part in path.split("."):
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            return False
        try:
            kind = typing.get_type_hints(kind).get(part)
        except (NameError, TypeError):
            return False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return set(typing.get_args(kind)) <= {str, type(None)}
    return kind is str

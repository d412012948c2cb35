"""What the options of the verbs themselves may be; those of components are typed by their dataclasses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reloc_core.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """Values that an option takes.

    Attributes:
        words: what is expected, as in "seed must be WORDS".
        fits: whether a plain value is one.
    """

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same for options that may be left without a value."""
        return Kind(f"{self.words}, or null", lambda v: v is None or self.fits(v))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and all(isinstance(item, kinds) for item in v)


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a whole number of at least 0", lambda v: _is_whole(v) and v >= 0)
NUMBER = Kind("a number", _is_number)
TEXT = Kind("a text", _is_text)
# Scenes, topics and the like may be called "7", which is read as a number.
NAME = Kind("a name", lambda v: _is_text(v) or _is_number(v))
PATH = Kind("a path", lambda v: _is_text(v) and bool(v.strip()))
PATHS = Kind(
    "a path, or several as [A, B]",
    lambda v: PATH.fits(v) or (isinstance(v, list) and bool(v) and all(map(PATH.fits, v))),
)
NAMES = Kind("a list of names, such as [A, B]", _list_of(str, int))
NODE = Kind("options of its own, such as {NAME: VALUE}", lambda v: isinstance(v, Mapping))
REFINERS = Kind("a list such as [NAME] or [{name: NAME, map_dir: DIR}]", _list_of(str, dict))
DATASETS = Kind("a list such as [{name: DATASET, root: DIR}]", _list_of(dict))
CACHE = Kind("true, false or a folder", lambda v: isinstance(v, bool | str))

_OPTIONS: dict[str, Kind] = {
    "add": FLAG,
    "adjust": FLAG,
    "bag": PATH.or_null(),
    "batch": WHOLE,
    "cache": CACHE,
    "calibration": NODE,
    "camera": NODE,
    "camera_frame": NAME.or_null(),
    "cameras": TEXT,
    "connect": TEXT.or_null(),
    "dataset": NODE.or_null(),
    "device": TEXT,
    "drop": NAMES,
    "dry_run": FLAG,
    "estimator": NODE.or_null(),
    "exhaustive": COUNT,
    "extend": FLAG,
    "extra_datasets": DATASETS,
    "features": WHOLE,
    "flatten": FLAG,
    "fps": NUMBER.or_null(),
    "frame_step": WHOLE,
    "host": TEXT,
    "image_width": WHOLE,
    "images": PATHS,
    "limits": NODE,
    "link": TEXT,
    "magnify": NUMBER,
    "map_dir": PATH,
    "mapper": TEXT,
    "maps": NODE.or_null(),
    "max_frames": WHOLE.or_null(),
    "max_points": COUNT,
    "memory_mb": NUMBER,
    "most": WHOLE,
    "motion": NUMBER,
    "neighbours": COUNT,
    "objective": TEXT.or_null(),
    "orientation": TEXT,
    "output": PATH,
    "output_dir": PATH,
    "overwrite": FLAG,
    "pairs": TEXT,
    "port": WHOLE,
    "published_table": TEXT,
    "reconstruct": NODE,
    "reference": NAME.or_null(),
    "refiner": NODE.or_null(),
    "refiners": REFINERS.or_null(),
    "report": FLAG,
    "results": PATH.or_null(),
    "resume": FLAG,
    "root": PATH,
    "scale": NODE,
    "scene": NAME,
    "seed": COUNT,
    "session": NAME.or_null(),
    "share": TEXT.or_null(),
    "side": WHOLE,
    "similar": COUNT,
    "solver": NODE.or_null(),
    "splits": NAMES,
    "tensorboard": FLAG,
    "test_split": NAME,
    "threads": COUNT,
    "times": TEXT.or_null(),
    "to": TEXT,
    "topic": NAME.or_null(),
    "tracker": NODE.or_null(),
    "video": FLAG,
    "world_frame": NAME,
}
_OF_VERBS: dict[tuple[str, str], Kind] = {
    ("data_convert", "images"): TEXT,
    ("data_reconstruct", "video"): FLAG.or_null(),
    ("serve", "map_dir"): PATH.or_null(),
    ("view", "images"): PATHS.or_null(),
    ("view", "map_dir"): PATH.or_null(),
    ("view", "output"): PATH.or_null(),
}
"""Where a verb takes something else by the same name."""


def kind_of(verb: str, name: str) -> Kind | None:
    """What an option of a verb may be; None for names that no verb has."""
    return _OF_VERBS.get((verb, name), _OPTIONS.get(name))


def check_kind(verb: str, name: str, value: Any) -> None:
    """Refuse a value of another kind than the option takes.

    Args:
        verb: such as "train".
        name: of an option of the verb itself.
        value: plain, with references resolved.

    Raises:
        ConfigError: in one line, with option, value and what is expected.
    """
    kind = kind_of(verb, name)
    if kind is None or kind.fits(value):
        return
    shown = "null" if value is None else repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise ConfigError(f"{name} must be {kind.words}, got {shown}.")

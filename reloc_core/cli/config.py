"""`reloc config check`: compose configurations without running them."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from reloc_core.composition import compose
from reloc_core.config import TARGET, experiments, typed_config
from reloc_core.errors import ConfigError, RelocError, did_you_mean
from reloc_core.overrides import open_overrides
from reloc_core.registry import default_registry

USAGE = """\
Usage: reloc config check                    compose every installed preset
       reloc config check VERB OVERRIDES...  compose one configuration and print it
"""
_VERBS = (
    "map",
    "train",
    "evaluate",
    "localize",
    "track",
    "serve",
    "collect",
    "view",
    "demo",
    "benchmark",
    "data_check",
    "data_convert",
    "data_reconstruct",
)


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] != "check":
        raise ConfigError(f"There is no 'reloc config {arguments[0]}'. Known: check.")
    rest = list(arguments[1:])
    if not rest:
        return _check_presets()
    if rest[0] == "data" and len(rest) > 1:
        rest[:2] = [f"data_{rest[1]}"]
    if rest[0] not in _VERBS:
        raise ConfigError(
            f"There is no configuration of '{rest[0]}'.{did_you_mean(rest[0], _VERBS)}"
        )
    cfg = compose(rest[0], open_overrides(rest[0], rest[1:]))
    _check_components(cfg)
    print(OmegaConf.to_yaml(cfg), end="")
    return 0


def _check_components(cfg: object) -> None:
    """Check values and types of every chosen component."""
    registry = default_registry()
    for interface in ("dataset", "estimator", "solver", "refiner"):
        node = cfg.get(interface) if OmegaConf.is_config(cfg) else None  # type: ignore[attr-defined]
        if node and TARGET in node:
            typed_config(registry.get(interface, str(node[TARGET])), node)


def _check_presets() -> int:
    failed = 0
    for name in experiments():
        try:
            if name.startswith("paper/"):  # they bring their dataset
                cfg = compose("benchmark", [f"experiment={name}"])
            else:
                cfg = compose("train", [f"experiment={name}", "dataset=synthetic", "map_dir=MAP"])
            _check_components(cfg)
            print(f"experiment={name}: ok")
        except RelocError as error:
            failed += 1
            print(f"experiment={name}: {error}")
    return 2 if failed else 0

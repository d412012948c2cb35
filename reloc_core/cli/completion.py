"""`reloc completion`: shell completion of verbs, choices, options and values."""

from __future__ import annotations

from collections.abc import Sequence

from reloc_core.errors import ConfigError, did_you_mean

_BASH = """\
_reloc_complete() {
    local IFS=$'\\n'
    COMPREPLY=($(reloc completion _query "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= || ${COMPREPLY[0]} == *. || ${COMPREPLY[0]} == */ ]] && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}
complete -o default -F _reloc_complete reloc
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH
_FISH = """\
complete -c reloc -f -a '(reloc completion _query (commandline -cp) 2>/dev/null)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_HYDRA_VERBS = (
    "demo", "map", "train", "evaluate", "localize", "track", "serve", "view", "benchmark",
)  # fmt: skip


def run(arguments: Sequence[str], verbs: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: the shell.
        verbs: all verbs of the command line.
    """
    if len(arguments) == 2 and arguments[0] == "_query":
        print("\n".join(candidates(arguments[1], verbs)))
        return 0
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(
            'Usage: eval "$(reloc completion bash)"    (or zsh; fish: reloc completion fish | source)'
        )
        return 0
    if arguments[0] not in _SCRIPTS:
        raise ConfigError(
            f"No completion for shell '{arguments[0]}'.{did_you_mean(arguments[0], _SCRIPTS)}"
        )
    print(_SCRIPTS[arguments[0]], end="")
    return 0


def candidates(line: str, verbs: Sequence[str]) -> list[str]:
    """Completions of the last word of a command line that starts with `reloc`."""
    words = line.split()
    current = "" if line.endswith(" ") or not words else words[-1]
    before = words[1:] if line.endswith(" ") else words[1:-1]
    if not before:
        return sorted(verb for verb in verbs if verb.startswith(current))
    verb = before[0]
    fixed = {"plugin": ("list", "new", "check", "doctor"), "config": ("check",),
             "cache": ("list", "clear"),
             "data": ("check", "convert", "fetch", "reconstruct"),
             "report": ("compare", "merge"),
             "sweep": ("table", "resume", "plot"), "completion": tuple(_SCRIPTS)}  # fmt: skip
    if verb in fixed:
        return [w for w in fixed[verb] if len(before) == 1 and w.startswith(current)]
    if verb not in _HYDRA_VERBS:
        return []
    return _hydra_candidates(verb, before[1:], current)


def _hydra_candidates(verb: str, overrides: Sequence[str], current: str) -> list[str]:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException

    from reloc_core.composition import hydra_session, register_with_hydra
    from reloc_core.config import experiments, option_names
    from reloc_core.registry import default_registry

    registry = default_registry()
    groups = {
        "dataset": [c.name for c in registry.components("dataset")],
        "estimator": [c.name for c in registry.components("estimator")],
        "solver": [c.name for c in registry.components("solver")],
        "experiment": experiments(registry),
    }
    key, equals, value = current.partition("=")
    if equals:
        return [f"{key}={name}" for name in groups.get(key, []) if name.startswith(value)]
    register_with_hydra(registry)
    with hydra_session():
        try:
            cfg = hydra_compose(config_name=verb, overrides=list(overrides))
        except HydraException:  # a choice that the verb needs is not on the line yet
            cfg = hydra_compose(config_name=verb, overrides=[*overrides, "dataset=synthetic"])
    options = set(option_names(cfg)) | set(groups)
    return sorted(f"{option}=" for option in options if option.startswith(current))

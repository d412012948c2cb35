"""`reloc weights`: list, get and verify pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reloc_core.cli.progress import ACCEPT, ACCEPTED, Bars
from reloc_core.errors import ConfigError, RelocError, did_you_mean
from reloc_core.io.weights import (
    Verified,
    folder_of,
    get_weights,
    packaged,
    verify_file,
    verify_weights,
)
from reloc_core.registry import default_registry
from reloc_core.weights import PACKAGE, Weights

USAGE = """\
reloc weights - pretrained weights: what there is, where it comes from, under which terms

Usage: reloc weights list [NAME]
       reloc weights get NAME --accept-license [variant=V] [from=FILE|DIR|ADDRESS] [root=weights]
       reloc weights verify [NAME] [variant=V] [file=FILE] [root=weights]
       reloc weights import component=NAME file=FILE dataset=... map_dir=MAP [overrides of 'reloc train']

list     all weights that the installed plugins can use, or everything about one
get      download (an interrupted download goes on when the same command runs again) or take over a file
         or folder that is here already; it is kept only if its importer can read it. Files that hold
         anything but tensors are refused: reading them would run code
verify   read everything in root= again and compare checksums; file= verifies a file elsewhere
import   a map that localizes, from a file that another program trained (a field, a head) and the posed
         images of its scene; a wrong component= lists those that can

Nothing is ever downloaded without this command.
"""
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "list": ("root",),
    "get": ("variant", "from", "root"),
    "verify": ("variant", "file", "root"),
}


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE, end="")
        return 0
    verb, *rest = arguments
    if verb == "import":
        return _import(rest)
    if verb not in _OPTIONS:
        known_verbs = (*_OPTIONS, "import")
        raise ConfigError(f"There is no 'reloc weights {verb}'.{did_you_mean(verb, known_verbs)}")
    name, values, accepted = _parse(verb, rest)
    root = Path(values.get("root", "weights")).expanduser()
    known = {w.name: w for w in default_registry().weights()}
    if name and name not in known:
        raise ConfigError(f"There are no weights '{name}'.{did_you_mean(name, known)}")
    if verb == "list":
        _list([known[name]] if name else list(known.values()), root, bool(name))
    elif verb == "get":
        if not name:
            raise ConfigError("reloc weights get needs a NAME; 'reloc weights list' shows them.")
        _get(known[name], root, values, accepted)
    elif name:
        _show(_verify(known[name], root, values), known[name])
    else:
        return _verify_all(list(known.values()), root)
    return 0


def _parse(verb: str, arguments: Sequence[str]) -> tuple[str, dict[str, str], bool]:
    name, values, accepted = "", {}, False
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if verb == "get" and argument in ACCEPTED:
            accepted = True
        elif equals and key in _OPTIONS[verb]:
            values[key] = value
        elif not equals and not name and not argument.startswith("-"):
            name = argument
        else:
            raise ConfigError(
                f"'reloc weights {verb}' has no option '{key}'.{did_you_mean(key, _OPTIONS[verb])}"
            )
    return name, values, accepted


def _import(arguments: Sequence[str]) -> int:
    """Compose a training as its verb does, and let the component's importer take its place."""
    from reloc_core.cli import train
    from reloc_core.composition import compose

    values = {k: v for k, _, v in (a.partition("=") for a in arguments)}
    for key in ("component", "file"):
        if not values.get(key):
            raise ConfigError(f"reloc weights import needs {key}=...")
    registry = default_registry()
    name, file = values["component"], Path(values["file"]).expanduser()
    able = {
        c.name: c for i in ("refiner", "estimator") for c in registry.components(i) if c.importer
    }
    if name not in able:
        raise ConfigError(
            f"There is no component '{name}' that imports files.{did_you_mean(name, able)} "
            f"These do: {', '.join(sorted(able)) or 'none installed'}."
        )
    if not file.exists():
        raise ConfigError(f"There is no {file}.")
    rest = [a for a in arguments if a.partition("=")[0] not in ("component", "file")]
    # A preset chooses the component itself.
    chosen = [] if "experiment" in values else [f"{able[name].interface}={name}"]
    return train.run(compose("train", [*chosen, *rest]), rest, file)


def _present(weights: Weights, root: Path) -> list[str]:
    """Variants that are there; [""] for weights without variants."""
    if any(u.startswith(PACKAGE) for u in weights.urls):
        return [""]
    return [v for v in weights.variants or ("",) if folder_of(weights, root, v).is_dir()]


def _list(chosen: Sequence[Weights], root: Path, full: bool) -> None:
    for weights in chosen:
        here = [v or "here" for v in _present(weights, root)]
        print(
            f"{weights.name}{'  (' + ', '.join(here) + ')' if here else ''}\n    {weights.summary}"
        )
        print(f"    licence: {weights.licence}")
        print(f"    sha256:  {_checksum(weights)}")
        if weights.variants:
            print(f"    variant: {', '.join(weights.variants)}")
        if full:
            print(f"    file:    {weights.filename}")
            for url in weights.urls:
                print(f"    from:    {url}")
            if weights.where:
                print(f"    from:    {weights.where}")
        if weights.option:
            print(f"    use:     {weights.option}")


def _checksum(weights: Weights) -> str:
    if not weights.sha256:
        return "not published; recorded when the file is got"
    return weights.sha256 + ("" if len(weights.sha256) == 64 else "... (first digits)")


def _get(weights: Weights, root: Path, values: Mapping[str, str], accepted: bool) -> None:
    variant = weights.chosen(values.get("variant", ""))
    print(f"{weights.name}: {weights.summary}\n  licence: {weights.licence}")
    if not accepted and packaged(weights) is None:
        raise ConfigError(f"Read the licence above; if you accept it, add {ACCEPT}.")
    with Bars() as bars:
        name = weights.file(variant)
        found = get_weights(
            weights, root, variant, values.get("from", ""), None,
            lambda done, size: bars.received(name, done, size),
        )  # fmt: skip
    _show(found, weights)


def _verify(weights: Weights, root: Path, values: Mapping[str, str]) -> list[Verified]:
    if "file" in values:
        return [verify_file(weights, Path(values["file"]).expanduser())]
    return verify_weights(weights, root, values.get("variant", ""))


def _verify_all(known: Sequence[Weights], root: Path) -> int:
    problems, count = [], 0
    for weights in known:
        for variant in _present(weights, root):
            try:
                found = verify_weights(weights, root, variant)
            except RelocError as error:
                problems.append(str(error))
            else:
                count += len(found)
                _show(found, weights)
    if problems:
        raise RelocError("\n  ".join([f"{len(problems)} of the weights are bad:", *problems]))
    if not count:
        print(f"There are no weights in {root}.")
    return 0


def _show(found: Sequence[Verified], weights: Weights) -> None:
    for file in found:
        compared = "checksum as published" if file.published else "no published checksum"
        print(f"{file.path}: {file.content}; {compared}")
    if weights.option:
        path = str(found[0].path) if len(found) == 1 else "FILE"
        print(f"  use it with {weights.option.replace('FILE', path)}")

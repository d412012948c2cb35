"""`reloc plugin new`: write a plugin that works, from the templates beside this module.

A template is the file it becomes, with `__name__` and `dot_` in paths and `${...}` in texts replaced.
"""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import os
import re
import shutil
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

from reloc_core import __version__
from reloc_core.errors import ConfigError
from reloc_core.interfaces import INTERFACES
from reloc_core.io.files import write_atomically
from reloc_core.maps import explain_os_errors
from reloc_core.registry import default_registry

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = ".tmpl"
_ENTRY_POINTS = '[project.entry-points."reloc.plugins.v1"]'


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"reloc plugin new: {message}. See 'reloc plugin --help'.")


def new(arguments: Sequence[str]) -> int:
    """Run the action."""
    parser = _Parser("reloc plugin new", add_help=False)
    parser.add_argument("name")
    parser.add_argument("--kind", default="estimator", choices=sorted(INTERFACES))
    parser.add_argument("--directory", default=".")
    parser.add_argument("--into", default=None)
    options = parser.parse_args(list(arguments))
    if options.into is not None:
        target = Path(options.into)
        written = add_to_plugin(options.name, options.kind, target)
    else:
        target = written = write_plugin(options.name, options.kind, Path(options.directory))
    print(f"Wrote {written}: {_article(options.kind)} that works as it is. Next:")
    print(f"  pip install -e '{target}[test]'")
    print(f"  reloc plugin check {options.name}")
    return 0


def write_plugin(name: str, kind: str, directory: Path) -> Path:
    """Write the distribution.

    Args:
        name: of the plugin, its package and its component; lower_snake_case.
        kind: "estimator", "refiner", "solver" or "dataset".
        directory: where the folder `name` is made.

    Returns:
        the new folder.

    Raises:
        ConfigError: the name is unusable or taken, or the folder exists.
    """
    _check_name(name, kind)
    target = directory / name
    if target.exists():
        raise ConfigError(f"{target} exists already. Choose another name, or --directory.")
    values = _values(name, kind, package=name)
    with explain_os_errors(target):
        directory.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=directory))
        try:
            for folder in (_TEMPLATES / "common", _TEMPLATES / kind):
                _write_folder(folder, partial, values)
            partial.chmod(0o755)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def add_to_plugin(name: str, kind: str, distribution: Path) -> Path:
    """Write one more plugin into a distribution that `write_plugin` made, as a package inside its own.

    Args:
        name: of the new plugin and its component; lower_snake_case.
        kind: as for `write_plugin`.
        distribution: the folder with pyproject.toml.

    Returns:
        the new package's folder.

    Raises:
        ConfigError: the name is unusable or taken, or there is no plugin of reloc in the folder.
    """
    _check_name(name, kind)
    project = distribution / "pyproject.toml"
    try:
        text = project.read_text("utf-8")
    except OSError:
        raise ConfigError(f"{project} cannot be read: give the folder of a plugin.") from None
    entry = re.search(rf"^{re.escape(_ENTRY_POINTS)}[ \t]*\n(\w+) = \"(\w+)[\w.]*\"\n", text, re.M)
    if entry is None:
        raise ConfigError(f"{project} offers no plugin of reloc: it has no {_ENTRY_POINTS}.")
    outer = entry[2]
    target = distribution / outer / name
    if target.exists() or not target.parent.is_dir():
        wrong = "exists already" if target.exists() else f"has no folder {target.parent} to go to"
        raise ConfigError(f"{target} {wrong}. Choose another name.")
    values = _values(name, kind, package=f"{outer}.{name}")
    with explain_os_errors(distribution):
        for folder in (_TEMPLATES / "common" / "__name__", _TEMPLATES / kind / "__name__"):
            _write_folder(folder, target, values)
        for template in sorted((_TEMPLATES / kind / "tests").glob(f"*{_SUFFIX}")):
            file = template.name.removesuffix(_SUFFIX).replace("test_", f"test_{name}_", 1)
            _write(template, distribution / "tests" / file, values)
        # Last: until here nothing of the plugin that exists has changed.
        line = f'{name} = "{outer}.{name}.plugin"\n'
        write_atomically(project, text[: entry.end()] + line + text[entry.end() :])
    return target


def _values(name: str, kind: str, package: str) -> dict[str, str]:
    """What stands in the templates."""
    major, minor = __version__.split(".")[:2]
    return {
        "name": name,
        "package": package,
        # my_solver has the class MySolver, not MySolverSolver.
        "Class": "".join(part.capitalize() for part in name.removesuffix(f"_{kind}").split("_")),
        "distribution": "reloc-" + name.replace("_", "-"),
        "kind": kind,
        "a_kind": _article(kind),
        "requires": f">={major}.{minor},<{major}.{int(minor) + 1}",
    }


def _write_folder(folder: Path, target: Path, values: dict[str, str]) -> None:
    for template in sorted(folder.rglob(f"*{_SUFFIX}")):
        relative = template.relative_to(folder).as_posix().removesuffix(_SUFFIX)
        relative = relative.replace("__name__", values["name"]).replace("dot_", ".")
        _write(template, target / relative, values)


def _write(template: Path, file: Path, values: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(string.Template(template.read_text("utf-8")).substitute(values), "utf-8")


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _check_name(name: str, kind: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"'{name}' cannot be a plugin's name: use lower case letters, digits and underscores, "
            "as in my_method."
        )
    registry = default_registry()
    taken = [c.plugin for c in registry.components(kind) if c.name == name]
    if taken:
        raise ConfigError(f"There is a {kind} '{name}' already, from plugin '{taken[0]}'.")
    if name in registry.plugins:
        raise ConfigError(f"There is a plugin '{name}' already. Choose another name.")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"There is a Python package '{name}' already. Choose another name.")

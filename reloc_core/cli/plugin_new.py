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
from reloc_core.maps import explain_os_errors
from reloc_core.registry import default_registry

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = ".tmpl"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"reloc plugin new: {message}. See 'reloc plugin --help'.")


def new(arguments: Sequence[str]) -> int:
    """Run the action."""
    parser = _Parser("reloc plugin new", add_help=False)
    parser.add_argument("name")
    parser.add_argument("--kind", default="estimator", choices=sorted(INTERFACES))
    parser.add_argument("--directory", default=".")
    options = parser.parse_args(list(arguments))
    target = write_plugin(options.name, options.kind, Path(options.directory))
    print(f"Wrote {target}: {_article(options.kind)} that works as it is. Next:")
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
    major, minor = __version__.split(".")[:2]
    values = {
        "name": name,
        # my_solver has the class MySolver, not MySolverSolver.
        "Class": "".join(part.capitalize() for part in name.removesuffix(f"_{kind}").split("_")),
        "distribution": "reloc-" + name.replace("_", "-"),
        "kind": kind,
        "a_kind": _article(kind),
        "requires": f">={major}.{minor},<{major}.{int(minor) + 1}",
    }
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


def _write_folder(folder: Path, target: Path, values: dict[str, str]) -> None:
    for template in sorted(folder.rglob(f"*{_SUFFIX}")):
        relative = template.relative_to(folder).as_posix().removesuffix(_SUFFIX)
        relative = relative.replace("__name__", values["name"]).replace("dot_", ".")
        file = target / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        text = string.Template(template.read_text("utf-8")).substitute(values)
        file.write_text(text, "utf-8")


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

"""Fail where modules import each other in a circle, within a package too.

    python scripts/import_cycles.py [PACKAGE...]

Without arguments the packages of import-linter's configuration in pyproject.toml. Imports within functions
count; those for type checkers alone do not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent


def packages() -> list[str]:
    """The packages that import-linter looks at."""
    line = re.search(
        r"(?m)^root_packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text("utf-8")
    )
    assert line is not None, "pyproject.toml names no root_packages"
    return re.findall(r'"(\w+)"', line.group(1))


def cycles(names: list[str]) -> list[list[str]]:
    """Modules that can reach themselves, by the ones they share a circle with.

    Args:
        names: importable packages.
    """
    graph = grimp.build_graph(
        names[0], *names[1:], exclude_type_checking_imports=True, cache_dir=None
    )
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    # Whoever imports nothing of the rest, or is imported by nobody of it, is on no circle.
    rest = set(imports)
    while True:
        imported = {m for module in rest for m in imports[module]}
        gone = {m for m in rest if m not in imported or not imports[m] & rest}
        if not gone:
            break
        rest -= gone

    def reach(start: str) -> frozenset[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for module in imports[todo.pop()] & rest - seen:
                seen.add(module)
                todo.append(module)
        return frozenset(seen)

    reached = {module: reach(module) for module in rest}
    circles = {frozenset(m for m in found if module in reached[m])
               for module, found in reached.items() if module in found}  # fmt: skip
    return sorted(sorted(circle) for circle in circles)


def main() -> int:
    """Print the circles; 1 if there are any."""
    # Plugins need not be installed.
    sys.path[:0] = [str(ROOT), *map(str, (ROOT / "plugins").glob("*"))]
    found = cycles(sys.argv[1:] or packages())
    for circle in found:
        print("import cycle:", ", ".join(circle))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

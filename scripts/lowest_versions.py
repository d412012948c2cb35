"""Constraints that pin every dependency to its declared lower bound.

    python scripts/lowest_versions.py [--keep torch ...] > lowest.txt

Reads the pyproject.toml of the core and of all plugins; where several declare one dependency, the highest
of their lower bounds counts, as an installer would resolve it. Packages named by --keep are left out, and
so are the project's own and those of extras in SKIPPED, which the tests do not need.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = frozenset({"lint", "docs", "cuda", "interop"})
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9][0-9.]*)")
_QUOTED = re.compile(r'"([^"]+)"')


def requirements(pyproject: Path) -> Iterator[str]:
    """Dependencies and those of the extras that count, as written. Reads without tomllib (3.11)."""
    section, key, inside = "", "", False
    for line in pyproject.read_text("utf-8").splitlines():
        text = line.strip()
        if not inside and text.startswith("["):
            section = text.strip("[]")
            continue
        if not inside:
            key, equals, text = (part.strip() for part in text.partition("="))
            wanted = (section == "project" and key == "dependencies") or (
                section == "project.optional-dependencies" and key not in SKIPPED
            )
            if not (equals and wanted):
                continue
            inside = True
        yield from _QUOTED.findall(text)
        inside = not text.endswith("]")


def lowest() -> dict[str, str]:
    """Version by package, normalised names."""
    found: dict[str, str] = {}
    files = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml")),
             *sorted(ROOT.glob("examples/*/pyproject.toml"))]  # fmt: skip
    for file in files:
        for requirement in requirements(file):
            match = _REQUIREMENT.match(requirement)
            if match is None:
                raise SystemExit(f"{file}: '{requirement}' has no lower bound.")
            name = re.sub(r"[-_.]+", "-", match.group(1)).lower()
            if name != "reloc" and _order(match.group(2)) > _order(found.get(name, "0")):
                found[name] = match.group(2)
    return found


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main() -> None:
    """Print the constraints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", nargs="*", default=[], help="packages to leave to the installer")
    keep = set(parser.parse_args().keep)
    for name, version in sorted(lowest().items()):
        if name not in keep:
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()

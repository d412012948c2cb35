"""What the tests of the native library share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built_solvers() -> Path | None:
    """The library that the installed module was linked from; None if it was not built in place."""
    built = (ROOT / "build").glob("cp*/libreloc_solvers.a")
    return max(built, key=lambda path: path.stat().st_mtime, default=None)

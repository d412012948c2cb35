"""The native module exports its entry point and nothing that could clash with another library."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from reloc_core import _native


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm of the binutils")
def test_only_the_entry_point_is_exported():
    out = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", _native.__file__],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert [line.split()[0] for line in out.stdout.splitlines()] == ["PyInit__native"]

"""The stub of the native module is what its generator makes of the compiled module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from reloc_core import _native

SCRIPT = Path(__file__).parents[2] / "scripts" / "native_stub.py"


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("native_stub", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stub_is_in_step_with_the_module(generator):
    assert generator.STUB.read_text() == generator.render(_native), "run scripts/native_stub.py"


def test_a_changed_surface_shows(generator):
    members = {n: getattr(_native, n) for n in dir(_native) if not n.startswith("_")}
    assert generator.render(SimpleNamespace(**members)) == generator.render(_native)

    def kernel_name():
        """kernel_name(name: str = 'auto', more: int = 3) -> str"""

    changed = generator.render(SimpleNamespace(**members | {"kernel_name": kernel_name}))
    assert "def kernel_name(name: str = 'auto', more: int = 3) -> str: ..." in changed
    del members["p3p"]
    assert "def p3p(" not in generator.render(SimpleNamespace(**members))
    del members["generalized_pose"]
    with pytest.raises(SystemExit, match="generalized_pose"):
        generator.render(SimpleNamespace(**members))

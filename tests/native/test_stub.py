"""The stub file names exactly what the module has."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import reloc_core
from reloc_core import _native

STUB = Path(reloc_core.__file__).with_name("_native.pyi")


def test_stub_is_in_step_with_the_module():
    tree = ast.parse(STUB.read_text())
    stub = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    public = {name for name in dir(_native) if not name.startswith("_")}
    assert set(stub) == public
    for name, node in stub.items():
        member = getattr(_native, name)
        if isinstance(node, ast.ClassDef):
            methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            assert methods - {"__init__"} == {m for m in vars(member) if not m.startswith("_")}
        else:
            arguments = [a.arg for a in node.args.args]
            signature = inspect.cleandoc(member.__doc__ or "").splitlines()[0]
            assert [a for a in arguments if f"{a}:" in signature] == arguments, signature

"""The reference of the Python API names what there is, and all that is meant to be used."""

import importlib
import re
from pathlib import Path

import reloc_core

PAGE = Path(__file__).parents[2] / "docs" / "python_api.md"
# Named by the page's text, or no more than a string.
ELSEWHERE = {"hookimpl", "__version__"}


def test_the_reference_names_what_there_is():
    module, listed = "", set()
    for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)", PAGE.read_text(), re.MULTILINE):
        if kind in ("currentmodule", "automodule"):
            module = name
            importlib.import_module(module)
        else:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
            listed.add(name)
    assert listed >= set(reloc_core.__all__) - ELSEWHERE
    assert listed >= {"extend", "run_queries", "Outcome"}

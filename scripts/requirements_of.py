"""Print the requirements of an extra of the installed reloc: python scripts/requirements_of.py lint.

`pip install -e '.[lint]'` would build the native module once more; the tools alone need no build.
"""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

extra = sys.argv[1]
for line in requires("reloc") or []:
    found = Requirement(line)
    asked = found.marker is not None and not found.marker.evaluate({"extra": ""})
    if asked and found.marker.evaluate({"extra": extra}):
        print(f"{found.name}{found.specifier}")

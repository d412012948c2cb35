"""Write the stub file of the native module from the module itself.

    python scripts/native_stub.py [--check]

Names, arguments and defaults come from the compiled module; the tables here say what Python's types do
not: which arguments are arrays, and what is in the tuples. A table entry for something that the module
does not have is an error, as is an array or a tuple that no entry describes.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from types import ModuleType

STUB = Path(__file__).parents[1] / "reloc_core" / "_native.pyi"

HEADER = '''\
"""Written by scripts/native_stub.py; do not edit."""

from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[Any]
_Doubles = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]
_Singles = npt.NDArray[np.float32]
_Integers = npt.NDArray[np.int64]
# success, message, pose, covariance, inliers, their number, score, samples, noise, effective points,
# design effect, logarithm of the false alarms, change that the inliers want of the focal length and its
# standard deviation, focal length over the camera's, its standard deviation
_Result = tuple[
    bool, str, _Doubles, _Doubles, _Bools, int, float, int, float, float, float, float, float, float,
    float, float
]
'''

# What arguments are where the module says no more than `object`, `dict` or `list`; "function.argument"
# goes before "argument".
ARGUMENTS = {
    "points2d": "_Floats", "points3d": "_Floats", "points_cam": "_Floats",
    "points_a": "_Floats", "points_b": "_Floats", "weights": "_Floats | None",
    "variances": "_Floats | None", "values": "dict[str, Any]", "state": "Any",
    "absolute_pose_batch.problems":
        "list[tuple[_Floats, _Floats, Camera, _Floats | None, _Floats | None]]",
    "generalized_pose.images":
        "list[tuple[_Floats, _Floats, Camera, _Doubles, _Floats | None, _Floats | None]]",
    "means": "_Floats", "quaternions": "_Floats", "scales": "_Floats", "opacities": "_Floats",
    "channels": "_Floats", "features": "_Floats", "background": "_Floats | None",
    "grad_image": "_Floats | None", "grad_alpha": "_Floats | None", "grad_depth": "_Floats | None",
}  # fmt: skip

RESULTS = {
    "absolute_pose": "_Result",
    "absolute_pose_batch": "list[_Result]",
    "dsac_pose": "_Result",
    "generalized_pose": "_Result",
    "rgbd_pose": "_Result",
    "lens_equations": "tuple[_Doubles, _Doubles, _Doubles]",
    "located_pose": "_Doubles | None",
    "Camera.unproject": "tuple[float, float] | None",
    "splat_rasterize": "tuple[\n    Any, _Floats, _Floats, _Floats, _Floats, _Floats, _Floats, "
    "npt.NDArray[np.int32], int\n]",
    "splat_backward": "tuple[Any, ...]",
    "splat_accumulate": "tuple[_Floats, _Floats]",
}

_PLAIN = {
    "None": "None", "bool": "bool", "int": "int", "float": "float", "str": "str",
    "typing.SupportsInt | typing.SupportsIndex": "int", "typing.SupportsInt": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float", "typing.SupportsFloat": "float",
    "typing_extensions.CapsuleType": "Any",
}  # fmt: skip


class _Renderer:
    def __init__(self) -> None:
        self.used: set[str] = set()

    def _entry(self, table: dict[str, str], *names: str) -> str | None:
        for name in names:
            if name in table:
                self.used.add(name)
                return table[name]
        return None

    def _type(self, native: str, where: str) -> str:
        """A Python type for one that pybind11 names."""
        if native in _PLAIN:
            return _PLAIN[native]
        if match := re.fullmatch(r"reloc_core\._native\.(\w+)", native):
            return match[1]
        kinds = {
            "float64": "_Doubles",
            "float32": "_Singles",
            "int64": "_Integers",
            "bool": "_Bools",
        }
        if match := re.search(
            r"^(?:numpy\.ndarray|numpy\.typing|typing\.Annotated)\S*.*numpy\.(\w+)\]", native
        ):
            return kinds.get(match[1].rstrip("_"), "_Floats")
        if "Sequence[typing.Supports" in native:
            return "list[int]" if "SupportsInt" in native else "list[float]"
        if match := re.fullmatch(r"tuple\[(.*)\]", native):
            return f"tuple[{', '.join(self._type(t, where) for t in _split(match[1]))}]"
        raise SystemExit(f"{where}: say in scripts/native_stub.py what {native!r} is.")

    def signature(self, doc: str, where: str) -> str:
        """`(arguments) -> result` of the function whose docstring begins with pybind11's signature."""
        line = doc.splitlines()[0]
        inside, result = re.fullmatch(r"\w+\((.*)\) -> (.*)", line).groups()  # type: ignore[union-attr]
        arguments = []
        for argument in _split(inside):
            name, _, rest = argument.partition(": ")
            if name == "self":
                arguments.append("self")
                continue
            native, _, default = rest.partition(" = ")
            known = None
            if native in ("object", "dict", "list", "typing_extensions.CapsuleType"):
                known = self._entry(ARGUMENTS, f"{where}.{name}", name)
            text = f"{name}: {known or self._type(native, f'{where}.{name}')}"
            arguments.append(text + (f" = {default}" if default else ""))
        known = self._entry(RESULTS, where)
        return f"({', '.join(arguments)}) -> {known or self._type(result, where)}"


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "[(") - (c in "])")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [p for p in [*parts, text[start:].strip()] if p]


def render(module: ModuleType) -> str:
    """The stub's text."""
    renderer, lines = _Renderer(), [HEADER]
    for name in sorted(n for n in dir(module) if not n.startswith("_")):
        member = getattr(module, name)
        if not isinstance(member, type):
            lines.append(f"def {name}{renderer.signature(member.__doc__, name)}: ...")
            continue
        lines.append(f"\nclass {name}:")
        for method in ("__init__", *sorted(m for m in vars(member) if not m.startswith("_"))):
            where = name if method == "__init__" else f"{name}.{method}"
            text = renderer.signature(vars(member)[method].__doc__, where)
            lines.append(f"    def {method}{text}: ...")
        lines.append("")
    unused = {*ARGUMENTS, *RESULTS} - renderer.used - {"state"}
    if unused:
        raise SystemExit(f"The module has no {', '.join(sorted(unused))}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the stub, or with --check say whether it is in step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    from reloc_core import _native

    text = render(_native)
    if check:
        if STUB.read_text() != text:
            sys.exit("The stub is out of step: run python scripts/native_stub.py")
        return
    STUB.write_text(text)


if __name__ == "__main__":
    main()

"""PLY files of Gaussians as viewers of 3D Gaussian Splatting read them, and plain point clouds.

One element `vertex`, binary little endian, all float32: x y z nx ny nz f_dc_0..2 f_rest_0.. opacity
scale_0..2 rot_0..3, and semantic_0.. where Gaussians carry descriptors. `f_rest` is channel-major. Where
the world's coordinates are too large for float32, as in UTM, positions are written relative to an origin
that stands in a comment of the header, as `comment origin X Y Z`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsplat_loc.field.gaussians import Gaussians, checked
from reloc_core.errors import DataError
from reloc_core.maps import explain_os_errors
from reloc_core.types import Float64Array

_ORIGIN = "comment origin"
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


def write_ply(
    path: Path | str, gaussians: Gaussians, origin: Float64Array, features: Tensor | None = None
) -> None:
    """Write a field, atomically.

    Args:
        path: target file.
        gaussians: relative to `origin`.
        origin: (3,) of the field in the world; positions are written in world coordinates, unless float32
            would move them by more than a hundredth of a Gaussian's size.
        features: (N, D) descriptors or None.
    """
    path = Path(path)
    count = len(gaussians)
    rest = gaussians.colors[:, 1:].transpose(1, 2).reshape(count, -1)
    columns: dict[str, np.ndarray] = {}

    def add(names: Sequence[str], values: Tensor) -> None:
        table = values.detach().cpu().float().numpy().reshape(count, -1)
        columns.update({name: table[:, i] for i, name in enumerate(names)})

    shift = np.asarray(origin, np.float64)
    written = _too_large(gaussians, shift)
    world = gaussians.means.detach().cpu().double()
    add("xyz", world if written else world + torch.from_numpy(shift))
    add(("nx", "ny", "nz"), torch.zeros(count, 3))
    add([f"f_dc_{i}" for i in range(3)], gaussians.colors[:, 0])
    add([f"f_rest_{i}" for i in range(rest.shape[1])], rest)
    add(["opacity"], gaussians.opacities)
    add([f"scale_{i}" for i in range(3)], gaussians.scales)
    add([f"rot_{i}" for i in range(4)], gaussians.quaternions)
    if features is not None:
        add([f"semantic_{i}" for i in range(features.shape[1])], features)
    table = np.empty(count, [(name, "<f4") for name in columns])
    for name, values in columns.items():
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0"]
    if written:
        header.append(f"{_ORIGIN} {' '.join(repr(float(v)) for v in shift)}")
    header.append(f"element vertex {count}")
    header += [f"property float {name}" for name in columns] + ["end_header", ""]
    temporary = path.with_name(f".{path.name}.tmp")
    with explain_os_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write("\n".join(header).encode("ascii"))
                table.tofile(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _too_large(gaussians: Gaussians, origin: Float64Array) -> bool:
    """Whether float32 at the distance of `origin` blurs positions against the Gaussians' sizes."""
    if not len(gaussians):
        return False
    size = float(gaussians.scales.detach().exp().median())
    return float(np.spacing(np.float32(np.abs(origin).max()))) > 0.01 * size


def read_vertices(path: Path | str) -> tuple[np.ndarray, Float64Array]:
    """Vertices of a PLY file as a structured array, and the origin (3,) that they are relative to.

    Raises:
        DataError: no PLY file, truncated, or with properties of a kind points do not have.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    end = content.find(b"end_header")
    line_end = content.find(b"\n", end)
    if not content.startswith(b"ply") or end < 0 or line_end < 0:
        raise DataError(f"{path} is no PLY file.")
    layout, count, properties, element = "", 0, [], ""
    origin = np.zeros(3)
    for line in content[:end].decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:2] == _ORIGIN.split():
            origin = _origin(path, words[2:])
        elif words[:1] == ["format"]:
            layout = words[1]
        elif words[:1] == ["element"]:
            if element == "" and words[1] != "vertex":
                raise DataError(f"{path}: the first element is '{words[1]}', expected 'vertex'.")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] not in _TYPES:
                raise DataError(
                    f"{path}: vertex property '{' '.join(words[1:])}' is not supported."
                )
            properties.append((words[2], _TYPES[words[1]]))
    body = content[line_end + 1 :]
    if layout == "ascii":
        table = np.empty(count, properties)
        try:
            values = (
                np.loadtxt(io.BytesIO(body), max_rows=count, ndmin=2) if count else np.zeros((0, 0))
            )
            for i, (name, _) in enumerate(properties):
                table[name] = values[:, i]
        except (ValueError, IndexError):
            raise DataError(f"{path} is truncated or damaged.") from None
        return table, origin
    orders = {"binary_little_endian": "<", "binary_big_endian": ">"}
    if layout not in orders:
        raise DataError(f"{path}: unknown PLY format '{layout}'.")
    kind = np.dtype([(name, orders[layout] + code) for name, code in properties])
    if len(body) < count * kind.itemsize:
        raise DataError(
            f"{path} is truncated: {len(body)} bytes for {count} vertices of {kind.itemsize} bytes."
        )
    return np.frombuffer(body, kind, count), origin


def _origin(path: Path, words: Sequence[str]) -> Float64Array:
    try:
        origin = np.array([float(word) for word in words])
    except ValueError:
        origin = np.zeros(0)
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise DataError(f"{path}: '{_ORIGIN}' needs three numbers.")
    return origin


def read_ply(path: Path | str) -> tuple[Gaussians, Float64Array, Tensor | None]:
    """Read a 3DGS file: Gaussians, their origin in the world, and descriptors if there are any.

    Raises:
        DataError: no PLY file, or properties of Gaussians are missing.
        MapError: values that are not finite.
    """
    table, base = read_vertices(path)
    names = table.dtype.names or ()
    wanted = ["x", "y", "z", *(f"f_dc_{i}" for i in range(3)), "opacity",
              *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]  # fmt: skip
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(
            f"{path} has no {', '.join(missing)}: it is no file of 3D Gaussians. A plain point cloud "
            "is read with estimator.init.source=points."
        )
    if not len(table):
        raise DataError(f"{path} holds no Gaussians.")

    def columns(prefix: str) -> np.ndarray:
        found = sorted(
            (n for n in names if n.startswith(prefix)), key=lambda n: int(n[len(prefix) :])
        )
        stacked = [table[n].astype(np.float32) for n in found]
        return np.stack(stacked, 1) if stacked else np.zeros((len(table), 0), np.float32)

    positions = np.stack([table[c].astype(np.float64) for c in "xyz"], 1)
    rest = columns("f_rest_")
    if rest.shape[1] not in (0, 9, 24, 45):
        raise DataError(f"{path} has {rest.shape[1]} f_rest properties; expected 0, 9, 24 or 45.")
    finite = np.isfinite(positions).all(1)
    origin = positions[finite].mean(0) if finite.any() else np.zeros(3)
    dc = columns("f_dc_")[:, None]
    rest = rest.reshape(len(table), 3, -1).transpose(0, 2, 1)
    tensors = {
        "means": positions - origin,
        "colors": np.concatenate([dc, rest], 1),
        "opacities": table["opacity"].astype(np.float32),
        "scales": columns("scale_"),
        "quaternions": columns("rot_"),
    }
    gaussians = checked(
        {k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in tensors.items()},
        str(path),
    )
    semantic = columns("semantic_")
    features = torch.from_numpy(np.ascontiguousarray(semantic)) if semantic.shape[1] else None
    return gaussians, base + origin, features


def read_points(path: Path | str) -> tuple[Float64Array, np.ndarray]:
    """Points (N, 3) and colours (N, 3) uint8 (grey where there are none) of a PLY point cloud.

    Raises:
        DataError: no PLY file or no coordinates.
    """
    table, base = read_vertices(path)
    names = table.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise DataError(f"{path} has no x, y, z.")
    points = np.stack([table[c].astype(np.float64) for c in "xyz"], 1)
    rgb = np.full((len(points), 3), 128, np.uint8)
    if {"red", "green", "blue"} <= set(names):
        rgb = np.stack([table[c] for c in ("red", "green", "blue")], 1)
        rgb = (rgb * 255).astype(np.uint8) if rgb.dtype.kind == "f" else rgb.astype(np.uint8)
    kept = np.isfinite(points).all(1)
    return base + points[kept], rgb[kept]

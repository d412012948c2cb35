"""Files of the original project: retrieval graphs and predictions.

Graph files are pickled objects of PyTorch Geometric. They are read with stand-ins for its two classes and
`weights_only=True`, so nothing but tensors and those stand-ins is built, and no package is needed.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import tarfile
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reloc_core.errors import DataError
from reloc_core.geometry import quaternion_from_rotation
from reloc_core.interfaces import Dataset
from reloc_core.types import Float64Array

_FIELDS = ("x", "y", "edge_index", "edge_attr")
_DATA = "torch_geometric.data.data.Data"
_STORAGE = "torch_geometric.data.storage.GlobalStorage"


@dataclass(frozen=True)
class RetrievalGraph:
    """One graph of the original project; node 0 is the query.

    Attributes:
        x: (n, 3 * H * W) normalised images.
        y: (n, 6) pose vectors.
        edge_index: (2, E).
        edge_attr: (E, 6) target minus source: the opposite of what is trained.
    """

    x: Tensor
    y: Tensor
    edge_index: Tensor
    edge_attr: Tensor

    def images(self, height: int = 256) -> Tensor:
        """(n, 3, height, W)."""
        return self.x.view(len(self.x), 3, height, -1)


class _Data:
    """Stands for `torch_geometric.data.Data` of version 2."""


class _Storage:
    """Stands for its storage."""


class _GraphPickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes the stand-ins under the names of the classes that they stand for."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        for stand_in, known in ((_Data, _DATA), (_Storage, _STORAGE)):
            if obj is stand_in:
                module, _, attribute = known.rpartition(".")
                self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())
                self.memoize(obj)
                return
        super().save_global(obj, name)

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]
    dispatch[type] = save_global


def write_graph(file: Path | str | io.BytesIO, graph: RetrievalGraph) -> None:
    """Write one graph as the original's `data_*.pt`."""
    storage, data = _Storage(), _Data()
    storage._mapping = {name: getattr(graph, name) for name in _FIELDS}  # type: ignore[attr-defined]
    storage._parent = None  # type: ignore[attr-defined]
    data._store = storage  # type: ignore[attr-defined]
    module = types.ModuleType("graph_pickle")
    module.Pickler, module.dump = _GraphPickler, pickle.dump  # type: ignore[attr-defined]
    torch.save(data, file, pickle_module=module)


def read_graph(file: Path | str | io.BytesIO) -> RetrievalGraph:
    """Read one graph file of the original project.

    Raises:
        DataError: damaged, or holding other objects.
    """
    try:
        with torch.serialization.safe_globals([(_Data, _DATA), (_Storage, _STORAGE)]):
            data = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        name = "the member" if isinstance(file, io.BytesIO) else str(file)
        raise DataError(f"{name} is no readable retrieval graph: {error}") from error
    # Version 2 keeps fields in a storage, version 1 in the object itself.
    fields = vars(data)
    if "_store" in fields:
        fields = vars(fields["_store"])["_mapping"]
    missing = [name for name in _FIELDS if not isinstance(fields.get(name), Tensor)]
    if missing:
        raise DataError(f"The retrieval graph lacks {', '.join(missing)}.")
    return RetrievalGraph(**{name: fields[name] for name in _FIELDS})


def read_graphs(path: Path | str) -> Iterator[RetrievalGraph]:
    """Graphs of a folder (`processed/data_*.pt`) or of a tar archive, in the order of their numbers.

    Raises:
        DataError: there are none.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "processed" if (path / "processed").is_dir() else path
        files = sorted(folder.glob("data_*.pt"), key=lambda f: _number(f.name))
        if not files:
            raise DataError(f"{folder} holds no data_*.pt.")
        yield from (read_graph(file) for file in files)
        return
    try:
        # The published archives are gzip-compressed in spite of their name.
        with tarfile.open(path, "r:*") as archive:
            members = [m for m in archive.getmembers() if _is_graph(m)]
            if not members:
                raise DataError(f"{path} holds no data_*.pt.")
            for member in sorted(members, key=lambda m: _number(m.name)):
                content = archive.extractfile(member)
                assert content is not None
                yield read_graph(io.BytesIO(content.read()))
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is no readable archive of retrieval graphs: {error}") from error


def write_graphs(path: Path | str, graphs: Iterable[RetrievalGraph]) -> None:
    """Write a gzip-compressed archive with `NAME/processed/data_NNNNNN.pt`."""
    path = Path(path)
    name = path.name.split(".")[0]
    with tarfile.open(path, "w:gz") as archive:
        for number, graph in enumerate(graphs):
            content = io.BytesIO()
            write_graph(content, graph)
            member = tarfile.TarInfo(f"{name}/processed/data_{number:06d}.pt")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


def _is_graph(member: tarfile.TarInfo) -> bool:
    name = Path(member.name).name
    return member.isfile() and name.startswith("data_") and name.endswith(".pt")


def _number(name: str) -> int:
    digits = "".join(c for c in Path(name).stem if c.isdigit())
    return int(digits) if digits else -1


def write_predictions(
    folder: Path | str,
    prefix: str,
    names: Iterable[str],
    estimated: Float64Array,
    truth: Float64Array,
) -> Path:
    """Write `PREFIX__{median m}_{median deg}.npz` with the original's fields.

    `rel_path` holds plain strings where the original has pickled objects.

    Args:
        folder: where to.
        prefix: such as the name of the weights and the scene.
        names: of the images.
        estimated: (N, 4, 4) world_from_cam.
        truth: (N, 4, 4).
    """
    abs_q, targ_q = (quaternion_from_rotation(p[:, :3, :3]) for p in (estimated, truth))
    abs_t, targ_t = estimated[:, :3, 3], truth[:, :3, 3]
    metres = float(np.median(np.linalg.norm(abs_t - targ_t, axis=-1)))
    cosine = np.clip(np.abs((abs_q * targ_q).sum(-1)), 0, 1)
    degrees = math.degrees(float(np.median(2 * np.arccos(cosine))))
    path = Path(folder) / f"{prefix}__{metres:.2f}_{degrees:.1f}.npz"
    np.savez(
        path,
        rel_path=np.array(list(names), dtype=str),
        abs_t=abs_t,
        abs_q=abs_q,
        targ_t=targ_t,
        targ_q=targ_q,
    )
    return path


def export_predictions(run: Path | str, dataset: Dataset, folder: Path | str, prefix: str) -> Path:
    """Predictions of a finished `reloc evaluate` in the original's format.

    Images that were not localized are left out: the format has no place for them.

    Args:
        run: output directory of `reloc evaluate`.
        dataset: what was evaluated.
        folder: where to write.
        prefix: see `write_predictions`.

    Raises:
        DataError: no finished run, or one of other images.
    """
    file = Path(run) / "localizations.jsonl"
    if not file.is_file():
        raise DataError(f"{file} is missing: {run} is no output directory of 'reloc evaluate'.")
    truth = {f.name: f.world_from_cam for f in dataset.frames if f.world_from_cam is not None}
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    found = [e for e in lines if e["status"] == "localized" and e["name"] in truth]
    if not found:
        raise DataError(f"{file} has no localized image of {dataset.name} with a known pose.")
    return write_predictions(
        folder,
        prefix,
        [e["name"] for e in found],
        np.array([e["world_from_cam"] for e in found], np.float64),
        np.stack([truth[e["name"]] for e in found]),
    )

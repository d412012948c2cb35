"""Published checkpoints of the field (`nefes.tar`).

The files are pickled by PyTorch; they are read with `weights_only=True`, so they run no code.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from nefes_refine.published.mlp_field import PaperField
from reloc_core.errors import MapError
from reloc_core.features.weights import load_strictly

_PARTS = {"network_fn_state_dict": "coarse", "network_fine_state_dict": "fine"}


def read_field(path: Path | str) -> dict[str, dict[str, Tensor]]:
    """Tensors of a published field: "coarse" and "fine".

    Raises:
        MapError: missing, damaged, holding other objects than tensors, or of another layout.
    """
    if not Path(path).is_file():
        raise MapError(f"There is no field checkpoint at {path}. Check the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise MapError(
            f"{path} is no readable field checkpoint; it may be truncated or hold more than tensors."
        ) from error
    missing = [k for k in _PARTS if not isinstance(content, dict) or k not in content]
    if missing:
        raise MapError(f"{path} is no field checkpoint of NeFeS: it has no '{missing[0]}'.")
    return {
        part: {name.removeprefix("module."): value for name, value in content[key].items()}
        for key, part in _PARTS.items()
    }


def import_field(field: PaperField, path: Path | str) -> None:
    """Load the weights of a published field; both networks must fit key by key.

    Raises:
        MapError: see `read_field`, or a tensor does not fit.
    """
    for part, state in read_field(path).items():
        module = field.get_submodule(part)
        counters = {k: v for k, v in module.state_dict().items() if k.endswith("batches_tracked")}
        load_strictly(module, {**counters, **state}, f"{part} network of NeFeS")

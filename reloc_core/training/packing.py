"""Modules and optimizer states as flat tensors, for `MapWriter.save_checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reloc_core.errors import MapError

_OPTIMIZER = "optimizer"


def pack(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """Copies of parameters, buffers and the optimizer's moments.

    Args:
        modules: by a name without a dot, other than "optimizer".
        optimizer: AdamW, Adam or SGD: whatever keeps nothing but tensors per parameter.

    Returns:
        `MODULE.KEY` and `optimizer.NUMBER.KEY` on the CPU.
    """
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, parameter in enumerate(_parameters(optimizer)):
        assert optimizer is not None
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}.{index}.{key}"] = value
    # Clones: parameters may share storage, which the file format refuses.
    return {key: value.detach().cpu().clone() for key, value in tensors.items()}


def unpack(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:  # fmt: skip
    """Restore what `pack` returned, in place.

    Raises:
        MapError: the tensors are of other modules.
    """
    try:
        for name, module in modules.items():
            module.load_state_dict(part(tensors, name))
    except RuntimeError as error:
        raise MapError(
            "The checkpoint is of another network than this configuration builds: train again with "
            f"resume=false ({error})."
        ) from error
    for index, parameter in enumerate(_parameters(optimizer)):
        assert optimizer is not None
        found = part(tensors, f"{_OPTIMIZER}.{index}")
        if found:
            optimizer.state[parameter] = {
                # Adam keeps its step count on the CPU.
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in found.items()
            }


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors called `NAME.KEY`, by their keys."""
    start = f"{name}."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}


def _parameters(optimizer: torch.optim.Optimizer | None) -> list[nn.Parameter]:
    groups = optimizer.param_groups if optimizer is not None else []
    return [p for group in groups for p in group["params"]]

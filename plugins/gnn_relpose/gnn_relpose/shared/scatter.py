"""Reductions over edges that share a destination.

`torch_scatter` is used where it is installed; the PyTorch-native path gives the same values and is what
everybody else gets.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor


def torch_scatter_module() -> ModuleType | None:
    """The package, or None where it is missing or was built for another PyTorch."""
    try:
        return importlib.import_module("torch_scatter")
    except (ImportError, OSError):
        return None


def scatter_sum(source: Tensor, index: Tensor, size: int, backend: str = "auto") -> Tensor:
    """Sum rows of `source` (E, C) with equal `index` (E,); (size, C), zero for absent indices."""
    module = None if backend == "native" else torch_scatter_module()
    if module is not None:
        result: Tensor = module.scatter(source, index, dim=0, dim_size=size, reduce="sum")
        return result
    return source.new_zeros(size, *source.shape[1:]).index_add(0, index, source)


def scatter_mean(source: Tensor, index: Tensor, size: int, backend: str = "auto") -> Tensor:
    """Mean of rows of `source` (E, C) with equal `index` (E,); (size, C), zero for absent indices."""
    module = None if backend == "native" else torch_scatter_module()
    if module is not None:
        result: Tensor = module.scatter(source, index, dim=0, dim_size=size, reduce="mean")
        return result
    count = torch.bincount(index, minlength=size).clamp(min=1).to(source.dtype)
    total = source.new_zeros(size, *source.shape[1:]).index_add(0, index, source)
    return total / count.view(-1, *[1] * (source.ndim - 1))

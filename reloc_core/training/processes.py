"""The processes of one training run, started by torchrun or alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reloc_core.training import ranks


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: 0 for the one that writes.
        world: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes, in one message."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum_(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, part in zip(
            gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def share(self, value: Any) -> Any:
        """The value of rank 0."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag holds in any process."""
        return bool(self.sum_(torch.tensor(float(flag), device=self.device)) > 0)


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Join the other processes when torchrun started several, and leave at the end.

    Args:
        device: "cpu" or "cuda"; each local process takes a CUDA device of its own.
    """
    world = ranks.world()
    if device == "cuda":
        own = torch.device("cuda", ranks.local_rank())
        torch.cuda.set_device(own)
    else:
        own = torch.device(device)
    if world == 1:
        yield Processes(device=own)
        return
    ours = not dist.is_initialized()
    if ours:
        backend = "nccl" if own.type == "cuda" else "gloo"
        # Rank 0 may describe a large dataset while the others wait.
        dist.init_process_group(backend, timeout=timedelta(hours=6))
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), own)
    finally:
        if ours:
            dist.destroy_process_group()

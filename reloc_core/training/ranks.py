"""Which process of a distributed training this is, as torchrun tells it. Imports no PyTorch."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among those of the run; 0 is the one that writes, or the only one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))

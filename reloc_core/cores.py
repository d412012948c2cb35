"""The processor: what it can do, and sharing it with whatever else runs. Imports nothing at first."""

from __future__ import annotations

import os


def share_cores() -> None:
    """Let PyTorch's waiting threads sleep soon instead of spinning for milliseconds.

    On a machine with other work the spinning of one thread keeps the other from what it waits for:
    a small convolutional network ran 3 to 5 times slower on two threads than on one. With this it
    does not; an idle machine loses up to a tenth on the smallest networks, nothing on larger ones.
    GNU OpenMP reads the variable when it is loaded, so this comes before any import of PyTorch.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX512_BF16 or AMX); emulation is slower."""
    import torch

    # Private names, and of some releases only.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)

"""Sharing the processor with whatever else runs on it. Imports nothing."""

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
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")

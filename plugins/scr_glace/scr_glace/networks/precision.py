"""Which number format the training computes in."""

from __future__ import annotations

import torch

from reloc_core.cores import has_bfloat16
from reloc_core.errors import ConfigError


def autocast_dtype(precision: str, device: str) -> torch.dtype:
    """The format of matrix products: float32 for none.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "cpu" or "cuda".

    Raises:
        ConfigError: fp16 on the CPU, which PyTorch cannot train in at a useful speed.
    """
    if precision == "auto":
        if device == "cuda":
            return torch.float16
        return torch.bfloat16 if has_bfloat16() else torch.float32
    if precision == "fp16" and device == "cpu":
        raise ConfigError("estimator.train.precision=fp16 needs CUDA; use auto, bf16 or fp32.")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

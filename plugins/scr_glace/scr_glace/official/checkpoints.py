"""Official checkpoints of ACE and GLACE heads in and out.

Keys and shapes follow the released code (heads in fp16, 1x1 convolutions, buffers included).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reloc_core.errors import MapError, RelocError
from reloc_core.features.weights import load_strictly
from scr_glace.networks.head import Head, HeadSpec

_SCALES = ("max_scale", "min_scale", "max_inv_scale", "h_beta", "min_inv_scale")


def infer_spec(state: Mapping[str, Tensor]) -> HeadSpec:
    """The shape of a head from the keys of its official state dict.

    Raises:
        MapError: the keys are not those of an ACE or GLACE head.
    """
    for key in ("res3_conv1.weight", "res3_conv2.weight", "fc3.weight"):
        if key not in state:
            raise MapError(f"This is no ACE or GLACE head: it lacks '{key}'.")
    first, second, last = (state[f"{n}.weight"] for n in ("res3_conv1", "res3_conv2", "fc3"))
    if "centers" not in state and "mean" not in state:
        raise MapError("This is no ACE or GLACE head: it has neither 'mean' nor 'centers'.")
    if last.shape[0] not in (3, 4):
        raise MapError(f"This is no ACE or GLACE head: 'fc3' has {last.shape[0]} outputs.")
    homogeneous = last.shape[0] == 4
    scale = {
        # Stored in fp16 (0.01 as 0.0100021); the rounding is undone, since training used fp32.
        name: round(float(state[name]), 4) if homogeneous and name in state else default
        for name, default in (("min_scale", 0.01), ("max_scale", 4.0))
    }
    return HeadSpec(
        in_channels=first.shape[1],
        channels=first.shape[0],
        blocks=sum(bool(re.fullmatch(r"\d+c0\.weight", key)) for key in state),
        mlp_ratio=second.shape[0] / second.shape[1],
        homogeneous=homogeneous,
        clusters=state["centers"].shape[1] if "centers" in state else 1,
        **scale,
    )


def head_from_official(state: Mapping[str, Tensor]) -> Head:
    """A head with the weights of an official ACE, ACE0 or GLACE state dict.

    Raises:
        MapError: keys or shapes do not fit.
    """
    state = {k.removeprefix("module."): v for k, v in state.items()}
    spec = infer_spec(state)
    centers = state["centers"][0, :, :, 0, 0] if spec.clusters > 1 else state["mean"][:, :, 0, 0]
    head = Head(spec, centers.float())
    layers = {
        key: value[..., 0, 0] if value.dim() == 4 else value
        for key, value in state.items()
        if key not in (*_SCALES, "mean", "centers")
    }
    load_strictly(head, {**layers, "centers": centers}, "ACE or GLACE head")
    return head


def official_from_head(head: Head) -> dict[str, Tensor]:
    """The state dict that the official test scripts read: fp16, 1x1 convolutions, buffers."""
    spec = head.spec
    state: dict[str, Tensor] = {}
    if spec.homogeneous:
        low = 1 / spec.max_scale
        values = (spec.max_scale, spec.min_scale, low, 0.6931471805599453 / (1 - low),
                  1 / spec.min_scale)  # fmt: skip
        state = {name: torch.tensor([value]) for name, value in zip(_SCALES, values, strict=True)}
    centers = head.centers.detach()
    if spec.clusters > 1:
        state["centers"] = centers[None, :, :, None, None]
    else:
        state["mean"] = centers[:, :, None, None]
    for key, value in head.state_dict().items():
        if key != "centers":
            state[key] = value[:, :, None, None] if value.dim() == 2 else value
    return {key: value.half().contiguous().clone() for key, value in state.items()}


def write_head(head: Head, path: Path | str) -> None:
    """Write a head as an official `.pt` file, atomically.

    Raises:
        RelocError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        torch.save(official_from_head(head), temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        raise RelocError(f"Cannot write {path}: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)

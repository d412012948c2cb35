"""Official checkpoints in and out: the only place that reads PyTorch's pickle format.

`torch.load` runs with `weights_only=True`, so a file that holds anything but tensors is refused, not
executed. Keys and shapes follow the released code of ACE and GLACE (heads in fp16, 1x1 convolutions,
buffers included).
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reloc_core.errors import MapError, RelocError
from scr_glace.head import Head, HeadSpec

_SCALES = ("max_scale", "min_scale", "max_inv_scale", "h_beta", "min_inv_scale")


def read_state_dict(path: Path | str, what: str) -> dict[str, Tensor]:
    """Tensors of a `.pt`/`.pth` file, on the CPU.

    Args:
        path: the file.
        what: what it should be, for messages.

    Raises:
        MapError: missing, damaged, a Git-LFS pointer, or holding objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MapError(f"There is no {what} at {path}. Check the path.")
    with path.open("rb") as file:
        if file.read(16).startswith(b"version https:/"):
            raise MapError(
                f"{path} is a Git-LFS pointer, not the {what}: run 'git lfs pull' there."
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MapError(
            f"{path} holds Python objects other than tensors and is not loaded, because that would "
            f"run code from it. Save the plain state dict of the {what} instead."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise MapError(
            f"{path} is no readable {what}; it may be truncated. Get it again."
        ) from error
    if isinstance(content, Mapping) and "model_state_dict" in content:
        content = content["model_state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise MapError(f"{path} is no state dict of tensors, so it cannot be a {what}.")
    return dict(content)


def load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that must fit key by key and shape by shape.

    Raises:
        MapError: names the first key that differs.
    """
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    for key, shape in expected.items():
        if key not in state:
            raise MapError(f"This is no {what}: it lacks '{key}'.")
        if tuple(state[key].shape) != shape:
            raise MapError(
                f"This is no {what}: '{key}' has shape {tuple(state[key].shape)}, expected {shape}."
            )
    extra = sorted(set(state) - set(expected))
    if extra:
        raise MapError(f"This is no {what}: it has an unknown '{extra[0]}'.")
    module.load_state_dict({k: v.float() for k, v in state.items()})


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of a state dict: the identity of frozen weights."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


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


def head_from_official(state: Mapping[str, Tensor], fp32_output: bool = True) -> Head:
    """A head with the weights of an official ACE, ACE0 or GLACE state dict.

    Raises:
        MapError: keys or shapes do not fit.
    """
    state = {k.removeprefix("module."): v for k, v in state.items()}
    spec = infer_spec(state)
    centers = state["centers"][0, :, :, 0, 0] if spec.clusters > 1 else state["mean"][:, :, 0, 0]
    head = Head(spec, centers.float(), fp32_output)
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

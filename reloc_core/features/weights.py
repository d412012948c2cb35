"""Pretrained weights: the only place that reads PyTorch's pickle format.

`torch.load` runs with `weights_only=True`, so a file that holds anything but tensors is refused, not
executed.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reloc_core.errors import MapError

_SPARE_BYTES = 1 << 20


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
    _check_expansion(path, what)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MapError(
            f"{path} holds Python objects other than tensors and is not loaded, because that would "
            f"run code from it. Save the plain state dict of the {what} instead."
        ) from error
    except Exception as error:  # PyTorch raises whatever damaged bytes lead it to
        raise MapError(
            f"{path} is no readable {what}; it may be truncated. Get it again."
        ) from error
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise MapError(f"{path} is no state dict of tensors, so it cannot be a {what}.")
    return dict(content)


def _check_expansion(path: Path, what: str) -> None:
    """Refuse archives whose tensors take more room than the file: PyTorch writes them uncompressed."""
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(info.file_size for info in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return  # an older format, or damaged
    if size > 2 * path.stat().st_size + _SPARE_BYTES:
        raise MapError(
            f"{path} is no {what} as PyTorch writes it: its content of {size} bytes is compressed."
        )


def check_layout(module: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Check that a state dict fits a module key by key and shape by shape, and is finite.

    The module may be on the device "meta", which costs no memory.

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
    broken = next((k for k, v in state.items() if not torch.isfinite(v).all()), None)
    if broken:
        raise MapError(f"This {what} is damaged: '{broken}' is not finite.")


def load_strictly(module: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict that must fit key by key and shape by shape.

    Raises:
        MapError: names the first key that differs.
    """
    check_layout(module, state, what)
    module.load_state_dict({k: v.float() for k, v in state.items()})


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of a state dict: the identity of frozen weights."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""Where the native solvers run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from reloc_core import _native
from reloc_core.errors import ConfigError, DeviceError, InputError
from reloc_core.types import Camera

_BUILD = (
    "this build of reloc has no CUDA solver. With a CUDA toolkit (nvcc) installed, build it by "
    "`pip install . -C cmake.define.RELOC_CUDA=ON` in the source tree, or use device='cpu'"
)


def cuda_devices() -> int:
    """Number of CUDA devices that the solvers can use; 0 in a build without CUDA.

    Raises:
        DeviceError: there is a CUDA driver, but it does not work.
    """
    try:
        return _native.cuda_device_count()
    except RuntimeError as error:
        raise DeviceError(f"{error}.") from None


def device_index(device: object) -> int:
    """Index of the CUDA device, -1 for the CPU.

    Args:
        device: "cpu", "cuda" (the first device) or "cuda:N".

    Raises:
        ConfigError: the name is unknown, the build has no CUDA solver, or there is no such device.
        DeviceError: the CUDA driver does not work.
    """
    if device == "cpu":
        return -1
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if match is None:
        raise ConfigError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}.")
    if not _native.cuda_built():
        raise ConfigError(f"device is {device!r}, but {_BUILD}.")
    index, found = int(match.group(1) or 0), cuda_devices()
    if index >= found:
        devices = "no CUDA device" if found == 0 else f"{found} CUDA device(s), counted from 0"
        raise ConfigError(f"device is {device!r}, but this machine has {devices}.")
    return index


def check_supported(options: Any, cameras: Iterable[object]) -> None:
    """Refuse what the CUDA solver does not do.

    Raises:
        ConfigError: an option is not there on CUDA.
        InputError: a camera has lens distortion.
    """
    if getattr(options, "estimate_focal", False):
        raise ConfigError("estimate_focal is not there on CUDA: use device='cpu'.")
    for camera in cameras:
        if isinstance(camera, Camera) and not camera.is_pinhole:
            raise InputError(
                f"The CUDA solver takes cameras without lens distortion, got {camera.model}. "
                "Undistort the points first, or use device='cpu'."
            )

"""Leases of GPUs by lock files, so that several sweeps of one machine share its devices.

A lease is an advisory lock (`flock`) on a file per device. The job's process inherits it, and the kernel
gives it back when that process ends, however it ends; nothing has to be cleaned up after a kill.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reloc_core.errors import ConfigError, RelocError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Lease:
    """A device that is ours until `release`, or until all processes that inherited it have ended.

    Attributes:
        device: as `CUDA_VISIBLE_DEVICES` takes it.
        descriptor: of the locked file; a child that inherits it holds the lease too.
    """

    device: str
    descriptor: int

    def release(self) -> None:
        """Close our side of it."""
        os.close(self.descriptor)


class Leases:
    """The devices of this machine and who has them.

    Args:
        devices: names as in `CUDA_VISIBLE_DEVICES`.
        per_device: leases of each.
        folder: of the lock files; None for one that all of this machine share.
    """

    def __init__(
        self, devices: Sequence[str], per_device: int = 1, folder: Path | str | None = None
    ) -> None:
        if not devices or len(set(devices)) != len(devices):
            raise ConfigError(f"hydra.launcher.devices must be different devices, got {devices}.")
        if per_device < 1:
            raise ConfigError("hydra.launcher.per_device must be at least 1.")
        for device in devices:
            if not device or not device.replace("-", "").isalnum():
                raise ConfigError(f"hydra.launcher.devices: '{device}' is no GPU; write 0, 1, ...")
        # The first lease of every device before the second of any.
        self._slots = [(device, slot) for slot in range(per_device) for device in devices]
        self._folder = Path(folder) if folder else Path(tempfile.gettempdir()) / "reloc-gpu-leases"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RelocError(
                f"{self._folder} cannot be made: {error}. Choose hydra.launcher.locks=DIR."
            ) from error

    def acquire(self) -> Lease | None:
        """A free device, None while there is none."""
        for device, slot in self._slots:
            descriptor = self._open(self._folder / f"{device}.{slot}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return Lease(device, descriptor)
        return None

    def _open(self, path: Path) -> int:
        try:
            if path.exists():  # maybe another user's
                return os.open(path, os.O_RDONLY)
            return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise RelocError(
                f"{path} cannot be locked: {error}. Choose hydra.launcher.locks=DIR."
            ) from error


def visible_devices(chosen: Sequence[object] | None) -> list[str]:
    """The chosen devices, or those of `CUDA_VISIBLE_DEVICES`, or those that `nvidia-smi` lists.

    Raises:
        ConfigError: there are none.
    """
    if chosen is not None:
        return [str(device).strip() for device in chosen]
    if VISIBLE in os.environ:
        devices = [device.strip() for device in os.environ[VISIBLE].split(",") if device.strip()]
    else:
        devices = _listed()
    if not devices:
        raise ConfigError(
            "No GPU was found. Name them, as in 'hydra.launcher.devices=[0,1]', or run on the CPU "
            "with hydra/launcher=joblib."
        )
    return devices


def _listed() -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if done.returncode == 0 else []

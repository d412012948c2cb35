"""A Hydra launcher that gives every job of a sweep a GPU of its own: `hydra/launcher=gpus`.

Each job is a process with `CUDA_VISIBLE_DEVICES` set before anything is imported, so the job sees its
device as the only one. Devices are leased from `reloc_core.cli.leases`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from reloc_core.cli.jobs import objective
from reloc_core.cli.leases import VISIBLE, Lease, Leases, visible_devices
from reloc_core.evaluation.sweeps import job_result

LOG_FILE = "job.log"
_POLL_SECONDS = 0.1


@dataclass
class GpuLauncherConfig:
    """Options of `hydra/launcher=gpus`.

    Attributes:
        devices: as in `CUDA_VISIBLE_DEVICES`; null for all that are visible.
        per_device: jobs that share a device.
        locks: folder of the lock files; null for one that all sweeps of this machine share.
    """

    _target_: str = "hydra_plugins.reloc.GpuLauncher"
    devices: list[Any] | None = None
    per_device: int = 1
    locks: str | None = None


@dataclass
class _Job:
    """A job that runs."""

    number: int
    overrides: list[str]
    folder: Path
    config: DictConfig
    lease: Lease
    process: subprocess.Popen[bytes]
    begin: float = field(default_factory=time.monotonic)


class GpuLauncher(Launcher):
    """Runs jobs as processes, one per leased device.

    Args:
        devices: see `GpuLauncherConfig`.
        per_device: see `GpuLauncherConfig`.
        locks: see `GpuLauncherConfig`.
    """

    def __init__(
        self, devices: Sequence[object] | None = None, per_device: int = 1, locks: str | None = None
    ) -> None:
        # Checked in `launch`: Hydra would wrap an error that is raised here.
        self._options = devices, per_device, locks
        self._config = DictConfig({})
        self._context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self._context, self._config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs; the objective of each is read from its `result.json`."""
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        devices, per_device, locks = self._options
        leases = Leases(visible_devices(devices), per_device, locks)
        waiting = [
            (initial_job_idx + number, list(overrides))
            for number, overrides in enumerate(job_overrides)
        ]
        running: list[_Job] = []
        returns: dict[int, JobReturn] = {}
        try:
            while waiting or running:
                while waiting and (lease := leases.acquire()) is not None:
                    running.append(self._start(*waiting.pop(0), lease))
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    returns[job.number] = self._finish(job)
                time.sleep(_POLL_SECONDS)
        finally:
            for job in running:  # Ctrl-C: jobs end in order and can be resumed
                job.process.terminate()
            for job in running:
                job.process.wait()
        return [returns[number] for number in sorted(returns)]

    def _start(self, number: int, overrides: list[str], lease: Lease) -> _Job:
        assert self._context is not None
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(config)
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        folder.mkdir(parents=True, exist_ok=True)
        task = {
            "verb": str(config.hydra.job.config_name),
            "overrides": OmegaConf.to_container(config.hydra.overrides.task, resolve=False),
            "output_dir": str(folder),
        }
        with (folder / LOG_FILE).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "reloc_core.cli.job", json.dumps(task)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, VISIBLE: lease.device},
                pass_fds=[lease.descriptor],
            )
        shown = " ".join(filter_overrides(overrides))
        print(f"#{number} on GPU {lease.device}: {shown}", flush=True)
        return _Job(number, overrides, folder, config, lease, process)

    @staticmethod
    def _finish(job: _Job) -> JobReturn:
        job.lease.release()
        status = job_result(job.folder).get("status", "no result")
        seconds = time.monotonic() - job.begin
        where = "" if status == "ok" else f", see {job.folder / LOG_FILE}"
        print(f"#{job.number}: {status} after {seconds:.0f} s{where}", flush=True)
        found = JobReturn(overrides=job.overrides, cfg=job.config, status=JobStatus.COMPLETED)
        found.return_value = objective(job.config, job.folder)
        return found


def register() -> None:
    """Make `hydra/launcher=gpus` known to Hydra in this process.

    Hydra takes launchers of the package `hydra_plugins` alone, but what really lies there reaches every
    Hydra program of the environment. So the class is there in name only, and only here.
    """
    package, _, name = GpuLauncherConfig._target_.rpartition(".")
    launcher = type(name, (GpuLauncher,), {"__module__": package})
    try:
        importlib.import_module("hydra_plugins")
    except ImportError:  # no other plugin of Hydra is installed
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = ModuleType(package)
    setattr(module, name, launcher)
    sys.modules[package] = module
    Plugins.instance().register(launcher)
    ConfigStore.instance().store(
        group="hydra/launcher", name="gpus", node=GpuLauncherConfig, provider="reloc"
    )

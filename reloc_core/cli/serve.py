"""`reloc serve`: maps behind HTTP."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.cli.localize import camera_config
from reloc_core.config import plain
from reloc_core.errors import ConfigError
from reloc_core.localizer import Localizer
from reloc_core.runs import console, observed_run, usable_cpus
from reloc_core.types import Camera


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Load the maps, answer requests until SIGTERM or Ctrl-C."""
    try:
        from reloc_core.serving.limits import Limits
        from reloc_core.serving.server import make_server
        from reloc_core.serving.service import LocalizationService
    except ImportError as error:
        raise ConfigError(
            f"'reloc serve' needs {error.name}: pip install 'reloc[serve]'"
        ) from error
    try:
        limits: Any = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(Limits), plain(cfg.limits))
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"limits: {str(error).splitlines()[0]}") from error
    limits.check()
    cores = usable_cpus()
    limits.workers = limits.workers or min(cores, 4)
    # The workers share the cores.
    threads = cfg.threads or max(1, cores // limits.workers)
    camera = _camera(cfg)
    localizers = {}
    for name, map_dir in _maps(cfg).items():
        localizers[name] = Localizer.from_map(
            map_dir,
            plain(cfg.solver) if cfg.get("solver") else None,
            plain(cfg.refiners),
            plain(cfg.estimator),
            cfg.device,
            threads,
            cfg.seed,
            limits.workers,
            cfg.orientation,
        )
        console.print(f"{name}: {map_dir}", markup=False)
    service = LocalizationService(localizers, limits, camera)
    server = make_server(service, cfg.host, cfg.port, log_level="warning")
    sockets = [_listen(server)]
    host, port = sockets[0].getsockname()[:2]
    print(f"Listening at http://{host}:{port}, explained at http://{host}:{port}/docs", flush=True)
    with observed_run("serve", cfg) as result:
        server.run(sockets=sockets)
        result.update(service.metrics.counts)
    console.print("Closed.")
    return 0


def _listen(server: Any) -> Any:
    """The listening socket; a taken port is the user's to know."""
    import socket

    family = socket.AF_INET6 if ":" in server.config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((server.config.host, server.config.port))
        listener.listen(128)  # clients may come from now on
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen at {server.config.host}:{server.config.port}: {error}. Choose another port."
        ) from error
    return listener


def _maps(cfg: DictConfig) -> dict[str, str]:
    """Map directories by name."""
    maps = dict(plain(cfg.maps) or {})
    if bool(maps) == (cfg.map_dir is not None):
        raise ConfigError("Give either map_dir=MAP or 'maps={NAME: MAP, ...}'.")
    if cfg.map_dir is not None:
        name = re.sub(r"[^\w-]", "_", str(cfg.map_dir).rstrip("/").rpartition("/")[2]) or "map"
        return {name: str(cfg.map_dir)}
    for name, directory in maps.items():
        if not re.fullmatch(r"[\w-]{1,60}", str(name)) or not isinstance(directory, str):
            raise ConfigError(
                f"maps: '{name}: {directory}' must be a name of letters and digits, and a folder."
            )
    return maps


def _camera(cfg: DictConfig) -> Camera | float | Literal["map"] | None:
    """The camera of images that come without one."""
    config = camera_config(cfg)
    if config.from_map:
        if config.params is not None or config.focal is not None:
            raise ConfigError("Give either camera.from_map or camera.focal or camera.params.")
        return "map"
    if config.params is not None:
        if config.width is None or config.height is None:
            raise ConfigError("camera.params needs camera.width and camera.height here.")
        from reloc_core.datasets.images import camera_from_config

        return camera_from_config(config, config.width, config.height)
    if config.focal is not None and not 0 < config.focal < sys.maxsize:
        raise ConfigError(f"camera.focal must be positive, got {config.focal}.")
    return config.focal

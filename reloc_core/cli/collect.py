"""`reloc collect`: several maps opened as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from reloc_core.alignment import align, scale_of, some_frames
from reloc_core.collection import INTERFACE, Member, merge, open_pipeline
from reloc_core.config import TARGET, build, plain
from reloc_core.datasets.upright import Upright
from reloc_core.errors import ConfigError, MapError, did_you_mean
from reloc_core.evaluation.units import METRE
from reloc_core.interfaces import Dataset
from reloc_core.maps import Map
from reloc_core.runs import console, resolve_runtime, show_progress
from reloc_core.types import Float64Array

_KNOWN = ("map_dir", "dataset", "world_from_map")


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    if cfg.maps is None:
        _show(Map.open(cfg.map_dir))
        return 0
    entries = plain(cfg.maps)
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(
            "maps takes {NAME: {map_dir: MAP, dataset: {name: ace, root: DIR}}, ...}."
        )
    if cfg.reference is not None and cfg.reference not in entries:
        raise ConfigError(
            f"reference: there is no map '{cfg.reference}'.{did_you_mean(str(cfg.reference), entries)}"
        )
    runtime = resolve_runtime(cfg.device, cfg.threads, cfg.seed)
    opened = {str(name): _entry(str(name), entry) for name, entry in entries.items()}
    reference = None
    members = {}
    for name, (scene_map, dataset, pose) in opened.items():
        if pose is None and cfg.reference not in (None, name):
            if reference is None:
                reference = open_pipeline(opened[str(cfg.reference)][0], runtime=runtime)
            pose = align(reference, dataset)
            scale = scale_of(pose)
            times = "" if abs(scale - 1) < 1e-6 else f", {scale:.4g} times as large"
            console.print(
                f"{name}: lies at {np.round(pose[:3, 3], 3).tolist()}{times}.", markup=False
            )
        members[name] = Member(scene_map, dataset, np.eye(4) if pose is None else pose)
    total = sum(len(some_frames(member.dataset)) for member in members.values())
    with show_progress("Describing images", total) as bar:
        made = merge(
            members, cfg.map_dir, memory_mb=cfg.memory_mb, runtime=runtime,
            overwrite=cfg.overwrite, advance=bar.advance,
        )  # fmt: skip
    _show(made)
    return 0


def _entry(name: str, entry: Any) -> tuple[Map, Dataset, Float64Array | None]:
    """A map, its images, and where it is said to lie."""
    if not isinstance(entry, Mapping) or not {"map_dir", "dataset"} <= set(entry):
        raise ConfigError(f"maps.{name} needs map_dir and dataset, as {{name: ace, root: DIR}}.")
    for key in entry:
        if key not in _KNOWN:
            raise ConfigError(f"maps.{name}: there is no '{key}'.{did_you_mean(str(key), _KNOWN)}")
    options = entry["dataset"]
    if not isinstance(options, Mapping) or "name" not in options:
        raise ConfigError(f"maps.{name}.dataset takes {{name: ace, root: DIR}} or the like.")
    options = {**options, TARGET: options["name"]}
    del options["name"]
    dataset: Dataset = build(options, "dataset")
    pose = None
    if entry.get("world_from_map") is not None:
        try:
            pose = np.asarray(entry["world_from_map"], np.float64)
        except (TypeError, ValueError):
            pose = np.zeros(0)
        turn = pose[:3, :3] if pose.shape == (4, 4) else np.zeros((3, 3))
        if dataset.unit != METRE and np.linalg.det(turn) > 0:
            turn = turn / scale_of(pose)
        rigid = np.allclose(turn @ turn.T, np.eye(3), atol=1e-4) and np.linalg.det(turn) > 0
        if not rigid or not np.isfinite(pose).all() or not np.allclose(pose[3], [0, 0, 0, 1]):
            raise ConfigError(
                f"maps.{name}.world_from_map must be a rigid 4x4 matrix"
                f"{'' if dataset.unit == METRE else ', but for a scale'}."
            )
    return Map.open(str(entry["map_dir"])), Upright.of(dataset), pose


def _show(scene_map: Map) -> None:
    """List what a collection holds."""
    if scene_map.info.interface != INTERFACE:
        raise MapError(f"{scene_map.path} is a map, not a collection of maps.")
    for name, place in dict(scene_map.info.config["members"]).items():
        console.print(f"{name}: {place}", markup=False)
    console.print(
        f"{scene_map.path}: {scene_map.info.dataset.get('frames')} mapping images, "
        f"{scene_map.bytes / 1e6:.1f} MB. Use it as map_dir={scene_map.path}.",
        markup=False, soft_wrap=True,
    )  # fmt: skip

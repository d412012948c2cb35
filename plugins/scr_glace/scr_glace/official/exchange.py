"""Official heads as maps, and maps as official heads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from reloc_core.config import typed_config
from reloc_core.errors import MapError
from reloc_core.features.weights import read_state_dict
from reloc_core.interfaces import Dataset, Run, Runtime
from reloc_core.maps import Map, MapInfo, MapWriter
from reloc_core.registry import Registry
from scr_glace import plugin
from scr_glace.config import GlaceConfig
from scr_glace.estimator import GlaceEstimator, scene_tensors
from scr_glace.networks.encoder import Encoder, build_encoder
from scr_glace.networks.global_descriptor import build_descriptor
from scr_glace.networks.head import Head
from scr_glace.official.checkpoints import head_from_official, write_head
from scr_glace.training.mapper import Scene

__all__ = ["export_head", "import_head", "import_weights"]


def import_head(
    path: Path | str, map_dir: Path | str, config: GlaceConfig, overwrite: bool = False
) -> Map:
    """Make a map of an official ACE, ACE0 or GLACE head.

    Args:
        path: the official `.pt` file.
        map_dir: the map to write.
        config: which encoder (with its weights) and which global descriptor the head was trained
            with; its `head` options are taken from the file.
        overwrite: replace a map.

    Returns:
        the finished map; localize with it as with any other.

    Raises:
        MapError: the file is no such head, or the encoder or descriptor does not fit it.
        ConfigError: weights are missing.
    """
    head, encoder = _fitting(path, config)
    spec = head.spec
    config.head.channels, config.head.blocks = spec.channels, spec.blocks
    config.head.mlp_ratio, config.head.homogeneous = spec.mlp_ratio, spec.homogeneous
    config.head.decoder_clusters = spec.clusters
    config.head.min_scale, config.head.max_scale = spec.min_scale, spec.max_scale
    info = MapInfo(
        interface="estimator", component="scr_glace", plugin="scr_glace", plugin_version="",
        config=asdict(config),
        dataset={"name": Path(path).stem, "fingerprint": "imported", "frames": 0},
    )  # fmt: skip
    writer = MapWriter(map_dir, info, resume=False, overwrite=overwrite)
    _write(head, encoder, config, writer)
    return writer.finish()


def import_weights(path: Path, config: GlaceConfig, dataset: Dataset, run: Run) -> None:
    """Write the map of an official head in the place of a training; see `Component.importer`.

    Args:
        path: the official `.pt` file.
        config: encoder and global descriptor that the head was trained with.
        dataset: the images that it was trained on; only their poses are used, by reports.
        run: whose map is written.

    Raises:
        MapError: the file is no such head, or the encoder or descriptor does not fit it.
        ConfigError: weights are missing.
    """
    head, encoder = _fitting(path, config)
    _write(head, encoder, config, run.map)


def _fitting(path: Path | str, config: GlaceConfig) -> tuple[Head, Encoder]:
    """The head of a file, and the encoder, if both fit the configured global descriptor."""
    head = head_from_official(read_state_dict(path, "ACE or GLACE head"))
    encoder = build_encoder(config.encoder)
    expected = head.spec.in_channels - encoder.channels
    descriptor = build_descriptor(config.global_descriptor)
    if config.global_descriptor.name == "vlad" or descriptor.dimension != expected:
        need = f"{expected} global channels" if expected else "no global descriptor (name=none)"
        raise MapError(
            f"{path} takes {head.spec.in_channels} channels: {encoder.channels} of the encoder "
            f"'{encoder.name}' and {need}, not those of '{config.global_descriptor.name}'."
        )
    return head, encoder


def _write(head: Head, encoder: Encoder, config: GlaceConfig, writer: MapWriter) -> None:
    width = head.spec.in_channels - encoder.channels
    scene = Scene(head, np.zeros(3), 1.0, config.image, torch.zeros(0, width), {})
    writer.save("head", *scene_tensors(scene, encoder, config))
    writer.details.update(imported=True, parameters=sum(p.numel() for p in head.parameters()))


def export_head(scene_map: Map, path: Path | str, runtime: Runtime | None = None) -> None:
    """Write a map's head as an official `.pt` file (fp16).

    The official programs use it with the same encoder and descriptors only. The map's origin is added
    to the anchor points, which fp16 rounds: 1/64 m at 16 m from the origin.

    Raises:
        MapError: the map cannot be read.
    """
    registry = Registry()
    plugin.reloc_register_components(registry=registry)
    component = registry.get("estimator", "scr_glace")
    if scene_map.info.component != component.name:
        raise MapError(f"{scene_map.path} is a map of '{scene_map.info.component}'.")
    estimator = GlaceEstimator(typed_config(component, scene_map.info.config))
    estimator.load(scene_map, runtime or Runtime())
    scene = estimator.scene
    assert scene is not None
    if scene.unit != 1.0:
        raise MapError(
            f"{scene_map.path} was trained with points.enabled=true: its head's unit is "
            f"{scene.unit:.3g} of the scene's, which the official programs know nothing of."
        )
    scale = estimator.config.global_descriptor.scale
    if scene.descriptors.shape[1] and scale != 1.0:
        raise MapError(
            f"{scene_map.path} was trained with global_descriptor.scale={scale:g}; the official programs "
            "give a head unit vectors."
        )
    with torch.no_grad():
        scene.head.centers += torch.from_numpy(scene.origin).float()
    write_head(scene.head, path)

"""`reloc localize`: poses of images that have no ground truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.cli.evaluate import finish, load_pipeline, localize_dataset, report_results
from reloc_core.config import plain
from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder
from reloc_core.errors import ConfigError
from reloc_core.registry import default_registry
from reloc_core.runs import RunDirectory


def camera_config(cfg: DictConfig) -> CameraConfig:
    """The typed camera options of a config."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(CameraConfig), plain(cfg.camera))
    except OmegaConfBaseException as error:
        raise ConfigError(f"camera: {str(error).splitlines()[0]}") from error
    config = OmegaConf.to_object(typed)
    assert isinstance(config, CameraConfig)
    return config


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb: one JSON line per image on standard output, all files in the output directory."""
    images = plain(cfg.images)
    dataset = ImageFolder(images, camera_config(cfg))
    pipeline, scene_map, method = load_pipeline(cfg)
    record = RunDirectory(cfg.output_dir, "localize", cfg, overrides, pipeline.runtime)
    default_registry().manager.hook.reloc_run_started(verb="localize", config=plain(cfg))
    record.create()
    for note in dataset.notes:
        record.note(note)
    results = localize_dataset(pipeline, dataset, record, "Localizing")
    if not sys.stdout.isatty():
        for result in results:
            print(json.dumps(result.as_dict()))
    content = report_results(
        results, dataset, pipeline, scene_map, method, record, bool(cfg.report)
    )
    return finish(record, results, content)

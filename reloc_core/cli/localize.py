"""`reloc localize`: poses of images that have no ground truth."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.cli.evaluate import (
    finish,
    load_pipeline,
    localize_dataset,
    report_results,
    write_published_pose_log,
)
from reloc_core.config import plain
from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder
from reloc_core.datasets.stream import VideoStream, is_stream
from reloc_core.errors import ConfigError, RelocError
from reloc_core.evaluation import QueryResult, query_result, write_result_files
from reloc_core.interfaces import Dataset
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map, explain_os_errors
from reloc_core.pipeline import Pipeline
from reloc_core.registry import default_registry
from reloc_core.runs import RunDirectory
from reloc_core.types import Camera, Localization


def camera_config(cfg: DictConfig) -> CameraConfig:
    """The typed camera options of a config."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(CameraConfig), plain(cfg.camera))
    except OmegaConfBaseException as error:
        raise ConfigError(f"camera: {str(error).splitlines()[0]}") from error
    config = OmegaConf.to_object(typed)
    assert isinstance(config, CameraConfig)
    return config


def mapping_cameras(cfg: DictConfig, camera: CameraConfig) -> tuple[Camera, ...]:
    """The cameras of the mapping images, where the camera options ask for them."""
    if not camera.from_map:
        return ()
    if cfg.map_dir is None:
        raise ConfigError("camera.from_map needs map_dir.")
    return mapped_frames(Map.open(cfg.map_dir)).cameras


def show(result: QueryResult) -> None:
    """Print a result for the program that reads standard output, as soon as it is known."""
    if not sys.stdout.isatty():
        print(json.dumps(result.as_dict(), allow_nan=False), flush=True)


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb: one JSON line per image on standard output, all files in the output directory."""
    images, camera = plain(cfg.images), camera_config(cfg)
    stream = dataset = None
    mapped = mapping_cameras(cfg, camera)
    if is_stream(images):
        stream = VideoStream(images, camera, cfg.frame_step, cfg.max_frames, mapped)
    else:
        dataset = select_images(ImageFolder(images, camera, mapped), cfg)
    pipeline, scene_map, method = load_pipeline(cfg)
    record = RunDirectory(cfg.output_dir, "localize", cfg, overrides, pipeline.runtime)
    default_registry().manager.hook.reloc_run_started(verb="localize", config=plain(cfg))
    record.create()
    if stream is not None:
        return _run_stream(stream, pipeline, scene_map, record)
    assert dataset is not None
    for note in dataset.notes:
        record.note(note)
    results = localize_dataset(pipeline, dataset, record, "Localizing", show)
    content = report_results(
        results, dataset, pipeline, scene_map, method, record, bool(cfg.report)
    )
    return finish(record, results, content)


def select_images(folder: ImageFolder, cfg: DictConfig) -> Dataset:
    """Every `frame_step`-th image, at most `max_frames`, as one video if `video` says so."""
    if cfg.frame_step < 1 or (cfg.max_frames is not None and cfg.max_frames < 1):
        raise ConfigError("frame_step and max_frames must be at least 1.")
    chosen = range(0, len(folder), cfg.frame_step)[: cfg.max_frames]
    return folder.selected(chosen, folder.name if cfg.video else None)


def _run_stream(
    stream: VideoStream, pipeline: Pipeline, scene_map: Map, record: RunDirectory
) -> int:
    """Localize a video or a camera until it ends, or until Ctrl-C, which is how cameras end."""
    hook = default_registry().manager.hook.reloc_query_localized
    results: list[QueryResult] = []
    record.note(f"Localizing {stream.name}" + ("; Ctrl-C ends it." if stream.live else "."))
    pipeline.start_sequence()
    try:
        with record.progress("Localizing", len(stream)) as progress:
            for query in stream:
                begin = time.perf_counter()
                try:
                    found = pipeline.localize(query)
                except RelocError as error:
                    found = Localization.failure(f"refused: {error}")
                result = query_result(query, found, time.perf_counter() - begin)
                results.append(result)
                show(result)
                progress.advance(1, localized=str(sum(r.localized for r in results)))
                hook(query=query, localization=found)
    except KeyboardInterrupt:
        if not stream.live:
            raise
        record.note("Stopped.")
    for note in stream.notes:
        record.note(note)
    with explain_os_errors(record.path):
        write_result_files(record.path, results, scene_map.info.unit)
        write_published_pose_log(record, results, scene_map)
    localized = sum(r.localized for r in results)
    content = record.result(
        "ok", queries=len(results), localized=localized,
        map={"component": scene_map.info.component, "bytes": scene_map.bytes},
    )  # fmt: skip
    record.note(f"{localized} of {len(results)} frames localized.")
    return finish(record, results, content)

"""`reloc localize`: poses of images that have no ground truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.cli.results import (
    finish,
    load_pipeline,
    map_content,
    report_results,
    write_session,
)
from reloc_core.config import plain
from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder, check_choice
from reloc_core.datasets.stream import VideoStream, is_stream
from reloc_core.engine import Outcome, evaluate, run_queries
from reloc_core.errors import ConfigError
from reloc_core.evaluation import QueryResult, write_result_files
from reloc_core.interfaces import Dataset
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map, explain_os_errors
from reloc_core.pipeline import Pipeline
from reloc_core.runs import RunDirectory
from reloc_core.types import Camera


def camera_config(cfg: DictConfig) -> CameraConfig:
    """The typed camera options of a config."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(CameraConfig), plain(cfg.camera))
    except OmegaConfBaseException as error:
        raise ConfigError(f"camera: {str(error).splitlines()[0]}") from error
    config = OmegaConf.to_object(typed)
    assert isinstance(config, CameraConfig)
    return config


def images_of(cfg: DictConfig, scene_map: Map | None) -> Dataset | VideoStream:
    """What `images=` names: a video, a camera, or the chosen images of a folder.

    Args:
        cfg: of the verb.
        scene_map: whose cameras `camera.from_map` means.

    Raises:
        ConfigError: the options do not fit together.
        DataError: there are no such images.
    """
    images, camera = plain(cfg.images), camera_config(cfg)
    mapped: tuple[Camera, ...] = ()
    if camera.from_map:
        if scene_map is None:
            raise ConfigError("camera.from_map needs map_dir.")
        mapped = mapped_frames(scene_map).cameras
    if is_stream(images):
        return VideoStream(images, camera, cfg.frame_step, cfg.max_frames, mapped)
    return select_images(ImageFolder(images, camera, mapped), cfg, bool(cfg.video))


def show(outcome: Outcome) -> None:
    """Print a result for the program that reads standard output, as soon as it is known."""
    if not sys.stdout.isatty():
        print(json.dumps(outcome.result.as_dict(), allow_nan=False), flush=True)


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb: one JSON line per image on standard output, all files in the output directory."""
    pipeline = load_pipeline(cfg)
    queries = images_of(cfg, pipeline.map)
    with RunDirectory(cfg.output_dir, "localize", cfg, overrides, pipeline.runtime) as record:
        pipeline.check(queries)
        record.create()
        if isinstance(queries, VideoStream):
            return _run_stream(queries, pipeline, record)
        for note in queries.notes:
            record.note(note)
        evaluation = evaluate(pipeline, queries, batch=cfg.batch, on_outcome=show, reporter=record)
        report_results(evaluation, pipeline, record, bool(cfg.report))
        return finish(record, evaluation.results)


def select_images(folder: ImageFolder, cfg: DictConfig, video: bool) -> Dataset:
    """Every `frame_step`-th image, at most `max_frames`, as one video or each on its own."""
    check_choice(cfg.frame_step, cfg.max_frames)
    chosen = range(0, len(folder), cfg.frame_step)[: cfg.max_frames]
    return folder.selected(chosen, folder.name if video else None)


def _run_stream(stream: VideoStream, pipeline: Pipeline, record: RunDirectory) -> int:
    """Localize a video or a camera until it ends, or until Ctrl-C, which is how cameras end."""
    results: list[QueryResult] = []
    record.note(f"Localizing {stream.name}" + ("; Ctrl-C ends it." if stream.live else "."))
    try:
        with record.progress("Localizing", len(stream)) as progress:
            for outcome in run_queries(pipeline, stream, record.cfg.batch):
                results.append(outcome.result)
                show(outcome)
                progress.advance(1, localized=str(sum(r.localized for r in results)))
    except KeyboardInterrupt:
        if not stream.live:
            raise
        record.note("Stopped.")
    for note in stream.notes:
        record.note(note)
    assert pipeline.map is not None
    with explain_os_errors(record.path):
        write_result_files(record.path, results, pipeline.map.info.unit)
        write_session(record, results, pipeline.map)
    localized = sum(r.localized for r in results)
    record.result("ok", queries=len(results), localized=localized, map=map_content(pipeline.map))
    record.note(f"{localized} of {len(results)} frames localized.")
    return finish(record, results)

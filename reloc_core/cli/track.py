"""`reloc track`: the pose of every frame of a video, a camera, a folder with times, or a bag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.cli.localize import camera_config, images_of, select_images, show
from reloc_core.cli.results import EXIT_OK, finish, load_pipeline, map_content
from reloc_core.config import plain
from reloc_core.datasets.images import ImageFolder
from reloc_core.datasets.stream import VideoStream, is_stream
from reloc_core.datasets.timed import BagStream, timed
from reloc_core.engine import run_queries
from reloc_core.errors import ConfigError, DataError
from reloc_core.evaluation import QueryResult, write_result_files
from reloc_core.interfaces import Dataset
from reloc_core.io.bags import is_bag
from reloc_core.io.pose_bags import StampedPose, write_pose_bag
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map, explain_os_errors
from reloc_core.runs import RunDirectory, usable_cpus
from reloc_core.tracker import Tracker, TrackerConfig, without_pose_filter

Source = Dataset | VideoStream | BagStream


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb: one JSON line per frame on standard output, all files in the output directory."""
    config = tracker_config(cfg)
    if not cfg.threads:
        # One core follows points meanwhile.
        cfg.threads = max(1, usable_cpus() - 1)
    pipeline = without_pose_filter(load_pipeline(cfg))
    assert pipeline.map is not None
    frames = _frames(cfg, pipeline.map)
    bag = _bag_to_write(cfg, frames)
    pipeline.check(frames)
    with RunDirectory(cfg.output_dir, "track", cfg, overrides, pipeline.runtime) as record:
        record.create()
        live = not isinstance(frames, Dataset) and frames.live
        if live and config.patience is None:
            config.patience = 0.0  # a camera does not wait
        record.note(f"Tracking {frames.name}" + ("; Ctrl-C ends it." if live else "."))
        results: list[QueryResult] = []
        try:
            with Tracker(pipeline, config) as tracker:
                for result in _tracked(tracker, frames, record):
                    results.append(result)
        except KeyboardInterrupt:
            if not live:
                raise
            record.note("Stopped.")
        finally:
            # Poses that were found are kept however tracking ends.
            _write(cfg, record, results, frames, bag, pipeline.map)
        for note in frames.notes:
            record.note(note)
        localized = sum(r.localized for r in results)
        record.result(
            "ok", queries=len(results), localized=localized, map=map_content(pipeline.map)
        )
        record.note(f"{localized} of {len(results)} frames have a pose.")
        return finish(record, results) if results else EXIT_OK


def _write(
    cfg: DictConfig, record: RunDirectory, results: Sequence[QueryResult], frames: Source,
    bag: Path | None, scene_map: Map,
) -> None:  # fmt: skip
    """Write the poses, as files and as a bag."""
    unit = scene_map.info.unit
    with explain_os_errors(record.path):
        write_result_files(record.path, results, unit)
    if bag is not None:
        assert isinstance(frames, BagStream)
        write_pose_bag(bag, _stamped(results, frames), cfg.world_frame, _camera_frame(cfg, frames))
        record.note(f"Poses as a bag: {bag}")
        if unit != "metre":
            record.note(f"Warning: the map's unit is {unit}; ROS takes lengths for metres.")


def tracker_config(cfg: DictConfig) -> TrackerConfig:
    """The typed options of the tracker.

    Raises:
        ConfigError: an unknown option, or a value that makes no sense.
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(TrackerConfig()), plain(cfg.tracker) or {})
    except OmegaConfBaseException as error:
        raise ConfigError(f"tracker: {str(error).splitlines()[0]}") from error
    config: Any = OmegaConf.to_object(typed)
    assert isinstance(config, TrackerConfig)
    config.check()
    return config


def _frames(cfg: DictConfig, scene_map: Map) -> Source:
    """What `images=` names."""
    images = plain(cfg.images)
    timing = cfg.times is not None or cfg.fps is not None
    if is_stream(images):
        if timing:
            raise ConfigError("A video or a camera tells its own times: leave times and fps out.")
        source = images_of(cfg, scene_map)
        assert isinstance(source, VideoStream)
        return source
    config, mapped = camera_config(cfg), mapped_frames(scene_map).cameras
    if isinstance(images, str) and is_bag(images):
        if timing:
            raise ConfigError("A bag tells its own times: leave times and fps out.")
        return BagStream(images, config, cfg.topic, cfg.frame_step, cfg.max_frames, mapped)
    folder = timed(ImageFolder(images, config, mapped), cfg.times, cfg.fps)
    return select_images(folder, cfg, True)


def _bag_to_write(cfg: DictConfig, frames: Source) -> Path | None:
    """Where the poses go as a bag, which only bags do.

    Raises:
        ConfigError: the frames are of no bag.
        DataError: the path exists.
    """
    if not isinstance(frames, BagStream):
        if cfg.bag is not None:
            raise ConfigError("bag= is written for frames of a bag only.")
        return None
    if cfg.bag is not None:
        path = Path(str(cfg.bag)).expanduser()
    else:
        name = "poses.bag" if frames.bag.path.suffix == ".bag" else "poses_bag"
        path = Path(str(cfg.output_dir)).expanduser() / name
    if path.exists():
        raise DataError(f"{path} exists already; bags are not replaced.")
    return path


def _tracked(tracker: Tracker, frames: Source, record: RunDirectory) -> Iterator[QueryResult]:
    found = 0
    with record.progress("Tracking", len(frames)) as progress:
        for outcome in run_queries(tracker, frames):
            show(outcome)
            found += outcome.localization.localized
            progress.advance(1, localized=str(found))
            yield outcome.result


def _stamped(results: Sequence[QueryResult], frames: BagStream) -> list[StampedPose]:
    return [
        StampedPose(frames.stamps[r.name], r.world_from_cam, r.covariance)
        for r in results
        if r.localized and r.world_from_cam is not None
    ]


def _camera_frame(cfg: DictConfig, frames: BagStream) -> str:
    return str(cfg.camera_frame or frames.bag.frame_id or "camera")

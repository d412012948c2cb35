"""`reloc view`: a map and what is localized in it, in the viewer rerun or as a recording for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from reloc_core.cli.localize import images_of
from reloc_core.cli.results import load_pipeline
from reloc_core.config import TARGET, build
from reloc_core.datasets.images import check_choice
from reloc_core.datasets.stream import VideoStream
from reloc_core.datasets.subset import Subset
from reloc_core.engine import run_queries
from reloc_core.errors import ConfigError
from reloc_core.evaluation import QueryResult, read_localizations
from reloc_core.evaluation.results import LOCALIZATIONS_FILE
from reloc_core.interfaces import Dataset
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map, explain_os_errors
from reloc_core.pipeline import Pipeline
from reloc_core.runs import console, observed_run, show_progress
from reloc_core.types import Float64Array, ScenePoints

if TYPE_CHECKING:
    from reloc_core.viewing.recording import SceneRecording


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    _check(cfg)
    scene_map = Map.open(cfg.map_dir) if cfg.map_dir is not None else None
    queries = _queries(cfg, scene_map)
    dataset = _frames_of_results(cfg)
    results = _results(cfg)
    pipeline, points, cameras = _map(cfg, scene_map)
    unit = scene_map.info.unit if scene_map is not None else "metre"
    recording = _open(cfg, unit)
    live = isinstance(queries, VideoStream) and queries.live
    try:
        recording.show_map(points, cameras)
        if results is not None:
            _show_results(recording, results, dataset)
        elif queries is not None and pipeline is not None:
            pipeline.check(queries)
            with observed_run("view", cfg) as result:
                _show_queries(recording, pipeline, queries, result)
    except KeyboardInterrupt:
        if not live:
            raise
    finally:
        recording.close()
    if cfg.output is not None:
        size = Path(cfg.output).stat().st_size / 1e6
        console.print(f"{cfg.output} ({size:.1f} MB). Look at it: rerun {cfg.output}", markup=False)
    return 0


def _check(cfg: DictConfig) -> None:
    """Refuse combinations that make no sense before anything is loaded."""
    with_dataset = bool(cfg.get("dataset"))
    if cfg.map_dir is None and cfg.results is None:
        raise ConfigError("Nothing to show: give map_dir=MAP, results=OUT, or both.")
    if cfg.results is not None and cfg.images is not None:
        raise ConfigError("Give either results=OUT, which are shown as they are, or images=...")
    if cfg.images is not None and with_dataset:
        raise ConfigError("Give either images=... or dataset=NAME, not both.")
    if cfg.output is not None and cfg.connect is not None:
        raise ConfigError("Give either output=NAME.rrd or connect=ADDRESS, not both.")
    if cfg.output is not None and not str(cfg.output).endswith(".rrd"):
        raise ConfigError(f"output={cfg.output}: recordings end in .rrd, as output=view.rrd.")
    if not (cfg.magnify > 0 and cfg.image_width >= 16 and cfg.max_points >= 0):
        raise ConfigError(
            "magnify must be positive, image_width at least 16, max_points not negative."
        )
    check_choice(cfg.frame_step, cfg.max_frames)
    if cfg.output is None and cfg.connect is None and not _has_display():
        raise ConfigError(
            "There is no display to open the viewer on. Write a recording with output=view.rrd, or "
            "send it to a viewer elsewhere with connect=rerun+http://HOST:9876/proxy."
        )


def _has_display() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _queries(cfg: DictConfig, scene_map: Map | None) -> Dataset | VideoStream | None:
    """What is localized while it is shown; None for the map or results alone."""
    if cfg.results is not None:
        return None
    if cfg.images is not None:
        return images_of(cfg, scene_map)
    dataset = _dataset(cfg)
    if dataset is None:
        return None
    return Subset(dataset, range(len(dataset))[:: cfg.frame_step][: cfg.max_frames])


def _dataset(cfg: DictConfig) -> Dataset | None:
    if not cfg.get("dataset") or TARGET not in cfg.dataset:
        return None
    dataset: Dataset = build(cfg.dataset, "dataset")
    return dataset


def _frames_of_results(cfg: DictConfig) -> Dataset | None:
    """Where the images of results are."""
    return _dataset(cfg) if cfg.results is not None else None


def _results(cfg: DictConfig) -> list[QueryResult] | None:
    if cfg.results is None:
        return None
    path = Path(str(cfg.results)).expanduser()
    results = read_localizations(path / LOCALIZATIONS_FILE if path.is_dir() else path)
    return list(results)[:: cfg.frame_step][: cfg.max_frames]


def _map(
    cfg: DictConfig, scene_map: Map | None
) -> tuple[Pipeline | None, ScenePoints | None, list[Float64Array]]:
    """The pipeline, the points and the mapped cameras, as far as there are any."""
    if scene_map is None:
        return None, None, []
    if scene_map.info.interface != "estimator":
        return None, None, list(mapped_frames(scene_map).world_from_cam)
    pipeline = load_pipeline(cfg, scene_map)
    points = _thinned(pipeline.estimator.scene_points(), cfg.max_points)
    return pipeline, points, list(mapped_frames(scene_map).world_from_cam)


def _thinned(points: ScenePoints | None, count: int) -> ScenePoints | None:
    """An even choice of at most `count` points."""
    if points is None or len(points.points) <= count:
        return points
    chosen = np.linspace(0, len(points.points) - 1, count).astype(int)
    colors = points.colors[chosen] if points.colors is not None else None
    return ScenePoints(points.points[chosen], colors)


def _open(cfg: DictConfig, unit: str) -> SceneRecording:
    """A recording whose curves are titled in the map's unit."""
    try:
        from reloc_core.viewing.recording import SceneRecording
    except ImportError as error:
        raise ConfigError("'reloc view' needs rerun-sdk: pip install 'reloc[view]'") from error
    file = Path(str(cfg.output)).expanduser() if cfg.output is not None else None
    if file is None:
        return SceneRecording(None, cfg.connect, cfg.image_width, cfg.magnify, unit=unit)
    with explain_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return SceneRecording(file, None, cfg.image_width, cfg.magnify, unit=unit)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{file} cannot be written: {error}") from error


def _show_results(
    recording: SceneRecording, results: Sequence[QueryResult], dataset: Dataset | None
) -> None:
    """Results as they are, with the images of a dataset where it has them."""
    index = {frame.name: i for i, frame in enumerate(dataset.frames)} if dataset else {}
    with show_progress("Recording", len(results)) as progress:
        for number, result in enumerate(results):
            query = None
            if dataset is not None and result.name in index and result.readable:
                query = dataset[index[result.name]]
            recording.show(number, result, query)
            progress.advance()


def _show_queries(
    recording: SceneRecording,
    pipeline: Pipeline,
    queries: Dataset | VideoStream,
    result: dict[str, Any],
) -> None:
    """Localize and show one query after the other, and count them."""
    result.update(queries=0, localized=0)
    with show_progress("Localizing", len(queries)) as progress:
        for number, outcome in enumerate(run_queries(pipeline, queries)):
            found = outcome.localization
            recording.show(number, outcome.result, outcome.query, outcome.evidence, found)
            result["queries"] += 1
            result["localized"] += found.localized
            progress.advance(1, localized=str(result["localized"]))

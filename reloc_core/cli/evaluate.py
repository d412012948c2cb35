"""`reloc evaluate`: localize a split and compare with its ground truth."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reloc_core.config import TARGET, build, plain
from reloc_core.errors import MapError
from reloc_core.evaluation import (
    QueryResult,
    evaluate,
    result_content,
    summary_table,
    write_result_files,
)
from reloc_core.interfaces import Dataset
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map, explain_os_errors
from reloc_core.pipeline import Pipeline
from reloc_core.registry import default_registry
from reloc_core.runs import RunDirectory, console, environment, resolve_runtime
from reloc_core.types import Localization, Query

EXIT_OK, EXIT_PARTIAL = 0, 2


def load_pipeline(cfg: DictConfig) -> tuple[Pipeline, Map, str]:
    """The pipeline a config describes, its map, and the method in words."""
    runtime = resolve_runtime(cfg.device, cfg.threads, cfg.seed)
    registry = default_registry()
    estimator = plain(cfg.get("estimator")) or {}
    refiners = plain(cfg.refiners)
    scene_map = Map.open(cfg.map_dir)
    chosen = estimator if isinstance(estimator, str) else estimator.get(TARGET)
    if chosen and chosen != scene_map.info.component:
        raise MapError(
            f"{cfg.map_dir} was trained for estimator '{scene_map.info.component}', not '{chosen}'."
        )
    options = {} if isinstance(estimator, str) else estimator
    solver = plain(cfg.solver) if cfg.get("solver") else None
    pipeline = Pipeline.from_map(cfg.map_dir, solver, refiners, options, runtime, registry)
    names = [scene_map.info.component, solver[TARGET] if solver else "default solver"]
    names += [name for name, _ in pipeline.refiners]
    return pipeline, scene_map, " + ".join(names)


def localize_dataset(
    pipeline: Pipeline,
    dataset: Dataset,
    run: RunDirectory,
    title: str,
    show: Callable[[QueryResult], None] | None = None,
    watch: Callable[[Query, Localization], None] | None = None,
) -> list[QueryResult]:
    """Localize all queries with progress and observer hooks.

    `show` gets every result at once, `watch` every query that could be read.
    """
    hook = default_registry().manager.hook.reloc_query_localized
    done = 0
    with run.progress(title, len(dataset)) as progress:

        def on_result(result: QueryResult, query: Query | None, found: Localization) -> None:
            nonlocal done
            done += found.localized
            progress.advance(1, localized=str(done))
            if show is not None:
                show(result)
            if query is not None:
                if watch is not None:
                    watch(query, found)
                hook(query=query, localization=found)

        queries = dataset if pipeline.reads_depth else dataset.without_depth()
        return evaluate(pipeline, queries, on_result)


def localize_on_video(pipeline: Pipeline, dataset: Dataset, run: RunDirectory) -> list[QueryResult]:
    """Localize all queries and write a video of it."""
    from reloc_core.evaluation.video import VIDEO_FILE, RunVideo

    with RunVideo(run.path / VIDEO_FILE, dataset.frames) as video:

        def watch(query: Query, found: Localization) -> None:
            video.add(query, found, pipeline.pictures(query, found))

        return localize_dataset(pipeline, dataset, run, "Localizing", watch=watch)


def report_results(
    results: Sequence[QueryResult],
    dataset: Dataset,
    pipeline: Pipeline,
    scene_map: Map,
    method: str,
    run: RunDirectory,
    with_report: bool,
) -> dict[str, Any]:
    """Write every result file, print the table, and return what `result.json` holds."""
    run.create()
    with explain_os_errors(run.path):
        write_result_files(run.path, results, dataset.unit)
        write_published_pose_log(run, results, scene_map)
    content = result_content(results, dataset)
    content["map"] = {
        "component": scene_map.info.component,
        "bytes": scene_map.bytes,
        "dataset": dict(scene_map.info.dataset),
    }
    result = run.result(**content)
    if with_report:
        from reloc_core.evaluation.gallery import explainer
        from reloc_core.evaluation.report import REPORT_FILE, ReportInfo, write_report

        info = ReportInfo(
            scene=dataset.name,
            method=method,
            unit=dataset.unit,
            result=result,
            config_text=OmegaConf.to_yaml(run.cfg, resolve=True),
            environment=environment(),
            notes=dataset.notes,
            mapped=list(mapped_frames(scene_map).world_from_cam),
            map_bytes=scene_map.bytes,
        )
        write_report(run.path / REPORT_FILE, results, info, explainer(pipeline, dataset))
    console.print(summary_table(results, title=f"{method} on {dataset.name}", unit=dataset.unit))
    return result


def write_published_pose_log(
    run: RunDirectory, results: Sequence[QueryResult], scene_map: Map
) -> None:
    """`poses_<map>_<session>.txt`, the name that the ACE and GLACE scripts look for."""
    from reloc_core.evaluation import write_poses

    session = run.cfg.get("session")
    if session is not None:
        write_poses(run.path / f"poses_{scene_map.path.name}_{session}.txt", results)


def finish(run: RunDirectory, results: Sequence[QueryResult], result: dict[str, Any]) -> int:
    """Say where the results are; a run with unreadable images is complete but not clean."""
    default_registry().manager.hook.reloc_run_finished(verb=run.verb, result=result)
    run.note(f"Results: {run.path}")
    unreadable = [r for r in results if not r.readable]
    if not unreadable:
        return EXIT_OK
    console.print(
        f"reloc: error: {len(unreadable)} of {len(results)} images could not be read and count as "
        f"not localized; the first: {unreadable[0].reason}",
        markup=False,
        soft_wrap=True,
    )
    return EXIT_PARTIAL


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    dataset: Dataset = build(cfg.dataset, "dataset")
    pipeline, scene_map, method = load_pipeline(cfg)
    record = RunDirectory(cfg.output_dir, "evaluate", cfg, overrides, pipeline.runtime)
    default_registry().manager.hook.reloc_run_started(verb="evaluate", config=plain(cfg))
    record.create()
    for note in dataset.notes:
        record.note(f"{dataset.name}: {note}")
    if cfg.video:
        results = localize_on_video(pipeline, dataset, record)
    else:
        results = localize_dataset(pipeline, dataset, record, "Localizing")
    result = report_results(results, dataset, pipeline, scene_map, method, record, bool(cfg.report))
    return finish(record, results, result)

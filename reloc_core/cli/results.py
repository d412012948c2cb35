"""What the verbs that localize share: the pipeline of a config, result files, report, exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reloc_core.collection import open_pipeline
from reloc_core.config import plain
from reloc_core.engine import Evaluation
from reloc_core.evaluation import QueryResult, summary_table, write_poses
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.runs import RunDirectory, console, environment, resolve_runtime

EXIT_OK, EXIT_PARTIAL = 0, 2


def load_pipeline(cfg: DictConfig, scene_map: Map | None = None) -> Pipeline:
    """The pipeline that a config describes; of a map that is open already where one is given."""
    return open_pipeline(
        scene_map or cfg.map_dir,
        plain(cfg.get("solver")),
        plain(cfg.refiners),
        plain(cfg.get("estimator")),
        resolve_runtime(cfg.device, cfg.threads, cfg.seed),
        orientation=cfg.get("orientation", "exif"),
    )


def report_results(
    evaluation: Evaluation, pipeline: Pipeline, run: RunDirectory, with_report: bool
) -> dict[str, Any]:
    """Write every result file, print the table, and return what `result.json` holds."""
    run.create()
    results, dataset = evaluation.results, evaluation.dataset
    evaluation.write(run.path)
    content = evaluation.content
    content.update(map=map_content(pipeline.map), method=pipeline.method)
    write_session(run, results, pipeline.map)
    result = run.result(**content)
    if with_report:
        from reloc_core.evaluation.gallery import explainer
        from reloc_core.evaluation.report import REPORT_FILE, ReportInfo, write_report

        info = ReportInfo(
            scene=dataset.name,
            method=pipeline.method,
            unit=dataset.unit,
            result=result,
            config_text=OmegaConf.to_yaml(run.cfg, resolve=True),
            environment=environment(),
            notes=dataset.notes,
            mapped=list(mapped_frames(pipeline.map).world_from_cam) if pipeline.map else [],
            map_bytes=pipeline.map.bytes if pipeline.map else None,
            depth=evaluation.depth,
        )
        write_report(run.path / REPORT_FILE, results, info, explainer(pipeline, dataset))
    title = f"{pipeline.method} on {dataset.name}"
    console.print(summary_table(results, title=title, unit=dataset.unit, depth=evaluation.depth))
    return result


def map_content(scene_map: Map | None) -> dict[str, Any]:
    """What `result.json` says of the map."""
    if scene_map is None:
        return {}
    info = scene_map.info
    return {"component": info.component, "bytes": scene_map.bytes, "dataset": dict(info.dataset)}


def write_session(run: RunDirectory, results: Sequence[QueryResult], scene_map: Map | None) -> None:
    """`poses_<map>_<session>.txt`, the name that the ACE and GLACE scripts look for."""
    session = run.cfg.get("session")
    if session is not None and scene_map is not None:
        write_poses(run.path / f"poses_{scene_map.path.name}_{session}.txt", results)


def finish(run: RunDirectory, results: Sequence[QueryResult]) -> int:
    """Say where the results are; a run with unreadable images is complete but not clean."""
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

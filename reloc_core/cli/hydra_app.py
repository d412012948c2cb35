"""Running a verb over Hydra: one run, or a multirun over a sweep."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from reloc_core.cli.help import verb_help
from reloc_core.config import (
    TARGET,
    compose,
    config_directory,
    quote_paths,
    refuse_empty_choices,
    register_with_hydra,
)
from reloc_core.errors import RelocError
from reloc_core.registry import default_registry

RESUME_VARIABLE = "RELOC_SWEEP_RESUME"
"""Set while a sweep is resumed: jobs that have their result do nothing."""

VerbFunction = Callable[[DictConfig, Sequence[str]], Any]

# Overrides of a map's own estimator are merged over the config stored in the map, so to Hydra they
# are additions to an empty node.
_OPEN_NODES = dict.fromkeys(("evaluate", "localize", "serve", "view"), ("estimator.",))


def verb_function(verb: str) -> VerbFunction:
    """The function of a verb, `reloc_core.cli.VERB:run`."""
    function: VerbFunction = importlib.import_module(f"reloc_core.cli.{verb}").run
    return function


def open_overrides(verb: str, overrides: Sequence[str]) -> list[str]:
    """Mark overrides below a verb's open nodes as additions."""
    prefixes = _OPEN_NODES.get(verb, ())
    result = []
    for override in overrides:
        for prefix in prefixes:
            if override.startswith(prefix):
                override = f"++{override}"
            elif override.startswith(f"{prefix[:-1]}="):
                # The map says which estimator it is for; naming it again is checked against that.
                override = f"++{prefix}{TARGET}={override.partition('=')[2]}"
        result.append(override)
    return result


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb with Hydra's flags and overrides; returns the exit code."""
    if any(a in ("-h", "--help", "--hydra-help") for a in arguments):
        print(verb_help(verb, default_registry()), end="")
        return 0
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    if flags:
        return _run_by_hydra(verb, arguments)
    cfg = compose(verb, open_overrides(verb, overrides))
    code = verb_function(verb)(cfg, overrides)
    return code if isinstance(code, int) else 0


def _run_by_hydra(verb: str, arguments: Sequence[str]) -> int:
    """Flags such as -m, --cfg and --info are Hydra's own business."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    refuse_empty_choices(arguments)
    register_with_hydra(default_registry())
    if any("hydra/launcher=" in a for a in arguments):
        from reloc_core.cli import gpu_launcher

        gpu_launcher.register()
    multirun = any(a in ("-m", "--multirun") for a in arguments)

    def task(cfg: DictConfig) -> Any:
        settings = HydraConfig.get()
        overrides = list(settings.overrides.task)
        if multirun:
            return sweep_job(verb, cfg, overrides, settings.runtime.output_dir)
        return verb_function(verb)(cfg, overrides)

    # Hydra prints its own trace unless this is set; errors are ours to print.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    prepared = arguments if multirun else quote_paths(arguments)
    saved = sys.argv
    sys.argv = [f"reloc {verb}", *open_overrides(verb, prepared)]
    try:
        hydra.main(config_path=str(config_directory()), config_name=verb, version_base="1.3")(
            task
        )()
    finally:
        sys.argv = saved
    return 0


def sweep_job(
    verb: str, cfg: DictConfig, overrides: Sequence[str], output_dir: Path | str
) -> float | None:
    """Run one job of a sweep into its folder; returns the objective.

    A failure is recorded in the job's `result.json` and does not stop the sweep.
    """
    cfg.output_dir = str(output_dir)
    folder = Path(output_dir)
    finished = job_result(folder).get("status") in ("ok", "partial")
    if os.environ.get(RESUME_VARIABLE) == "1" and finished:
        return objective(cfg, folder)
    try:
        verb_function(verb)(cfg, overrides)
    except RelocError as error:
        print(f"reloc: error: {error}", file=sys.stderr)
        _record_failure(cfg, verb, overrides, error)
        return float("inf")
    return objective(cfg, folder)


def objective(cfg: DictConfig, folder: Path) -> float | None:
    """The number of a job's result that an optimiser looks at; infinite where it is missing."""
    key = cfg.get("objective")
    if not key:
        return None
    from reloc_core.evaluation.sweeps import result_value

    value = result_value(job_result(folder), str(key))
    return float("inf") if value is None else value


def job_result(folder: Path) -> dict[str, Any]:
    """Content of a job's `result.json`, empty where there is none."""
    try:
        content = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _record_failure(cfg: DictConfig, verb: str, overrides: Sequence[str], error: Exception) -> None:
    from reloc_core.interfaces import Runtime
    from reloc_core.runs import RunDirectory

    run = RunDirectory(cfg.output_dir, verb, cfg, overrides, Runtime())
    run.result("failed", error=str(error))

"""One job of a sweep: what it runs, and what it leaves when it fails."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from reloc_core.composition import check_values
from reloc_core.errors import RelocError
from reloc_core.evaluation.sweeps import FINISHED, job_result, result_value, same_job

RESUME_VARIABLE = "RELOC_SWEEP_RESUME"
"""Set while a sweep is resumed: jobs that have their result do nothing."""

VerbFunction = Callable[[DictConfig, Sequence[str]], Any]


def verb_function(verb: str) -> VerbFunction:
    """The function of a verb, `reloc_core.cli.VERB:run`."""
    function: VerbFunction = importlib.import_module(f"reloc_core.cli.{verb}").run
    return function


def sweep_job(
    verb: str, cfg: DictConfig, overrides: Sequence[str], output_dir: Path | str
) -> float | None:
    """Run one job of a sweep into its folder; returns the objective.

    A failure of any kind is recorded in the job's `result.json` and does not stop the sweep.
    """
    cfg.output_dir = str(output_dir)
    folder = Path(output_dir)
    if os.environ.get(RESUME_VARIABLE) == "1":
        before = job_result(folder)
        if before.get("status") in FINISHED and same_job(before, overrides):
            return objective(cfg, folder)
    try:
        check_values(verb, cfg)
        verb_function(verb)(cfg, overrides)
    except KeyboardInterrupt:
        raise
    except RelocError as error:
        print(f"reloc: error: {error}", file=sys.stderr)
        _record_failure(cfg, verb, overrides, str(error))
        return float("inf")
    except BaseException as error:
        # A plugin's defect is this job's failure; the other jobs go on.
        text = " ".join(str(error).split())
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        print(f"reloc: error: job {folder.name}: {message}", file=sys.stderr)
        _record_failure(cfg, verb, overrides, message, traceback.format_exc())
        return float("inf")
    return objective(cfg, folder)


def objective(cfg: DictConfig, folder: Path) -> float | None:
    """The number of a job's result that an optimiser looks at; infinite where it is missing."""
    key = cfg.get("objective")
    if not key:
        return None
    value = result_value(job_result(folder), str(key))
    return float("inf") if value is None else value


def _record_failure(
    cfg: DictConfig, verb: str, overrides: Sequence[str], error: str, trace: str = ""
) -> None:
    from reloc_core.interfaces import Runtime
    from reloc_core.runs import write_json

    folder = Path(str(cfg.output_dir))
    content = {"status": "failed", "verb": verb, "error": error, "overrides": list(overrides)}
    if trace:
        content["traceback"] = trace
    try:
        from reloc_core.runs import RunDirectory

        # Observers heard of the failure from the verb itself, where it had begun.
        run = RunDirectory(folder, verb, cfg, overrides, Runtime(), observed=False)
        run.result("failed", **{k: v for k, v in content.items() if k in ("error", "traceback")})
    except Exception:  # a config that cannot be written, for one
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", content)

"""`reloc VERB -m`: a sweep by Hydra's sweepers and launchers, that ends honestly and can be resumed."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reloc_core.cli.exit_codes import EXIT_FAILED, EXIT_OK
from reloc_core.cli.jobs import RESUME_VARIABLE, sweep_job
from reloc_core.cli.lifeline import end_with_owner, own_children
from reloc_core.cli.optimiser import STUDY, known_trials
from reloc_core.composition import (
    compose,
    explained,
    hydra_session,
    prepare,
    register_with_hydra,
)
from reloc_core.config import literal
from reloc_core.errors import ConfigError, RelocError
from reloc_core.evaluation.sweeps import (
    SWEEP_RECORD,
    Sweep,
    expand,
    key_of,
    read_record,
    read_sweep,
    swept_options,
)
from reloc_core.locks import FileLock, Held
from reloc_core.maps import Map
from reloc_core.overrides import open_overrides, quoted
from reloc_core.registry import default_registry
from reloc_core.storage import atomic_write

_READS_MAPS = ("evaluate", "localize", "view")


def multirun(verb: str, overrides: Sequence[str], resume: bool = False) -> int:
    """Run a sweep, or what is left of it where its folder holds the same one.

    Args:
        verb: of the jobs.
        overrides: of Hydra and of the verb, as typed.
        resume: whatever the folder holds is to be continued.

    Returns:
        0, or 1 where a job failed or left no result.

    Raises:
        ConfigError: no job would run, or the folder holds another sweep.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    registry = default_registry()
    register_with_hydra(registry)
    if any(key_of(o).startswith(("hydra/launcher", "hydra.launcher")) for o in overrides):
        from reloc_core.cli import gpu_launcher

        gpu_launcher.register()
    prepared = prepare(verb, open_overrides(verb, overrides), registry, sweep=True)
    for override in overrides:
        # `reloc sweep` and `report compare` take the folder bare, where KEY=VALUE is an option.
        if key_of(override) == "output_dir" and "=" in override.partition("=")[2] and not resume:
            raise ConfigError(f"{override}: the folder of a sweep must have no '=' in its name.")
    with explained(verb, overrides, registry), hydra_session():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        master = hydra.compose_config(verb, prepared, RunMode.MULTIRUN, from_shell=True)
        _check_folder(master, prepared)
        folder = Path(str(master.hydra.sweep.dir)).absolute()
        if "${" in str(folder):  # Hydra would look for an option of that name in every job
            raise ConfigError(f"{folder}: the folder of a sweep must have no '${{' in its name.")
    sampled = "optuna" in str(master.hydra.sweeper.get("_target_")).lower()
    if not sampled:
        _check_jobs(verb, master, prepared)
    with _folder(folder, verb, prepared, sampled, resume) as (begun, first):
        prepared = [o for o in prepared if key_of(o) != "output_dir"]
        prepared.append(f"output_dir={quoted(literal(str(folder)))}")
        if sampled:
            study = _study(folder, master, begun, first)
            if study is None:
                return _outcome(read_sweep(folder))
            prepared += study
        own_children()
        before = os.environ.get(RESUME_VARIABLE)
        os.environ[RESUME_VARIABLE] = "1" if begun and not sampled else "0"
        try:
            with explained(verb, overrides, registry), hydra_session():
                hydra = GlobalHydra.instance().hydra
                assert hydra is not None
                hydra.multirun(verb, _task(verb), prepared)
        except RelocError:
            raise
        except Exception as error:  # of a launcher: what jobs raise is in their results
            text = " ".join(str(error).split())[:300]
            raise RelocError(
                f"The launcher failed ({type(error).__name__}: {text}). What has finished is kept: "
                f"reloc sweep resume {folder}"
            ) from error
        finally:
            os.environ.pop(RESUME_VARIABLE)
            if before is not None:
                os.environ[RESUME_VARIABLE] = before
    return _outcome(read_sweep(folder), dry_run="dry_run=true" in overrides)


def _task(verb: str) -> Any:
    """What Hydra runs for every job, in whatever process."""

    def task(cfg: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig

        end_with_owner()
        settings = HydraConfig.get()
        overrides = OmegaConf.to_container(settings.overrides.task, resolve=False)
        assert isinstance(overrides, list)
        return sweep_job(verb, cfg, [str(o) for o in overrides], settings.runtime.output_dir)

    return task


def _asked(master: DictConfig, prepared: Sequence[str]) -> list[str]:
    """The overrides of the jobs, those that a preset sweeps included."""
    params = OmegaConf.to_container(master.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    return [f"{k!s}={v!s}" for k, v in params.items()] + [o for o in prepared if not _is_hydras(o)]


def _check_folder(master: DictConfig, prepared: Sequence[str]) -> None:
    """Refuse a folder that refers to a swept option: it would be named by that option's default.

    Raises:
        ConfigError: names the option.
    """
    swept = swept_options(_asked(master, prepared))
    seen: set[str] = set()
    waiting = ["hydra.sweep.dir"]  # by default ${output_dir}, which may refer to others in turn
    while waiting:
        name = waiting.pop()
        if any(f"{name}.".startswith(f"{key}.") for key in swept):
            raise ConfigError(
                f"The sweep's folder refers to ${{{name}}}, which is swept: write output_dir=DIR without "
                "it. There is one folder, in which every job has its own."
            )
        if name not in seen:
            seen.add(name)
            waiting += re.findall(r"(?<!\\)\$\{([^${}:]+)\}", _raw(master, name))


def _raw(cfg: DictConfig, name: str) -> str:
    """A value as it is written, references included; "" where there is none."""
    node: Any = OmegaConf.to_container(cfg, resolve=False)
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, str) else ""


def _check_jobs(verb: str, master: DictConfig, prepared: Sequence[str]) -> None:
    """Refuse a sweep with a value that no job can start with: in one line, as a single run does.

    Every value is tried in one job. A map may still be missing from some jobs: it may be made meanwhile.
    """
    seen: set[str] = set()
    lacking: RelocError | None = None
    found = False
    for job in expand(_asked(master, prepared)):
        if found and seen.issuperset(job):
            continue
        cfg = compose(verb, job)
        seen.update(job)
        if found or verb not in _READS_MAPS or not cfg.get("map_dir"):
            found = True
            continue
        try:
            Map.open(str(cfg.map_dir))
            found = True
        except RelocError as error:
            lacking = lacking or error
    if not found and lacking is not None:
        raise lacking


def _is_hydras(override: str) -> bool:
    key = key_of(override)
    return key.startswith(("hydra.", "hydra/")) or key == "hydra"


@contextmanager
def _folder(
    folder: Path, verb: str, prepared: Sequence[str], sampled: bool, resume: bool
) -> Iterator[tuple[bool, int]]:
    """The sweep's folder, ours alone: whether it was begun before, and the number of the next job."""
    try:
        lock = FileLock(folder / ".sweep.lock")
    except Held as held:
        raise ConfigError(
            f"{folder} is being run by {held.holder}. Wait until that has finished, or choose another "
            "output_dir."
        ) from None
    try:
        record = read_record(folder)
        mine = [o for o in prepared if key_of(o) != "output_dir"]
        jobs = [int(p.name) for p in folder.iterdir() if p.name.isdigit() and len(p.name) < 9]
        if record is not None and not resume:
            task = [o for o in mine if not _is_hydras(o)]
            if record.verb != verb or record.task != task:
                raise ConfigError(
                    f"{folder} holds another sweep: reloc {record.verb} -m "
                    f"{' '.join(record.task)[:200]}. Choose another output_dir, or continue that one: "
                    f"reloc sweep resume {folder}"
                )
            print(
                f"{folder} holds this sweep: what has finished is not run again.", file=sys.stderr
            )
        elif record is None and jobs:
            raise ConfigError(f"{folder} holds other results. Choose another output_dir.")
        if not resume or record is None:
            with atomic_write(folder / SWEEP_RECORD) as file:
                content = {"format": 1, "verb": verb, "overrides": mine, "sampled": sampled}
                json.dump({**content, "begun": time.time()}, file, indent=1)
        yield record is not None, max(jobs, default=-1) + 1
    finally:
        lock.release()


def _study(folder: Path, master: DictConfig, begun: bool, first: int) -> list[str] | None:
    """Overrides with which an optimiser makes the trials that are left; None where there are none."""
    if not begun:
        return []
    sweeper = master.hydra.sweeper
    left = int(sweeper.n_trials) - sum(job.finished for job in read_sweep(folder).jobs)
    if left <= 0:
        return None
    given = [f"hydra.sweeper.n_trials={left}"]
    direction = str(sweeper.direction).rpartition(".")[2]
    if not sweeper.get("storage") and direction in ("minimize", "maximize"):
        target = f"{known_trials.__module__}.{known_trials.__name__}"
        given += [
            f"++hydra.sweeper.storage={{_target_: {target}, folder: {quoted(literal(str(folder)))}, "
            f"direction: {direction}, objective: {quoted(str(master.get('objective') or ''))}}}",
            f"hydra.sweeper.study_name={STUDY}",
        ]
    if first:  # numbers of jobs go on after those that are there: 8 makes 80, 81 and so on
        given.append(f"hydra.sweep.subdir='{first}${{hydra.job.num}}'")
    return given


def _outcome(sweep: Sweep, dry_run: bool = False) -> int:
    """Say which jobs failed; in a dry run, which leaves no results, those that say so."""
    failed = [j for j in sweep.jobs if not j.finished and not (dry_run and j.status == "missing")]
    for job in failed[:5]:
        print(f"job {job.number}: {job.status}. {job.why}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(sweep.jobs)} jobs failed. Mend the cause, then: "
            f"reloc sweep resume {sweep.path}",
            file=sys.stderr,
        )
    return EXIT_FAILED if failed else EXIT_OK

"""Jobs of sweeps among the results to compare, labelled by what differs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from reloc_core.errors import DataError
from reloc_core.evaluation.sweeps import Job, Sweep, is_sweep, read_sweep
from reloc_core.runs import console


def with_jobs(results: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
    """Results with the jobs in place of every sweep.

    Jobs of a sweep are labelled by what differs between those that are compared, whether the whole sweep
    is named or they are named one by one. Of a whole sweep, jobs on another dataset than the first one are
    left out.

    Args:
        results: labels (or "") and paths, as typed.

    Returns:
        labels (or "") and paths of single results, and the ground truth of the sweeps ("" without any).

    Raises:
        DataError: nothing is left, or a sweep cannot be read.
    """
    named = _named_jobs(path for label, path in results if not label)
    found: list[tuple[str, str]] = []
    truth, fingerprint = "", None
    for label, path in results:
        if not is_sweep(path):
            found.append((label or named.get(path, ""), path))
            continue
        sweep = read_sweep(path)
        for job in sweep.jobs:
            if not job.finished or not (job.folder / "localizations.jsonl").is_file():
                continue
            dataset = job.result.get("dataset")
            own = dataset.get("fingerprint") if isinstance(dataset, dict) else None
            if truth and own != fingerprint:
                console.print(f"Left out: job {job.number} of {path} is of another dataset.")
                continue
            truth, fingerprint = truth or str(job.folder), own
            text = " ".join(filter(None, (label, _differing(sweep, job))))
            found.append((text or f"job {job.number}", str(job.folder)))
    if not found:
        raise DataError("No job of the sweep has finished: nothing to compare.")
    return found, truth


def _named_jobs(paths: Iterable[str]) -> dict[str, str]:
    """Labels of those paths that are jobs of a sweep; of one job, by what differs in its whole sweep."""
    named: dict[Path, dict[str, str]] = {}
    for path in paths:
        folder = Path(path).expanduser().absolute()
        folder = folder.parent if folder.is_file() else folder
        if not is_sweep(folder.parent):
            continue
        named.setdefault(folder.parent, {})[folder.name] = path
    labels = {}
    for where, folders in named.items():
        sweep = read_sweep(where)
        jobs = tuple(job for job in sweep.jobs if job.folder.name in folders)
        if len(jobs) > 1:
            sweep = replace(sweep, jobs=jobs)
        for job in jobs:
            labels[folders[job.folder.name]] = _differing(sweep, job) or f"job {job.number}"
    return labels


def _differing(sweep: Sweep, job: Job) -> str:
    varied = [key for key in sweep.varied if not key.startswith("dataset.")]
    return ", ".join(f"{key.rpartition('.')[2]}={job.overrides.get(key, '')}" for key in varied)

"""Reading sweeps: the jobs of a multirun, finished or not, and averages over seeds.

A sweep directory holds `multirun.yaml`, as Hydra writes it, and one folder per job, `0`, `1` and so on,
with the job's `result.json`. Both a running and a broken sweep can be read.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reloc_core.errors import DataError

SWEEP_FILE = "multirun.yaml"
_SAMPLED_FILE = "optimization_results.yaml"
"""What the Optuna sweeper leaves in place of it, at its end."""
_FINISHED = ("ok", "partial")
# Student's t for 95 % intervals by degrees of freedom; the normal value beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
        2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
        2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: its folder.
        overrides: option to value, as they were given.
        status: "ok", "partial", "failed", or "missing" where there is no result.
        result: content of `result.json`, empty where there is none.
    """

    number: int
    overrides: Mapping[str, str]
    status: str
    result: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether there is nothing to repeat."""
        return self.status in _FINISHED

    def value(self, key: str) -> float | None:
        """A number of the result by its dotted key, such as "metrics.recall.5cm_5deg"."""
        return result_value(self.result, key)


@dataclass(frozen=True)
class Sweep:
    """A sweep as it lies on disk.

    Attributes:
        path: its directory.
        verb: of the jobs.
        arguments: the overrides that the sweep was started with, as typed.
        hydra_arguments: those of Hydra itself, such as the launcher.
        jobs: all jobs, those without a result included.
        sampled: the jobs are chosen while it runs, by an optimiser, and not known beforehand.
    """

    path: Path
    verb: str
    arguments: tuple[str, ...]
    hydra_arguments: tuple[str, ...]
    jobs: tuple[Job, ...]
    sampled: bool

    @property
    def varied(self) -> list[str]:
        """Options that differ between jobs."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.overrides)
        return [k for k in keys if len({job.overrides.get(k) for job in self.jobs}) > 1]


def result_value(result: Mapping[str, Any], key: str) -> float | None:
    """A number of a `result.json` by its dotted key, None where there is none."""
    node: Any = result
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return float(node) if isinstance(node, int | float) and not isinstance(node, bool) else None


def read_sweep(path: Path | str) -> Sweep:
    """Read a sweep directory.

    Raises:
        DataError: it is none.
    """
    path = Path(path)
    file = path / SWEEP_FILE
    if not file.is_file() and (path / _SAMPLED_FILE).is_file():
        return Sweep(path, "", (), (), tuple(_jobs(path, {})), True)
    try:
        config: Any = OmegaConf.load(file)
        hydra = config.hydra
        task = [str(o) for o in hydra.overrides.task]
        params = OmegaConf.to_container(hydra.sweeper.get("params") or OmegaConf.create({}))
        verb = str(hydra.job.config_name)
    except (OSError, OmegaConfBaseException, AttributeError, ValueError) as error:
        raise DataError(
            f"{path} is no sweep: it has no readable {SWEEP_FILE}. Sweeps are made by "
            "'reloc VERB -m ... output_dir=DIR'."
        ) from error
    assert isinstance(params, dict)
    expected = dict(enumerate(_expand([f"{k!s}={v!s}" for k, v in params.items()] + task)))
    hydra_arguments = [
        str(o) for o in hydra.overrides.hydra if not str(o).startswith("hydra.mode=")
    ]
    jobs = tuple(_jobs(path, expected))
    return Sweep(path, verb, tuple(task), tuple(hydra_arguments), jobs, False)


def _jobs(path: Path, expected: Mapping[int, list[str]]) -> Iterator[Job]:
    """The jobs that are expected or have left a folder."""
    found = {int(p.name): _result(p) for p in path.iterdir() if p.name.isdigit() and p.is_dir()}
    for number in sorted({*found, *expected}):
        result = found.get(number, {})
        given = expected.get(number) or [str(o) for o in result.get("overrides", [])]
        yield Job(number, _pairs(given), str(result.get("status", "missing")), result)


def _expand(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job, in Hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(arguments))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key: value for key, _, value in pairs}


def _result(folder: Path) -> dict[str, Any]:
    """A job's result; one that cannot be read counts as missing."""
    try:
        content = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Average:
    """A number over the seeds of one configuration.

    Attributes:
        mean: of the finished jobs; None without any.
        half_width: of the 95 % interval of the mean (Student's t); None with fewer than two jobs.
        count: finished jobs that have the number.
    """

    mean: float | None
    half_width: float | None
    count: int


def average(values: Sequence[float | None]) -> Average:
    """Mean and interval of the values that are there."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Average(None, None, 0)
    if len(known) == 1:
        return Average(known[0], None, 1)
    freedom = len(known) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96
    return Average(
        statistics.fmean(known), t * statistics.stdev(known) / math.sqrt(len(known)), len(known)
    )


def groups(sweep: Sweep, over: str = "seed") -> dict[tuple[tuple[str, str], ...], list[Job]]:
    """Jobs by the values of all varied options but `over`."""
    varied = [key for key in sweep.varied if key != over]
    result: dict[tuple[tuple[str, str], ...], list[Job]] = {}
    for job in sweep.jobs:
        key = tuple((option, job.overrides.get(option, "")) for option in varied)
        result.setdefault(key, []).append(job)
    return result

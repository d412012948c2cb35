"""Reading sweeps: the jobs of a multirun, finished or not, and averages over seeds.

A sweep directory holds `sweep.json` (what was asked for, unresolved), `multirun.yaml`, as Hydra writes it,
and one folder per job, `0`, `1` and so on, with the job's `result.json`. Running, broken and interrupted
sweeps can be read; of a sweep that somebody sent, nothing is taken but options that exist.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reloc_core.errors import ConfigError, DataError, did_you_mean
from reloc_core.storage import read_yaml

SWEEP_RECORD = "sweep.json"
SWEEP_FILE = "multirun.yaml"
FINISHED = ("ok", "partial")
_VERBS = ("map", "train", "evaluate", "localize", "demo", "benchmark", "data_check", "data_convert",
          "data_reconstruct")  # fmt: skip
_MAX_JOBS = 100_000
_MAX_BYTES = 64 << 20
_CHOICES = ("dataset", "estimator", "solver", "refiner", "experiment")
# What a folder may say about how its jobs are started: nothing that names code or commands.
_HYDRA_KEYS = re.compile(
    r"hydra\.(launcher\.(n_jobs|per_device|devices|verbose|batch_size|pre_dispatch|timeout_min|cpus_per_task|"
    r"gpus_per_node|mem_gb)|sweeper\.(n_trials|n_jobs|direction|study_name|max_failure_rate|"
    r"max_batch_size|sampler\.\w+))"
)
_HYDRA_CHOICES = {
    "hydra/launcher": ("basic", "joblib", "submitit_local", "submitit_slurm", "gpus"),
    "hydra/sweeper": ("basic", "optuna"),
    "hydra/sweeper/sampler": ("tpe", "random", "cmaes", "grid", "nsgaii", "motpe", "qmc"),
}
# Student's t for 95 % intervals by degrees of freedom; the normal value beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
        2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
        2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: of the jobs of the sweep, from 0.
        folder: of its results; it need not exist.
        overrides: option to value, as they were given.
        status: "ok", "partial", "failed", or "missing" where there is no result.
        result: content of `result.json`, empty where there is none.
    """

    number: int
    folder: Path
    overrides: Mapping[str, str]
    status: str
    result: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether there is nothing to repeat."""
        return self.status in FINISHED

    @property
    def why(self) -> str:
        """Why there is nothing, as far as is known."""
        return str(self.result.get("error") or "no result: still running, or it was killed")

    def value(self, key: str) -> float | None:
        """A number of the result by its dotted key, such as "metrics.recall.5cm_5deg"."""
        return result_value(self.result, key)


@dataclass(frozen=True)
class Record:
    """What a sweep was started with.

    Attributes:
        verb: of the jobs.
        task: the overrides of the jobs; nothing in them is resolved.
        hydra: those of Hydra itself, such as the launcher.
        left_out: those of Hydra that a folder must not choose.
        sampled: the jobs are chosen while it runs, by an optimiser, and not known beforehand.
        params: further swept options, from a preset.
    """

    verb: str
    task: list[str]
    hydra: list[str]
    left_out: list[str]
    sampled: bool
    params: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A sweep as it lies on disk.

    Attributes:
        path: its directory.
        record: what it was started with.
        jobs: all jobs, those without a result included.
    """

    path: Path
    record: Record
    jobs: tuple[Job, ...]

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
    if not isinstance(node, int | float) or isinstance(node, bool):
        return None
    try:
        return float(node)
    except OverflowError:
        return None


def key_of(override: str) -> str:
    """The option that an override sets."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def read_record(path: Path) -> Record | None:
    """What a sweep was started with; None where the folder holds none.

    Raises:
        DataError: it names what a folder must not choose.
    """
    record = _json(path / SWEEP_RECORD)
    params: tuple[str, ...] = ()
    if record:
        given, verb = record.get("overrides"), str(record.get("verb", ""))
        sampled = record.get("sampled") is True
    else:
        try:
            content: Any = read_yaml(path / SWEEP_FILE)
            hydra = content["hydra"]
            given = [*(hydra["overrides"]["task"] or ()), *(hydra["overrides"]["hydra"] or ())]
            swept = (hydra.get("sweeper") or {}).get("params") or {}
            params = tuple(f"{key}={value}" for key, value in swept.items())
            verb, sampled = str(hydra["job"]["config_name"]), False
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
    if not isinstance(given, list) or not all(isinstance(o, str) for o in given):
        return None
    if verb not in _VERBS:
        raise DataError(f"{path} is a sweep of '{verb[:40]}', which is no verb that can be swept.")
    given = [o for o in given if key_of(o) not in ("output_dir", "hydra.mode")]
    hydras = [o for o in given if o.lstrip("+~").startswith("hydra")]
    allowed = [o for o in hydras if _is_harmless(o)]
    task = [o for o in given if o not in hydras]
    for override in task:
        _refuse_foreign(path, override)
    return Record(verb, task, allowed, [o for o in hydras if o not in allowed], sampled, params)


def _is_harmless(override: str) -> bool:
    """Whether an override of Hydra may come from a folder."""
    key, _, value = override.partition("=")
    if key in _HYDRA_CHOICES:
        return value in _HYDRA_CHOICES[key]
    return bool(_HYDRA_KEYS.fullmatch(key) and re.fullmatch(r"[\w.,\[\]-]*", value))


def _refuse_foreign(path: Path, override: str) -> None:
    """Options that exist may come from a folder; what is called, and files of configs, may not."""
    key, _, value = override.partition("=")
    bare = key.removeprefix("~").removesuffix("@_global_")  # a second preset
    if key.startswith("++estimator."):  # how options of a map's own estimator are passed on
        bare = key.removeprefix("++")
        if bare == "estimator._target_":
            bare = "estimator"
    known = re.fullmatch(r"[A-Za-z][\w.-]*", bare) and len(override) < 20_000
    if not known or any(part in ("_target_", "_args_", "_partial_") for part in bare.split(".")):
        raise DataError(
            f"{path} sets '{key[:60]}', which a sweep's folder must not: only options that exist are "
            "taken from it."
        )
    if bare in _CHOICES and not re.fullmatch(r"[\w/, -]*", value):
        raise DataError(f"{path} chooses {override[:80]!r}, which is no name of a choice.")


def is_sweep(path: Path | str) -> bool:
    """Whether a folder says that it is a sweep."""
    return any((Path(path) / name).is_file() for name in (SWEEP_RECORD, SWEEP_FILE))


def read_sweep(path: Path | str) -> Sweep:
    """Read a sweep directory.

    Raises:
        DataError: it is none.
    """
    path = Path(path)
    record = read_record(path) if path.is_dir() else None
    if record is None:
        raise DataError(
            f"{path} is no sweep: it has no readable {SWEEP_RECORD} or {SWEEP_FILE}. Sweeps are made by "
            "'reloc VERB -m ... output_dir=DIR'."
        )
    if not record.params and not record.sampled and (path / SWEEP_FILE).is_file():
        record = _with_params(path, record)
    expected: dict[int, list[str]] = {}
    if not record.sampled:
        expected = dict(enumerate(expand([*record.params, *record.task])))
    return Sweep(path, record, tuple(_jobs(path, expected)))


def _with_params(path: Path, record: Record) -> Record:
    """The options that a preset sweeps are in Hydra's own file alone."""
    try:
        swept = read_yaml(path / SWEEP_FILE)["hydra"]["sweeper"].get("params") or {}
        params = tuple(f"{key}={value}" for key, value in swept.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return record
    return Record(record.verb, record.task, record.hydra, record.left_out, False, params)


def _jobs(path: Path, expected: Mapping[int, list[str]]) -> Iterator[Job]:
    """The jobs that are expected or have left a folder.

    A folder has the job's number, unless `hydra.sweep.subdir` names it: then its overrides tell the job.
    """
    results = {p.name: job_result(p) for p in sorted(path.iterdir()) if p.is_dir()}
    folders: dict[int, str] = {}
    for number, given in expected.items():
        own = str(number)
        if not same_job(results.get(own, {}), given):
            own = next((name for name, r in results.items() if same_job(r, given)), own)
        folders[number] = own
    left = results.keys() - set(folders.values())
    others = {int(name): name for name in left if re.fullmatch(r"0|[1-9][0-9]{0,8}", name)}
    folders = others | folders
    for number, folder in sorted(folders.items()):
        result = results.get(folder, {})
        recorded = result.get("overrides")
        given = expected.get(number) or [
            str(o) for o in (recorded if isinstance(recorded, list) else [])
        ]
        status = str(result.get("status", "missing"))
        if status in FINISHED and number in expected and not same_job(result, expected[number]):
            status, result = "missing", {}  # the result of another sweep
        yield Job(number, path / folder, _pairs(given), status, result)


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job, in Hydra's order.

    Raises:
        DataError: they cannot be read, or are too many.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices: dict[str, list[str]] = {}
    count = 1
    try:
        for override in OverridesParser.create().parse_overrides(list(arguments)):
            key = override.get_key_element()
            if override.is_discrete_sweep():
                values = override.sweep_string_iterator()
                choices[key] = [f"{key}={v}" for v in itertools.islice(values, _MAX_JOBS + 1)]
            else:
                choices[key] = [f"{key}={override.get_value_element_as_str()}"]
    except (HydraException, RecursionError, ValueError, TypeError, AssertionError) as error:
        raise DataError(
            f"The options of the sweep cannot be read: {str(error).splitlines()[0]}"
        ) from error
    for values_of_key in choices.values():
        count *= len(values_of_key)
        if count > _MAX_JOBS:
            raise DataError(f"A sweep of more than {_MAX_JOBS} jobs is not read.")
    return [list(job) for job in itertools.product(*choices.values())]


def swept_options(arguments: Sequence[str]) -> list[str]:
    """The options with several values, or with a range for an optimiser.

    Raises:
        DataError: they cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(arguments))
    except (HydraException, RecursionError) as error:
        raise DataError(
            f"The options of the sweep cannot be read: {str(error).splitlines()[0]}"
        ) from error
    last = {override.get_key_element(): override.is_sweep_override() for override in parsed}
    return [key.lstrip("+") for key, swept in last.items() if swept]


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (o.lstrip("+~").partition("=") for o in overrides)
    return {key: value for key, _, value in pairs if key != "output_dir"}


def same_job(result: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether a result is that of a job with these overrides, wherever it lies."""
    own = result.get("overrides")
    if not isinstance(own, list):
        return False

    # Quotes and escapes may differ between what was typed and what Hydra passed on.
    def bare(items: Sequence[Any]) -> dict[str, str]:
        return {k: re.sub(r"[\\'\"\s]", "", v) for k, v in _pairs([str(o) for o in items]).items()}

    return bare(own) == bare(overrides)


def job_result(folder: Path) -> dict[str, Any]:
    """A job's `result.json`; one that cannot be read counts as missing."""
    return _json(folder / "result.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Average:
    """A number over the seeds of one configuration.

    Attributes:
        mean: of the finished jobs; None without any.
        half_width: of the 95 % interval of the mean (Student's t); None with fewer than two jobs.
        count: finished jobs that have the number.
        std: standard deviation of the jobs (of a sample); None with fewer than two.
    """

    mean: float | None
    half_width: float | None
    count: int
    std: float | None = None


def average(values: Sequence[float | None]) -> Average:
    """Mean and interval of the values that are there."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Average(None, None, 0)
    if len(known) == 1:
        return Average(known[0], None, 1)
    freedom = len(known) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96
    deviation = statistics.stdev(known)
    half_width = t * deviation / math.sqrt(len(known))
    return Average(statistics.fmean(known), half_width, len(known), deviation)


def groups(sweep: Sweep, over: str = "seed") -> dict[tuple[tuple[str, str], ...], list[Job]]:
    """Jobs by the values of all varied options but `over`.

    Raises:
        ConfigError: no job sets `over`; the seed need not be set.
    """
    known = {key for job in sweep.jobs for key in job.overrides}
    if over not in known | {"seed"}:
        raise ConfigError(
            f"over={over}: no job of {sweep.path} sets '{over}'.{did_you_mean(over, known)}"
        )
    varied = [key for key in sweep.varied if key != over]
    result: dict[tuple[tuple[str, str], ...], list[Job]] = {}
    for job in sweep.jobs:
        key = tuple((option, job.overrides.get(option, "")) for option in varied)
        result.setdefault(key, []).append(job)
    return result

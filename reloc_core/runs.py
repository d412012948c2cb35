"""Run directories: logs, progress, the environment and the atomically written result.

OUT/
  result.json         status, metrics, seconds, overrides, config hash, versions
  environment.json    machine and package versions
  config.yaml         the resolved configuration
  log.jsonl           structured events, one JSON object a line
  tensorboard/        curves and results, with tensorboard=true
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from reloc_core.config import config_hash, plain
from reloc_core.cores import share_cores
from reloc_core.curves import FOLDER, Curves
from reloc_core.errors import RelocError, printable
from reloc_core.interfaces import Runtime
from reloc_core.isolation import observed
from reloc_core.registry import default_registry
from reloc_core.storage import atomic_write, explain_os_errors
from reloc_core.types import ScenePoints

PACKAGES = ("reloc", "numpy", "torch", "opencv-python-headless", "hydra-core", "safetensors")


class SafeConsole(Console):
    """A console on which the names of files and images cannot drive the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """See `rich.console.Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = SafeConsole(stderr=True, highlight=False)
"""Where people read; standard output is left for results that programs read."""


def package_versions() -> dict[str, str]:
    """Versions of reloc, Python and the packages that influence results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """The machine and software a run used, without host names or paths."""
    return {
        "versions": package_versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": usable_cpus(),
    }


def usable_cpus() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def resolve_runtime(device: str, threads: int, seed: int) -> Runtime:
    """Turn config values into a `Runtime`.

    Args:
        device: "auto", "cpu" or "cuda".
        threads: 0 for all usable cores.
        seed: any integer >= 0.

    Raises:
        RelocError: CUDA is asked for and not there, or a value makes no sense.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise RelocError(f"device={device} is unknown: use auto, cpu or cuda.")
    if threads < 0 or seed < 0:
        raise RelocError("threads and seed must not be negative.")
    share_cores()
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            device = "cuda"
        elif device == "cuda":
            raise RelocError(
                "device=cuda, but PyTorch sees no CUDA device. Use device=cpu or auto."
            )
        else:
            device = "cpu"
    count = threads or usable_cpus()
    # Without a choice PyTorch takes all cores by itself, when and if somebody imports it.
    if "torch" in sys.modules or (threads and find_spec("torch") is not None):
        import torch

        torch.set_num_threads(count)
    return Runtime(device=device, threads=count, seed=seed)


class _Task:
    """One progress bar; where nobody watches a terminal, a line now and then."""

    def __init__(
        self,
        bar: Progress | None,
        task: TaskID,
        title: str,
        total: int,
        curves: Curves | None = None,
    ) -> None:
        self._bar, self._task, self._title, self._total = bar, task, title, total
        self._curves = curves
        self._done = 0
        self._next_line = time.monotonic() + 10.0

    def advance(self, steps: int = 1, **values: float | str) -> None:
        self._done += steps
        if self._curves is not None:
            self._curves.progress(self._title, self._done, self._total, values)
        shown = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
        )
        if self._bar is not None:
            self._bar.advance(self._task, steps)
            if shown:
                self._bar.update(self._task, values=shown)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + 10.0
            console.print(f"{self._title} {self._done}/{self._total}  {shown}", markup=False)


@contextmanager
def show_progress(
    title: str, total: int, quiet: bool = False, curves: Curves | None = None
) -> Iterator[_Task]:
    """Show progress of `total` steps under `title`, as a bar or as a line now and then."""
    if console.is_terminal and not quiet:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=console, refresh_per_second=4) as bar:
            yield _Task(bar, bar.add_task(title, total=total, values=""), title, total, curves)
    else:
        task = _Task(None, TaskID(0), title, total, curves)
        if quiet:
            task._next_line = float("inf")
        yield task


class Reporter:
    """Who hears of the progress of a run: the terminal.

    Args:
        quiet: nobody.

    Attributes:
        on_shown: gets the pictures of a map while it is made, title and points.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.on_shown: Callable[[str, ScenePoints], None] | None = None
        self._curves: Curves | None = None

    def create(self) -> None:
        """Called once the input was checked, before the work begins."""

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[_Task]:
        """Show progress of `total` steps under `title`; log how long it took."""
        begin = time.monotonic()
        with show_progress(title, total, self.quiet, self._curves) as task:
            yield task
        seconds = time.monotonic() - begin
        self.log("finished", step=title, seconds=round(seconds, 3))
        if not console.is_terminal and not self.quiet:
            console.print(f"{title}: {total} done in {seconds:.1f} s", markup=False)

    def log(self, event: str, **values: Any) -> None:
        """Record a structured event; the terminal shows none."""

    def note(self, text: str) -> None:
        """Tell the user something."""
        if not self.quiet:
            console.print(text, markup=False, soft_wrap=True)

    def show(self, title: str, points: Callable[[], ScenePoints]) -> None:
        """Show the points of a map that is being made to who asked for them."""
        if self.on_shown is not None:
            self.on_shown(title, points())


class RunDirectory(Reporter):
    """One verb's output directory: its log, its environment and its result.

    Observers hear of the run when the directory is created and when its result is written; as a context
    manager, also when an exception ends it before.

    Args:
        path: directory to create.
        verb: such as "train", "evaluate", "localize" or "demo".
        cfg: the composed configuration.
        overrides: what the user typed.
        runtime: resolved device, threads and seed.
        quiet: no progress and no log file, as in the helper processes of a distributed run.
        observed: whether observers hear of it.
    """

    def __init__(
        self,
        path: Path | str,
        verb: str,
        cfg: DictConfig,
        overrides: Sequence[str],
        runtime: Runtime,
        quiet: bool = False,
        observed: bool = True,
    ) -> None:
        super().__init__(quiet)
        self.path = Path(path)
        self.verb, self.cfg, self.overrides = verb, cfg, list(overrides)
        self.runtime = runtime
        self.started = time.time()
        self._created = self._open = False
        self._observed = observed
        # Refused before anything is written where it is not installed.
        wanted = bool(cfg.get("tensorboard")) and observed and not quiet
        self._curves = Curves(self.path / FOLDER) if wanted else None

    def create(self) -> None:
        """Make the directory and write what is known beforehand; called once input was checked."""
        if self.quiet or self._created:
            return
        with explain_os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._created = True
            write_json(self.path / "environment.json", environment())
            OmegaConf.save(self.cfg, self.path / "config.yaml", resolve=True)
        self.log("started", verb=self.verb, overrides=self.overrides)
        if not self._observed:
            return
        manager = default_registry().manager
        if self._curves is not None:
            manager.register(observed(self._curves, FOLDER), name=FOLDER)
        self._open = True
        manager.hook.reloc_run_started(verb=self.verb, config=plain(self.cfg))

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if error is not None:
            self._end({"status": "failed", "verb": self.verb, "error": str(error)})

    def _end(self, result: Mapping[str, Any]) -> None:
        """Tell observers, once."""
        if not self._open:
            return
        self._open = False
        manager = default_registry().manager
        manager.hook.reloc_run_finished(verb=self.verb, result=result)
        if self._curves is not None:
            manager.unregister(name=FOLDER)
            self._curves.close()
            self._curves = None

    def log(self, event: str, **values: Any) -> None:
        """Append a structured event to `log.jsonl`."""
        if not self._created:
            return
        if self._curves is not None:
            self._curves.event(event, values)
        line = {"time": round(time.time() - self.started, 3), "event": event, **values}
        with explain_os_errors(self.path), (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def note(self, text: str) -> None:
        """Tell the user something and log it."""
        super().note(text)
        if not self.quiet:
            self.log("note", text=text)

    def result(self, status: str, **content: Any) -> dict[str, Any]:
        """Write `result.json` atomically and return what it holds.

        Args:
            status: "ok", or "partial" when some images could not be read, or "failed".
            content: metrics and whatever else the verb reports.
        """
        seconds = {"total": round(time.time() - self.started, 3), **content.pop("seconds", {})}
        result = {
            "status": status,
            "verb": self.verb,
            **content,
            "seconds": seconds,
            "peak_memory_mb": peak_memory_mb(),
            "overrides": self.overrides,
            "config_hash": config_hash(self.cfg),
            "versions": package_versions(),
        }
        if not self.quiet:
            self.create()
            write_json(self.path / "result.json", result)
            self._end(result)
        return result


@contextmanager
def observed_run(verb: str, cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """Observers hear of a verb without an output directory; what it puts into the dict is its result."""
    hook = default_registry().manager.hook
    hook.reloc_run_started(verb=verb, config=plain(cfg))
    result: dict[str, Any] = {"status": "ok", "verb": verb}
    try:
        yield result
    except BaseException as error:
        result.update(status="failed", error=str(error))
        raise
    finally:
        hook.reloc_run_finished(verb=verb, result=result)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically: readers see the old file or the whole new one."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, allow_nan=False, default=str)
        file.write("\n")

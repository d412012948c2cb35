"""`reloc data fetch`: download benchmark datasets and make the ACE layout of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reloc_core.cli.progress import ACCEPT, ACCEPTED, Bars
from reloc_core.datasets.benchmarks import BENCHMARKS, Benchmark, FetchOptions, fetch
from reloc_core.datasets.benchmarks.fetch import check_options
from reloc_core.errors import ConfigError, did_you_mean
from reloc_core.runs import console

USAGE = """\
reloc data fetch - download a benchmark dataset and make the ACE layout of it

Usage: reloc data fetch NAME --accept-license [option=value ...]

Options:
  root=data            folder of datasets; archives stay in its .downloads/
  scenes=all           or some of them, comma-separated
  poses=dslam          sfm: pseudo ground truth of Brachmann et al. 2021 (7scenes, 12scenes);
                       original: not moved to the colour camera, as DFNet and RelPose-GNN (7scenes)
  depth=none           registered: depth maps moved to the colour camera (7scenes)
  focal=published      pgt: the focal length re-estimated with poses=sfm (12scenes)
  mirror=              another address, or a folder of files that you have already
  partial=false        true accepts other frame counts than the published ones

An interrupted download goes on where it stopped when the same command runs again. Read what comes with
dataset=ace dataset.root=ROOT/FOLDER.

Datasets:
"""
_OPTIONS = ("root", "scenes", "poses", "depth", "focal", "mirror", "partial")


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE + "\n".join(_describe(b) for b in BENCHMARKS.values()))
        return 0
    name = arguments[0]
    if name not in BENCHMARKS:
        raise ConfigError(f"There is no dataset '{name}'.{did_you_mean(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    values, accepted = _parse(arguments[1:])
    scenes = _scenes(benchmark, values.get("scenes", "all"))
    if values.get("partial", "false") not in ("true", "false"):
        raise ConfigError("partial must be true or false.")
    options = FetchOptions(
        values.get("poses", "dslam"),
        values.get("depth", "none"),
        values.get("focal", "published"),
        values.get("partial") == "true",
    )
    check_options(benchmark, options)
    pgt = " The pseudo ground truth has the same terms." if options.poses == "sfm" else ""
    terms = f"{benchmark.title}: {benchmark.licence}\n  {benchmark.licence_url}\n{pgt}"
    console.print(terms.rstrip(), markup=False, soft_wrap=True)
    if not accepted:
        raise ConfigError(f"Read the terms above; if you accept them, add {ACCEPT}.")
    root = Path(values.get("root", "data")).expanduser()
    for scene in scenes:
        with Bars() as bars:
            folder = fetch(
                benchmark,
                scene,
                root,
                options,
                values.get("mirror", ""),
                None,
                _note,
                bars.received,
            )
        console.print(
            f"{folder} is ready: dataset=ace dataset.root={folder}", markup=False, soft_wrap=True
        )
    return 0


def _describe(benchmark: Benchmark) -> str:
    scenes = ", ".join(benchmark.scenes)
    choices = "; ".join(f"{k}={'|'.join(v)}" for k, v in benchmark.choices.items())
    return (
        f"  {benchmark.name:10} {benchmark.title}. {benchmark.licence}: {benchmark.licence_url}\n"
        f"             scenes: {scenes}\n"
        + (f"             {choices}\n" if choices else "")
        + f"             {benchmark.verified}"
    )


def _parse(arguments: Sequence[str]) -> tuple[dict[str, str], bool]:
    values, accepted = {}, False
    for argument in arguments:
        if argument in ACCEPTED:
            accepted = True
            continue
        key, equals, value = argument.partition("=")
        if not equals or key not in _OPTIONS:
            raise ConfigError(
                f"'reloc data fetch' has no option '{key}'.{did_you_mean(key, _OPTIONS)}"
            )
        values[key] = value
    return values, accepted


def _scenes(benchmark: Benchmark, text: str) -> Sequence[str]:
    if text == "all":
        return benchmark.scenes
    scenes = [name for name in text.strip("[]").split(",") if name]
    for name in scenes:
        if name not in benchmark.scenes:
            raise ConfigError(
                f"{benchmark.name} has no scene '{name}'.{did_you_mean(name, benchmark.scenes)}"
            )
    if not scenes:
        raise ConfigError("scenes= names no scene.")
    return scenes


def _note(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)

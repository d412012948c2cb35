"""Dispatch of verbs and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence

from reloc_core import __version__
from reloc_core.cli.exit_codes import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER
from reloc_core.cores import share_cores
from reloc_core.errors import ConfigError, RelocError, did_you_mean

USAGE = """\
reloc {version} - where was the camera? Map a place, then localize images in it.

Usage: reloc VERB [option=value ...]        reloc VERB --help teaches one verb

  demo        map the embedded room, localize its test path, write a report: start here
  map         from photos to a map, poses found:  reloc map images=PHOTOS|VIDEO map_dir=MAP
  train       build a map:       reloc train experiment=landmarks/default dataset=ace \\
                                     dataset.root=DIR map_dir=MAP
  evaluate    measure a map:     reloc evaluate map_dir=MAP dataset=ace dataset.root=DIR \\
                                     dataset.split=test output_dir=OUT
  localize    pose of images:    reloc localize map_dir=MAP images=DIR camera.focal=525 \\
                                     output_dir=OUT
  track       pose of a video:   reloc track map_dir=MAP images=walk.mp4 camera.focal=900 \\
                                     output_dir=OUT
  serve       answer over HTTP:  reloc serve map_dir=MAP port=8000
  collect     several maps as one:  reloc collect 'maps={{a: {{map_dir: A, dataset: {{...}}}}, ...}}' \\
                                     map_dir=COLLECTION
  view        look at it in 3D:  reloc view map_dir=MAP dataset=ace dataset.root=DIR output=view.rrd
  benchmark   map and measure:   reloc benchmark -m experiment=paper/ace_7scenes_sfm root=data
  data        reconstruct | check | convert | fetch   poses of your photos or video; look at a dataset,
                                     change its layout, get a benchmark
  weights     list | get | verify   pretrained weights and their terms
  sweep       table | resume | plot   what comes after 'reloc VERB -m ...'
  report      compare | merge    one table of several methods; several maps' results as one
  plugin      list | new | check | doctor   see, write, test and mend plugins
  cache       list | clear       maps that 'reloc benchmark' keeps so that none is fitted twice
  config      check              compose a configuration and show it without running
  completion  bash | zsh | fish  shell completion of verbs, options and values

Options are Hydra overrides: nested as dataset.root=DIR, swept as -m seed=1,2,3.
Exit codes: 0 done, 2 something to correct (a message says what), 130 interrupted, 1 a defect, or jobs of
a sweep that failed.
RELOC_DEBUG=1 shows stack traces.
"""


def _hydra_verb(name: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        from reloc_core.cli.hydra_app import run_verb

        return run_verb(name, arguments)

    return run


_DATA_HELP = """\
Usage: reloc data check dataset=NAME dataset.root=DIR [output_dir=OUT]     is it sane?
       reloc data convert dataset=NAME dataset.root=DIR to=LAYOUT output=OUT  write another layout
       reloc data reconstruct images=DIR|VIDEO|BAG output=OUT              poses of your own images
       reloc data fetch NAME --accept-license [root=DIR] [scenes=A,B]      get a benchmark dataset
Each has its own --help.
"""


def _data(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_DATA_HELP, end="")
        return EXIT_OK
    if arguments[0] == "fetch":
        from reloc_core.cli.data_fetch import run

        return run(arguments[1:])
    if arguments[0] not in ("check", "convert", "reconstruct"):
        known = ("check", "convert", "fetch", "reconstruct")
        raise ConfigError(
            f"There is no 'reloc data {arguments[0]}'.{did_you_mean(arguments[0], known)}"
        )
    return _hydra_verb(f"data_{arguments[0]}")(arguments[1:])


def _report(arguments: Sequence[str]) -> int:
    from reloc_core.cli.report import run

    return run(arguments)


def _weights(arguments: Sequence[str]) -> int:
    from reloc_core.cli.weights import run

    return run(arguments)


def _plugin(arguments: Sequence[str]) -> int:
    from reloc_core.cli.plugin import run

    return run(arguments)


def _sweep(arguments: Sequence[str]) -> int:
    from reloc_core.cli.sweep import run

    return run(arguments)


def _cache(arguments: Sequence[str]) -> int:
    from reloc_core.cli.cache import run

    return run(arguments)


def _config(arguments: Sequence[str]) -> int:
    from reloc_core.cli.config import run

    return run(arguments)


def _completion(arguments: Sequence[str]) -> int:
    from reloc_core.cli.completion import run

    return run(arguments, sorted(VERBS))


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _hydra_verb("demo"),
    "map": _hydra_verb("map"),
    "train": _hydra_verb("train"),
    "evaluate": _hydra_verb("evaluate"),
    "localize": _hydra_verb("localize"),
    "track": _hydra_verb("track"),
    "serve": _hydra_verb("serve"),
    "collect": _hydra_verb("collect"),
    "view": _hydra_verb("view"),
    "benchmark": _hydra_verb("benchmark"),
    "data": _data,
    "report": _report,
    "weights": _weights,
    "plugin": _plugin,
    "sweep": _sweep,
    "cache": _cache,
    "config": _config,
    "completion": _completion,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    share_cores()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="backslashreplace")  # a terminal without the character
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(USAGE.format(version=__version__), end="")
            return EXIT_OK
        if arguments[0] in ("-V", "--version"):
            print(__version__)
            return EXIT_OK
        verb = VERBS.get(arguments[0])
        if verb is None:
            raise ConfigError(
                f"There is no verb '{arguments[0]}'.{did_you_mean(arguments[0], VERBS)} "
                "See 'reloc --help'."
            )
        return verb(arguments[1:])
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes from the last checkpoint.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        message = _user_message(error)
        if message is None or os.environ.get("RELOC_DEBUG") == "1":
            raise
        print(f"reloc: error: {message}", file=sys.stderr)
        return EXIT_USER


def _user_message(error: BaseException) -> str | None:
    """The message of an error that the user can act on, None for a defect."""
    if isinstance(error, RelocError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{str(error.filename)[:80]} cannot be opened: {error.strerror}."
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return "the current folder was removed. Change to another one."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or 'while writing'}). Free some space and try again."
    if type(error).__module__.partition(".")[0] in ("omegaconf", "hydra", "antlr4"):
        return f"the configuration cannot be used: {' '.join(str(error).split())[:300]}"
    if isinstance(error, MemoryError):
        return "out of memory. Use fewer images, a smaller preset, or a machine with more memory."
    return None

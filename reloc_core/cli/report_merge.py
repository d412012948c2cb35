"""`reloc report merge`: the results of an ensemble's members as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reloc_core.errors import ConfigError, DataError
from reloc_core.evaluation.merging import merge_results
from reloc_core.evaluation.results import (
    LOCALIZATIONS_FILE,
    read_localizations,
    summarize_results,
    timing,
    write_result_files,
)
from reloc_core.io.files import read_text
from reloc_core.maps import explain_os_errors
from reloc_core.runs import console, write_json

USAGE = """\
reloc report merge - the results of several maps of one scene as one

Usage: reloc report merge output_dir=DIR RUN RUN ...

RUN     output folder of reloc evaluate; all of the same images

Of every image the pose with the most inliers is taken, of equal ones the first named. An image without
inliers in any run is not localized. DIR gets result.json, localizations.jsonl, poses.txt and
poses_tum.txt, as of reloc evaluate.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE, end="")
        return 0
    output, folders = _parse(arguments)
    told = [_result(folder) for folder in folders]
    datasets = [t.get("dataset") or {} for t in told]
    for folder, dataset in zip(folders, datasets, strict=True):
        if dataset.get("fingerprint") != datasets[0].get("fingerprint"):
            raise DataError(f"{folder} is of another dataset than {folders[0]}.")
    results = merge_results([read_localizations(f / LOCALIZATIONS_FILE) for f in folders])
    metrics = summarize_results(results).as_dict()
    with explain_os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        write_result_files(output, results, datasets[0].get("unit", "metre"))
    content = {
        "status": "ok" if all(r.readable for r in results) else "partial",
        "metrics": {**metrics, "relative": None},
        "seconds": timing(results),
        "dataset": datasets[0],
        "failures": [{"name": r.name, "reason": r.reason} for r in results if not r.localized],
        "merged": [str(folder) for folder in folders],
    }
    write_json(output / "result.json", content)
    done = sum(r.localized for r in results)
    console.print(
        f"{done} of {len(results)} images localized: {output}", markup=False, soft_wrap=True
    )
    return 0


def _parse(arguments: Sequence[str]) -> tuple[Path, list[Path]]:
    output, folders = "", []
    for argument in arguments:
        if argument.startswith("output_dir="):
            output = argument.partition("=")[2]
        elif argument.startswith("-"):
            raise ConfigError(f"'reloc report merge' has no flag '{argument}'.")
        else:
            folders.append(Path(argument).expanduser())
    if not output:
        raise ConfigError("Name where the merged result goes: output_dir=DIR.")
    if len(folders) < 2:
        raise ConfigError("Name at least two results to merge; see 'reloc report merge --help'.")
    if Path(output).expanduser().resolve() in [folder.resolve() for folder in folders]:
        raise ConfigError("output_dir is one of the results: it would be overwritten.")
    return Path(output).expanduser(), folders


def _result(folder: Path) -> dict[str, Any]:
    """Content of a `result.json`; empty where there is none."""
    path = folder / "result.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no valid JSON ({error.msg}).") from None
    return content if isinstance(content, dict) else {}

"""`reloc data check`: is a dataset sane enough to be mapped?"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from reloc_core.config import build
from reloc_core.datasets.check import check_dataset
from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset
from reloc_core.maps import explain_os_errors
from reloc_core.runs import RunDirectory, console, resolve_runtime


def _query_split(cfg: DictConfig) -> Dataset | None:
    """The split that will be queried, where the dataset has one."""
    node = OmegaConf.merge(cfg.dataset, {"split": cfg.test_split})
    try:
        dataset: Dataset = build(node, "dataset")  # type: ignore[arg-type]
    except DataError:
        return None
    return dataset


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb; exit code 2 when something is wrong with the data."""
    train: Dataset = build(cfg.dataset, "dataset")
    test = _query_split(cfg)
    runtime = resolve_runtime("cpu", 0, 0)
    with RunDirectory(cfg.output_dir, "data_check", cfg, overrides, runtime) as record:
        record.create()
        status = console.status("Checking poses, focal length, depth and coverage...")
        with status, explain_os_errors(record.path):
            report = check_dataset(train, test, record.path)
        console.print(report)
        record.result(
            "ok" if report.level != "error" else "failed",
            dataset={"name": train.name, "frames": len(train)},
            findings=[vars(finding) for finding in report.findings],
        )
        record.note(f"Picture and findings: {record.path}")
        return 2 if report.level == "error" else 0

"""`reloc data convert`: write a dataset in another layout."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from reloc_core.config import TARGET, build
from reloc_core.datasets.convert import convert
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset
from reloc_core.runs import console, show_progress

_READ_BACK = {
    "ace": "dataset=ace", "transforms": "dataset=transforms", "colmap": "dataset=colmap",
    "kapture": "dataset=kapture",
}  # fmt: skip


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb."""
    names = [str(name) for name in cfg.splits]
    if not names or len(set(names)) < len(names):
        raise ConfigError("splits must name each split once, such as splits=[train,test].")
    splits: dict[str, Dataset] = {}
    for name in names:
        node = OmegaConf.merge(cfg.dataset, {"split": name})
        splits[name] = build(node, "dataset")  # type: ignore[arg-type]
    total = sum(len(dataset) for dataset in splits.values())
    with show_progress("Converting", total) as bar:
        convert(splits, cfg.to, cfg.output, list(cfg.drop), cfg.flatten, cfg.images, bar.advance)
    for dataset in splits.values():
        for note in dataset.notes:
            console.print(f"{dataset.name}: {note}", markup=False)
    kept = f"{total} frames of {cfg.dataset[TARGET]} written to {cfg.output}."
    again = _READ_BACK.get(cfg.to)
    hint = f" Check them: reloc data check {again} dataset.root={cfg.output}" if again else ""
    console.print(kept + hint, markup=False, soft_wrap=True)
    return 0

"""`reloc data convert`: write a dataset in another layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from omegaconf import DictConfig, OmegaConf

from reloc_core.config import TARGET, build
from reloc_core.datasets.convert import convert, new_folder
from reloc_core.engine.training import TrainingRun
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset
from reloc_core.map_writer import MapWriter
from reloc_core.mapping.adjustment import Adjusted, adjust_poses
from reloc_core.runs import Reporter, console, resolve_runtime, show_progress

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
    new_folder(cfg.output)  # before the minutes that adjusting takes
    adjusted = (
        {name: _adjust(data, cfg.threads) for name, data in splits.items()} if cfg.adjust else {}
    )
    poses = {name: found.world_from_cam for name, found in adjusted.items()}
    total = sum(len(dataset) for dataset in splits.values())
    with show_progress("Converting", total) as bar:
        convert(splits, cfg.to, cfg.output, list(cfg.drop), cfg.flatten, cfg.images, bar.advance,
                poses)  # fmt: skip
    for name, found in adjusted.items():
        unit = "m" if splits[name].unit == "metre" else "scene units"
        console.print(
            f"{splits[name].name}: {int(found.adjusted.sum())} of {len(found.adjusted)} poses adjusted "
            f"with {found.points} points, by {found.moved:.3g} {unit} and {found.turned_deg:.2g} degrees "
            f"(medians); reprojection error {found.before_px:.2f} -> {found.after_px:.2f} px.",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    for dataset in splits.values():
        for note in dataset.notes:
            console.print(f"{dataset.name}: {note}", markup=False)
    kept = f"{total} frames of {cfg.dataset[TARGET]} written to {cfg.output}."
    again = _READ_BACK.get(cfg.to)
    hint = f" Check them: reloc data check {again} dataset.root={cfg.output}" if again else ""
    console.print(kept + hint, markup=False, soft_wrap=True)
    return 0


def _adjust(dataset: Dataset, threads: int) -> Adjusted:
    from reloc_core.features.sift import SiftDetector  # imports PyTorch

    # Nothing is kept between the steps, so there is no map to write.
    run = TrainingRun(resolve_runtime("cpu", threads, 0), cast(MapWriter, None), Reporter())
    return adjust_poses(dataset, SiftDetector(1080), run)

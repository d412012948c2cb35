"""`reloc train`: fit an estimator or a refiner to a scene and write its map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from reloc_core.calibration import CalibrationConfig
from reloc_core.config import TARGET, build, experiments, plain
from reloc_core.engine import extend, train
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset
from reloc_core.map_cache import MapCache
from reloc_core.maps import Map
from reloc_core.registry import Registry, default_registry
from reloc_core.runs import RunDirectory, resolve_runtime
from reloc_core.training.ranks import rank

if TYPE_CHECKING:
    from reloc_core.evaluation.video import MappingVideo


def chosen(cfg: DictConfig, registry: Registry) -> dict[str, Any]:
    """The estimator or the refiner to train, as an argument of `train`.

    Raises:
        ConfigError: none or both are chosen.
    """
    found = {i: plain(cfg[i]) for i in ("estimator", "refiner") if cfg.get(i)}
    if len(found) != 1:
        what = "No method was chosen" if not found else "Both an estimator and a refiner are chosen"
        raise ConfigError(
            f"{what}: add experiment=NAME, one of {', '.join(experiments(registry))}; "
            "or exactly one of estimator=NAME, refiner=NAME."
        )
    return found


def extra_datasets(cfg: DictConfig, registry: Registry) -> list[Dataset]:
    """The further scenes of `extra_datasets=[{name: DATASET, root: DIR}, ...]`.

    Raises:
        ConfigError: an entry has no name or wrong options.
    """
    found = []
    for entry in plain(cfg.get("extra_datasets")) or []:
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise ConfigError(
                f"extra_datasets takes entries such as {{name: ace, root: DIR}}, got {entry!r}."
            )
        options = {"split": "train", **entry}
        name = options.pop("name")
        dataset: Dataset = build({TARGET: name, **options}, "dataset", registry)
        found.append(dataset)
    return found


def new_record(cfg: DictConfig, verb: str, overrides: Sequence[str]) -> RunDirectory:
    """The output directory of a verb that trains; silent in helper processes."""
    runtime = resolve_runtime(cfg.device, cfg.threads, cfg.seed)
    return RunDirectory(cfg.output_dir, verb, cfg, overrides, runtime, quiet=rank() != 0)


def map_cache(cfg: DictConfig) -> MapCache | None:
    """What `cache=true|false|DIR` chooses; verbs without the option have none.

    Raises:
        ConfigError: it is neither.
    """
    wanted = cfg.get("cache", False)
    if not isinstance(wanted, bool | str):
        raise ConfigError(f"cache must be true, false or a folder, got {wanted!r}.")
    return MapCache(wanted if isinstance(wanted, str) else None) if wanted else None


def share_of(text: str | None) -> tuple[int, int] | None:
    """K and N of `share=K/N`.

    Raises:
        ConfigError: it is not of that form.
    """
    if text is None:
        return None
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal()):
        raise ConfigError(f"share must be K/N, such as 1/4 for the first of four, got {text!r}.")
    return int(number), int(of)


def train_map(
    cfg: DictConfig,
    dataset: Dataset,
    map_dir: str,
    record: RunDirectory,
    source: Path | None = None,
) -> Map | None:
    """Train what a config describes, or make the map of the file `source`.

    Returns:
        None in the helper processes of a distributed run, and for a share.
    """
    registry = default_registry()
    return train(
        dataset,
        map_dir,
        **chosen(cfg, registry),
        solver=plain(cfg.get("solver")),
        refiners=plain(cfg.get("refiners")),
        extra_datasets=extra_datasets(cfg, registry),
        calibration=CalibrationConfig.of(plain(cfg.get("calibration"))),
        device=cfg.device,
        threads=cfg.threads,
        seed=cfg.seed,
        resume=cfg.get("resume", True),
        overwrite=cfg.get("overwrite", False),
        source=source,
        share=share_of(cfg.get("share")),
        cache=map_cache(cfg),
        reporter=record,
    )


def extend_map(cfg: DictConfig, dataset: Dataset, map_dir: str, record: RunDirectory) -> Map:
    """Add images to a map."""
    return extend(
        dataset,
        map_dir,
        calibration=CalibrationConfig.of(plain(cfg.get("calibration"))),
        device=cfg.device,
        threads=cfg.threads,
        seed=cfg.seed,
        resume=cfg.resume,
        reporter=record,
    )


def _check_alone(cfg: DictConfig) -> None:
    """Refuse options that an extended map takes from the one that is there.

    Raises:
        ConfigError: names them.
    """
    alone = (
        "estimator", "refiner", "solver", "refiners", "extra_datasets", "overwrite", "share",
    )  # fmt: skip
    given = [name for name in alone if cfg.get(name)]
    if given:
        raise ConfigError(
            f"extend=true adds images to {cfg.map_dir} by the method and the options that it was made "
            f"with: leave out {', '.join(given)}."
        )


def _watched(record: RunDirectory, dataset: Dataset) -> MappingVideo:
    """A video of what the method shows of its map."""
    from reloc_core.evaluation.video import VIDEO_FILE, MappingVideo

    video = MappingVideo(record.path / VIDEO_FILE, dataset.frames)
    record.on_shown = video.add
    return video


def run(cfg: DictConfig, overrides: Sequence[str], source: Path | None = None) -> int:
    """Run the verb; with `source`, the map of that file is imported instead of trained."""
    if cfg.get("extend"):
        _check_alone(cfg)
    else:
        chosen(cfg, default_registry())
    dataset: Dataset = build(cfg.dataset, "dataset")
    with new_record(cfg, "train", overrides) as record:
        video = _watched(record, dataset) if cfg.get("video") else None
        finished = (
            extend_map(cfg, dataset, cfg.map_dir, record)
            if cfg.get("extend")
            else train_map(cfg, dataset, cfg.map_dir, record, source)
        )
        if finished is None:
            if cfg.get("share"):
                record.result("ok", share=cfg.share)
            return 0
        if video is not None and not video.write():
            record.note(
                f"No {video.path.name}: this method shows nothing of its map while it trains."
            )
        result = record.result(
            "ok",
            map={"path": str(cfg.map_dir), "bytes": finished.bytes, **finished.info.details},
            dataset=dict(finished.info.dataset),
        )
        record.note(
            f"Map: {cfg.map_dir} ({finished.bytes / 1e6:.1f} MB, {result['seconds']['total']:.0f} s). "
            f"Next: reloc evaluate map_dir={cfg.map_dir} ..."
        )
        return 0

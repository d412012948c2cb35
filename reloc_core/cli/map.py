"""`reloc map`: reconstruct, check and train in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from reloc_core.cli.data_reconstruct import describe
from reloc_core.cli.results import finish, report_results
from reloc_core.cli.train import chosen, extend_map, new_record, train_map
from reloc_core.config import build, plain
from reloc_core.datasets.check import check_dataset
from reloc_core.datasets.colmap import RECORD
from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder
from reloc_core.datasets.report import DataReport
from reloc_core.datasets.stream import is_stream
from reloc_core.datasets.subset import Subset
from reloc_core.datasets.upright import Upright
from reloc_core.engine import evaluate
from reloc_core.engine.extending import Localized, check_extends, new_frames
from reloc_core.engine.training import configured
from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.interfaces import Dataset
from reloc_core.io.bags import is_bag
from reloc_core.io.files import read_text, write_atomically
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.reconstruction import ReconstructOptions, reconstruct
from reloc_core.reconstruction.outcome import read_record
from reloc_core.registry import default_registry
from reloc_core.runs import RunDirectory, console

PLACE, PAGE = "place", "report.html"
_NO_MATTER = ("output", "add", "overwrite", "link", "threads")
"""Options of a reconstruction that it does not depend on."""


def run(cfg: DictConfig, overrides: Sequence[str]) -> int:
    """Run the verb; exit code 2 when the poses do not fit the images."""
    chosen(cfg, default_registry())
    map_dir, place = Path(cfg.map_dir), Path(cfg.output_dir) / PLACE
    if (map_dir / "map.yaml").exists() and not (cfg.add or cfg.overwrite):
        raise MapError(
            f"{map_dir} is a finished map: choose another map_dir, add=true to add the images to it, or "
            "overwrite=true to replace it."
        )
    with new_record(cfg, "map", overrides) as record:
        if cfg.add and not read_record(place / RECORD):
            return _add_localized(cfg, record)
        record.note("1/4  Finding the poses of the images")
        content = _reconstruction(cfg, place, record)
        record.create()
        record.note("2/4  Checking them")
        if content["sequence"]:
            OmegaConf.update(cfg, "dataset.sequence", content["sequence"])
        OmegaConf.update(cfg, "dataset.root", str(place))
        dataset: Dataset = build(cfg.dataset, "dataset")
        findings = check_dataset(dataset, None, record.path)
        console.print(findings)
        if findings.level == "error":
            raise DataError(f"The reconstruction cannot be mapped; {place / PAGE} shows it.")
        record.note(f"3/4  Mapping {len(dataset)} images")
        if cfg.add and _extends(cfg, record):
            scene_map: Map | None = extend_map(cfg, dataset, cfg.map_dir, record)
        else:
            cfg.overwrite = bool(cfg.overwrite or cfg.add)
            scene_map = train_map(cfg, dataset, cfg.map_dir, record)
        if scene_map is None:
            return 0
        record.note("4/4  Localizing what was held out, and writing the report")
        code = _measure(cfg, dataset, scene_map, record)
        page = record.path / PAGE
        sections = _sections(cfg, findings, scene_map, measured=page.exists())
        if page.exists():
            page.replace(record.path / "held_out.html")
        whole = read_text(place / PAGE).replace("<footer>", sections + "<footer>", 1)
        write_atomically(page, whole)
        record.note(
            f"Map: {map_dir} ({scene_map.bytes / 1e6:.1f} MB). Report: {page}\n"
            f"Next: reloc localize map_dir={map_dir} images=PHOTOS camera.from_map=true output_dir=OUT"
        )
        return code


def _add_localized(cfg: DictConfig, record: RunDirectory) -> int:
    """Add images to a map that was made from given poses: theirs are those that the map finds."""
    scene_map = Map.open(cfg.map_dir)
    check_extends(scene_map)
    images = plain(cfg.images)
    if is_stream(images) or (isinstance(images, str) and is_bag(images)):
        raise ConfigError(
            f"{cfg.map_dir} was not made by 'reloc map': give a folder or a pattern of photos to add to it."
        )
    given = {k: v for k, v in plain(cfg.reconstruct.camera).items() if v is not None}
    camera = CameraConfig(**given, from_map=not given)
    photos = ImageFolder(images, camera, mapped_frames(scene_map).cameras)
    record.create()
    for note in photos.notes:
        record.note(note)
    record.note("1/2  Localizing the images in the map")
    pipeline = Pipeline.from_map(scene_map, runtime=record.runtime)
    found = Localized(photos, pipeline, record)
    record.note(f"2/2  Adding {len(found)} images")
    extended = extend_map(cfg, found, cfg.map_dir, record)
    record.result("ok", map={"path": str(cfg.map_dir), "bytes": extended.bytes})
    record.note(f"Map: {cfg.map_dir} ({extended.bytes / 1e6:.1f} MB).")
    return 0


def _extends(cfg: DictConfig, record: RunDirectory) -> bool:
    """Whether the map that is there takes more images; otherwise it is made anew from all."""
    registry = default_registry()
    wanted = chosen(cfg, registry).get("estimator")
    scene_map = Map.open(cfg.map_dir)
    if wanted is None:
        return False
    component, config = configured(wanted, "estimator", registry)
    info = scene_map.info
    if (component.name, plain(config)) != (info.component, plain(info.config)):
        record.note("The options of the map have changed: it is made anew from all images.")
        return False
    try:
        check_extends(scene_map, registry)
    except ConfigError as error:
        record.note(f"{str(error).partition('. ')[0]}: it is made anew from all.")
        return False
    return True


def _reconstruction(cfg: DictConfig, place: Path, record: RunDirectory) -> Mapping[str, Any]:
    """The record of the reconstruction; a finished one of an interrupted run is taken."""
    options = ReconstructOptions.of(
        {
            **plain(cfg.reconstruct), "scale": plain(cfg.scale), "images": cfg.images,
            "output": str(place), "add": cfg.add, "overwrite": cfg.overwrite and not cfg.add,
            "threads": cfg.threads, "seed": cfg.seed,
        }
    )  # fmt: skip
    before = read_record(place / RECORD)
    if before and cfg.resume and not (cfg.add or cfg.overwrite):
        _check_same(place, before["options"], asdict(options))
        record.note(f"Using the finished reconstruction {place}.")
        content = before
    else:
        content = reconstruct(options, record)
    describe(content, options)
    return content


def _check_same(place: Path, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a finished reconstruction of other images or options.

    Raises:
        DataError: names what differs.
    """
    old = _flat({k: v for k, v in before.items() if k not in _NO_MATTER})
    new = _flat({k: v for k, v in wanted.items() if k not in _NO_MATTER})
    for name in sorted(set(old) & set(new), key=lambda name: name != "images"):
        if old[name] == new[name]:
            continue
        given = name in ("images", "seed") or name.startswith("scale.")
        shown = name if given else f"reconstruct.{name}"
        raise DataError(
            f"{place} holds a reconstruction of {shown}={_shown(old[name])}, not {_shown(new[name])}: "
            "choose another map_dir or output_dir, or overwrite=true."
        )


def _flat(options: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Options by the names that users give them."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = list(value) if isinstance(value, tuple) else value
    return found


def _shown(value: object) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _measure(cfg: DictConfig, dataset: Dataset, scene_map: Map, record: RunDirectory) -> int:
    """Localize the images that the map was calibrated by: those that are not in it."""
    held = new_frames(Upright.of(dataset), mapped_frames(scene_map))
    result = {"map": {"path": str(cfg.map_dir), "bytes": scene_map.bytes}}
    if not held:
        record.result("ok", **result)
        return 0
    pipeline = Pipeline.from_map(scene_map, runtime=record.runtime)
    evaluation = evaluate(pipeline, Subset(dataset, held), reporter=record)
    report_results(evaluation, pipeline, record, True)
    return finish(record, evaluation.results)


def _sections(cfg: DictConfig, findings: DataReport, scene_map: Map, measured: bool) -> str:
    rows = "".join(
        f'<tr><td class="one">{escape(f.level)}</td><td class="one">{escape(f.check)}</td>'
        f'<td class="text">{escape(f.message)}</td></tr>'
        for f in findings.findings
    )
    told = (
        'Images that were held out of the map are localized in it on <a href="held_out.html">a page of '
        "their own</a>; their poses come from the same reconstruction, so it shows how well the map "
        "fits it, not how true it is."
        if measured
        else "The map has all images: too few to hold some out. Localize new ones to see how it does."
    )
    return (
        f'<h2>Check</h2><div class="panel scroll"><table>{rows}</table></div>'
        f'<h2>Map</h2><p class="note">{escape(str(cfg.map_dir))}: {escape(scene_map.info.component)}, '
        f"{scene_map.bytes / 1e6:.1f} MB. {told}</p>"
    )

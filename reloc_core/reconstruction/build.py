"""The stages of a reconstruction, in the folder that becomes the workspace. Runs in a child process."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.datasets.colmap import RECORD
from reloc_core.errors import DataError
from reloc_core.io.colmap import read_model
from reloc_core.io.files import write_atomically
from reloc_core.io.images import read_image
from reloc_core.reconstruction import pairs as pairing
from reloc_core.reconstruction.database import Database, camera_of, extract
from reloc_core.reconstruction.mapper import Mapped, Mapper
from reloc_core.reconstruction.options import ReconstructOptions
from reloc_core.reconstruction.outcome import (
    Summary,
    elsewhere,
    places,
    read_record,
    reasons,
    record,
)
from reloc_core.reconstruction.page import render
from reloc_core.reconstruction.photos import Photo, Source
from reloc_core.reconstruction.scale import find_world
from reloc_core.reconstruction.source import FEWEST, input_files, prepare
from reloc_core.reconstruction.worker import Remote
from reloc_core.reconstruction.world import Posed, World
from reloc_core.runs import write_json
from reloc_core.storage import explain_os_errors
from reloc_core.types import Camera, Float64Array, ImageArray

REPORT, DATABASE, SOURCE = "report.html", "database.db", "source.json"


@dataclass(frozen=True)
class Job:
    """What the child is asked for.

    Attributes:
        options: of the user.
        work: folder to build in.
        title: name of the workspace.
        before: record of the workspace that images are added to; empty for a new one.
    """

    options: ReconstructOptions
    work: Path
    title: str
    before: Mapping[str, Any]


def build(job: Job, run: Remote) -> dict[str, Any]:
    """Make or extend the workspace in `job.work`; returns the content of its record.

    Raises:
        DataError: the images cannot be used, or do not make a model.
    """
    with explain_os_errors(job.work):
        return _build(job, run)


def _build(job: Job, run: Remote) -> dict[str, Any]:
    options, work = job.options, job.work
    folder = work / "images"
    folder.mkdir(parents=True, exist_ok=True)
    old = [
        Photo(**{k: v for k, v in p.items() if k != "reason"}) for p in job.before.get("images", [])
    ]
    source = _source(options, work, folder, [photo.name for photo in old], run)
    for note in source.notes:
        run.note(f"{options.images}: {note}")
    photos = [*old, *source.photos]
    usable = [photo for photo in photos if not photo.problem]
    database = Database(work / DATABASE, options.threads, options.seed)
    try:
        cameras, said, fixed = _cameras(database, usable, folder, options, source)
        extract(database, usable, folder, cameras, options.features, options.side, run)
        numbers = database.ids()
        _match(database, usable, numbers, options, source, len(old), run)
        matched = database.matched()
        features = {name: database.features(number) for name, number in numbers.items()}
    finally:
        database.close()
    mapper = Mapper(work / DATABASE, folder, work / "mapping", fixed, options.threads, options.seed)
    connected = max(places(matched, numbers), default=0)
    if job.before:
        start = _read(work / "sparse" / "0")
        total = len([photo for photo in usable if photo.name in numbers])
        mapped = Mapped([mapper.extend(start, total, run, fix=True)], ())
    elif options.mapper == "global":
        mapped = mapper.map_globally(run)
    else:
        mapped = mapper.map(connected, run) if matched else Mapped([], ())
    shutil.rmtree(work / "mapping", ignore_errors=True)
    if not mapped.models or mapped.models[0].num_reg_images() < FEWEST:
        raise DataError(_no_model(options, usable, features, matched, connected))
    summary = _finish(job, source, photos, mapped, numbers, features, matched, said)
    content = record(summary, asdict(options), source.video)
    write_json(work / RECORD, content)
    write_atomically(work / REPORT, render(summary, folder))
    (work / SOURCE).unlink(missing_ok=True)
    return content


def fingerprint(options: ReconstructOptions) -> str:
    """Of what images and features depend on, options and files: a killed run goes on with the same.

    Raises:
        DataError: there are no images.
    """
    kept = (
        "images",
        "topic",
        "video",
        "motion",
        "most",
        "camera",
        "cameras",
        "features",
        "side",
        "add",
    )
    values = asdict(options)
    stats = [(str(file), file.stat()) for file in input_files(options.images)]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    text = json.dumps([{k: values[k] for k in kept}, files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source(
    options: ReconstructOptions, work: Path, folder: Path, present: Sequence[str], run: Remote
) -> Source:
    """The images; those that an interrupted run has put there already."""
    file = work / SOURCE
    saved = read_record(file)
    if saved:
        photos = tuple(Photo(**photo) for photo in saved["photos"])
        camera = Camera(**saved["camera"]) if saved["camera"] else None
        run.note("Going on where an interrupted run stopped.")
        return Source(photos, saved["video"], tuple(saved["notes"]), camera)
    source = prepare(options, folder, present, run)
    write_json(file, asdict(source))
    return source


def _cameras(
    database: Database,
    photos: Sequence[Photo],
    folder: Path,
    options: ReconstructOptions,
    source: Source,
) -> tuple[dict[str, int], list[str], list[int]]:
    """Numbers of the cameras by lens, what is known of them in words, and those that are calibrated."""
    there = database.cameras_of([photo.name for photo in photos])
    cameras: dict[str, int] = {}
    for photo in photos:
        if photo.name in there:
            cameras.setdefault(photo.lens, there[photo.name])
    said: list[str] = []
    fixed = []
    for photo in {photo.lens: photo for photo in reversed(photos)}.values():
        camera, sure, whence = camera_of(photo, folder, options.camera, source.camera)
        if photo.lens not in cameras:
            cameras[photo.lens] = database.add_camera(camera, sure)
        said.append(f"camera {photo.lens}: starts at {camera.fx:.0f} px, {whence}")
        if options.camera.params is not None or source.camera is not None:
            fixed.append(cameras[photo.lens])
    return cameras, said, fixed


def _match(
    database: Database,
    photos: Sequence[Photo],
    numbers: Mapping[str, int],
    options: ReconstructOptions,
    source: Source,
    old: int,
    run: Remote,
) -> None:
    listed = [photo.name for photo in photos if photo.name in numbers]
    kind = options.pairs
    if kind == "auto":
        few = len(listed) <= options.exhaustive
        kind = "exhaustive" if few else "sequential" if source.video else "retrieval"
    looks = None
    if kind != "exhaustive":
        rows = {numbers[name]: database.descriptors(numbers[name]) for name in listed}
        looks = pairing.looks_of(rows, options.seed)
    new = None
    if old:
        fresh = {photo.name for photo in source.photos}
        new = [i for i, name in enumerate(listed) if name in fresh]
    chosen = pairing.choose(kind, len(listed), looks, options.neighbours, options.similar, new)
    pairs = sorted(
        (min(numbers[listed[i]], numbers[listed[j]]), max(numbers[listed[i]], numbers[listed[j]]))
        for i, j in chosen
    )
    database.match(pairs, {number: name for name, number in numbers.items()}, run)


def _no_model(
    options: ReconstructOptions,
    photos: Sequence[Photo],
    features: Mapping[str, int],
    matched: Mapping[Any, int],
    connected: int,
) -> str:
    few = sum(features.get(photo.name, 0) < 100 for photo in photos)
    text = f"The {len(photos)} images of {options.images} make no model: "
    if few > len(photos) / 2:
        return (
            text + f"{few} of them show fewer than 100 features (blurred, dark or without texture)."
        )
    if not matched:
        return text + "no two of them match. Take photos that overlap by more than half."
    return text + (
        f"{len(matched)} pairs match and connect at most {connected} images, but from no pair a scene "
        "can be triangulated. Move sideways between photos: turning on the spot gives no depth."
    )


def _read(folder: Path) -> Any:
    import pycolmap

    return pycolmap.Reconstruction(str(folder))


def _finish(
    job: Job,
    source: Source,
    photos: Sequence[Photo],
    mapped: Mapped,
    numbers: Mapping[str, int],
    features: Mapping[str, int],
    matched: Mapping[Any, int],
    cameras: Sequence[str],
) -> Summary:
    """Give the largest model its world, and write it."""
    import pycolmap

    work, folder = job.work, job.work / "images"
    model = mapped.models[0]
    colours = _colour(model, folder)
    target = work / "sparse" / "0"
    by_name = {photo.name: photo for photo in photos}
    if job.before and job.options.scale.kind is None:
        kept = job.before["world"]
        known = ("source", "scale", "world_from_model", "shift")
        world = World(
            kept["scale"], np.array(kept["world_from_model"]), np.array(kept["shift"]),
            job.before["unit"], kept["source"], {k: v for k, v in kept.items() if k not in known},
        )  # fmt: skip
    else:
        world = find_world(job.options.scale, _posed(model, by_name, work), folder)
        model.transform(
            pycolmap.Sim3d(world.scale, pycolmap.Rotation3d(world.rotation), world.shift)
        )
    partial = work / "sparse" / "new"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.write_binary(str(partial))
    images = _posed(model, by_name, work, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    names = {image.name for image in images}
    groups = [{m.image(i).name for i in m.reg_image_ids()} - names for m in mapped.models[1:]]
    others = [group for group in groups if len(group) >= FEWEST]
    points = np.array([p.xyz for p in model.points3D.values()], np.float64).reshape(-1, 3)
    notes = list(source.notes)
    if others:
        notes.append(
            f"the images show several places or do not overlap enough: kept the largest model of "
            f"{len(images)} images, left out {', '.join(str(len(g)) for g in others)}"
        )
    for group in elsewhere(matched, numbers, names):
        if all(group.isdisjoint(other) for other in others):
            notes.append(
                f"{len(group)} images show another place, or do not overlap with these: "
                f"{', '.join(sorted(group)[:3])}" + (" ..." if len(group) > 3 else "")
            )
    fresh = {photo.name for photo in source.photos}
    return Summary(
        job.title, photos,
        reasons(photos, numbers, features, matched, dict.fromkeys(names), others),
        images, points, colours, world,
        float(model.compute_mean_reprojection_error()), float(model.compute_mean_track_length()),
        mapped.attempts, [len(group) for group in others],
        sorted(names & fresh) if job.before else (), notes, [*cameras, *_found(model)],
    )  # fmt: skip


def _found(model: Any) -> list[str]:
    used = {model.image(i).camera_id for i in model.reg_image_ids()}
    return [
        f"camera {number}: {entry.model.name} {entry.width}x{entry.height}, "
        f"focal length {entry.mean_focal_length():.1f} px"
        for number, entry in sorted(model.cameras.items())
        if number in used
    ]


def _posed(
    model: Any, photos: Mapping[str, Photo], work: Path, folder: Path | None = None
) -> list[Posed]:
    """The registered images, in the order of the photos, with our cameras and poses."""
    if folder is None:
        folder = work / "sparse" / "raw"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model.write_binary(str(folder))
        read = read_model(folder)
        shutil.rmtree(folder)
    else:
        read = read_model(folder)
    seen: dict[str, Float64Array] = {}
    for number in model.reg_image_ids():
        image = model.image(number)
        points = [model.point3D(p.point3D_id).xyz for p in image.points2D if p.has_point3D()]
        seen[image.name] = np.array(points, np.float64).reshape(-1, 3)
    order = {name: i for i, name in enumerate(photos)}
    posed = [
        Posed(name, camera, pose, photos[name].orientation if name in photos else 1, seen[name])
        for name, camera, pose in zip(read.names, read.cameras, read.world_from_cam, strict=True)
    ]
    return sorted(posed, key=lambda image: order.get(image.name, len(order)))


def _colour(model: Any, folder: Path) -> ImageArray:
    """(P, 3) mean colours of the points, which are also written into the model."""
    sums = {number: np.zeros(4) for number in model.point3D_ids()}
    for number in model.reg_image_ids():
        image = model.image(number)
        pixels = read_image(folder / image.name)
        height, width = pixels.shape[:2]
        for point in image.points2D:
            if point.has_point3D():
                x = min(max(int(point.xy[0]), 0), width - 1)
                y = min(max(int(point.xy[1]), 0), height - 1)
                sums[point.point3D_id] += [*pixels[y, x], 1]
    colours = []
    for number, point in model.points3D.items():
        total = sums[number]
        colour = np.rint(total[:3] / max(total[3], 1)).astype(np.uint8)
        point.color = colour
        colours.append(colour)
    return np.array(colours, np.uint8).reshape(-1, 3)

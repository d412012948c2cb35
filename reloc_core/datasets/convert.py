"""Writing a dataset in another layout.

Every layout states what it cannot represent. Such a field makes the conversion fail with its name,
unless the caller names it in `drop`. Nothing is written under the final name until all of it is there.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from reloc_core.datasets.base import FileDataset
from reloc_core.errors import ConfigError, DataError, InputError, did_you_mean
from reloc_core.interfaces import Dataset
from reloc_core.io.ace import stem, write_ace
from reloc_core.io.colmap import write_model
from reloc_core.io.files import write_atomically
from reloc_core.io.kapture import write_kapture
from reloc_core.io.poselists import NamedPose, write_pose_list
from reloc_core.io.poses import write_tum
from reloc_core.io.transforms import write_transforms
from reloc_core.maps import explain_os_errors, partial_directory
from reloc_core.types import DepthArray, Float64Array, Frame

DROPPABLE = ("timestamp", "sequence", "depth", "unit", "camera")
"""Fields that a conversion may leave out when it is told to."""

IMAGE_MODES = ("copy", "hardlink", "symlink")
Advance = Callable[[], None]


@dataclass(frozen=True)
class Split:
    """One split on its way into a layout.

    Attributes:
        name: such as "train".
        dataset: where pixels come from.
        frames: metadata under the names they get.
        depth: whether depth maps are taken along.
        camera: whether intrinsics are taken along.
    """

    name: str
    dataset: Dataset
    frames: tuple[Frame, ...]
    depth: bool
    camera: bool = True

    @property
    def files(self) -> FileDataset | None:
        """The dataset if its files can be taken as they are."""
        if isinstance(self.dataset, FileDataset) and not self.dataset.undistorts:
            return self.dataset
        return None


@dataclass(frozen=True)
class Job:
    """Where a conversion writes.

    Attributes:
        root: folder being filled.
        final: the name it gets when it is complete.
        images: one of `IMAGE_MODES`.
        advance: called after every image.
    """

    root: Path
    final: Path
    images: str
    advance: Advance


@dataclass(frozen=True)
class Layout:
    """A target of `convert`.

    Attributes:
        write: writes all splits into a folder.
        lacks: fields it cannot represent.
        summary: for help texts.
        pixels: whether images are written.
    """

    write: Callable[[Sequence[Split], Job], None]
    lacks: frozenset[str]
    summary: str
    pixels: bool = True


def convert(
    splits: Mapping[str, Dataset],
    to: str,
    output: Path | str,
    drop: Collection[str] = (),
    flatten: bool = False,
    images: str = "copy",
    advance: Advance = lambda: None,
    poses: Mapping[str, Float64Array] | None = None,
) -> None:
    """Write splits of a scene in another layout.

    Args:
        splits: datasets by the name of their split.
        to: a key of `LAYOUTS`.
        output: folder to create.
        drop: fields of `DROPPABLE` to leave out.
        flatten: replace "/" in names by "-".
        images: "copy", "hardlink" or "symlink" image files; images that are not files of the source
            (rendered or undistorted ones) are written as PNG.
        advance: called after every image.
        poses: (N, 4, 4) world_from_cam of a split's images in place of their own, by the split's name.

    Raises:
        InputError: the layout cannot represent something; the message names the field.
        ConfigError: malformed options.
        DataError: the folder exists, or an image cannot be read.
    """
    if to not in LAYOUTS:
        raise ConfigError(f"There is no layout '{to}'.{did_you_mean(to, LAYOUTS)}")
    for field in drop:
        if field not in DROPPABLE:
            raise ConfigError(f"'{field}' cannot be dropped.{did_you_mean(field, DROPPABLE)}")
    if images not in IMAGE_MODES:
        raise ConfigError(f"images must be one of {', '.join(IMAGE_MODES)}, got '{images}'.")
    target = new_folder(output)
    layout = LAYOUTS[to]
    prepared = [
        _prepare(name, dataset, to, layout, frozenset(drop), flatten, (poses or {}).get(name))
        for name, dataset in splits.items()
    ]
    partial = partial_directory(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with explain_os_errors(target):
            partial.mkdir(parents=True)
            layout.write(prepared, Job(partial, target.absolute(), images, advance))
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def new_folder(path: Path | str) -> Path:
    """The path of a folder that is to be made.

    Raises:
        DataError: it exists.
    """
    if Path(path).exists():
        raise DataError(f"{path} exists. Choose another output or remove it.")
    return Path(path)


def _prepare(
    name: str, dataset: Dataset, to: str, layout: Layout, drop: frozenset[str], flatten: bool,
    poses: Float64Array | None,
) -> Split:  # fmt: skip
    depth = dataset.has_depth and "depth" not in drop
    given = tuple(dataset.frames)
    if poses is not None:
        given = tuple(replace(f, world_from_cam=p) for f, p in zip(given, poses, strict=True))
    split = Split(name, dataset, given, depth, "camera" not in drop)
    frames = []
    for frame in split.frames:
        new = PurePosixPath(frame.name.replace("\\", "/"))
        if new.is_absolute() or ".." in new.parts:
            raise InputError(f"The name '{frame.name}' leaves the dataset's folder.")
        if any(c < " " for c in frame.name):
            raise InputError(f"The name {frame.name!r} is no line of text. Rename the file.")
        renamed = new.as_posix().replace("/", "-") if flatten else new.as_posix()
        if layout.pixels and split.files is None:
            renamed = PurePosixPath(renamed).with_suffix(".png").as_posix()
        frames.append(
            replace(
                frame,
                name=renamed,
                timestamp=None if "timestamp" in drop else frame.timestamp,
                sequence=None if "sequence" in drop else frame.sequence,
            )
        )
    if len({frame.name for frame in frames}) < len(frames):
        raise InputError(f"Two images of {dataset.name} get the same name. Use flatten=false.")
    for field in sorted(layout.lacks - drop):
        if _has(field, dataset, frames):
            raise InputError(
                f"The layout '{to}' cannot represent the {field} of {dataset.name}. "
                f"Use another layout, or leave it out with drop=[{field}]."
            )
    return replace(split, frames=tuple(frames))


def _has(field: str, dataset: Dataset, frames: Sequence[Frame]) -> bool:
    if field == "depth":
        return dataset.has_depth
    if field == "unit":
        return dataset.unit != "metre"
    return any(getattr(frame, field) is not None for frame in frames)


def _write_pixels(
    split: Split,
    folder: Path,
    job: Job,
    depths: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Images at folder/NAME, and depth maps at folder/DEPTH where paths for them are given."""
    source = split.files
    for index, frame in enumerate(split.frames):
        target = folder / (frame.name if names is None else names[index])
        target.parent.mkdir(parents=True, exist_ok=True)
        depth = folder / depths[index] if depths is not None and split.depth else None
        if depth is not None:
            depth.parent.mkdir(parents=True, exist_ok=True)
        if source is not None:
            place_image(source.image_paths[index], target, job.images)
            if depth is not None:
                assert source.depth_paths is not None
                place_image(source.depth_paths[index], depth, job.images)
        else:
            query = split.dataset[index]
            _encode(target, query.image[..., ::-1])
            if depth is not None:
                if query.depth is None:
                    raise InputError(f"{frame.name} has no depth, though {split.dataset.name} has.")
                _encode(depth, _millimetres(query.depth, frame.name))
        job.advance()


def place_image(source: Path, target: Path, mode: str) -> None:
    """Copy, hardlink or symlink an image file (`IMAGE_MODES`).

    Raises:
        DataError: there is none.
    """
    try:
        if mode == "hardlink":
            os.link(source.resolve(), target)
        elif mode == "symlink":
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)
    except FileNotFoundError:
        raise DataError(f"{source} does not exist.") from None


def _encode(path: Path, pixels: np.ndarray) -> None:
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise DataError(f"{path} could not be encoded.")
    path.write_bytes(data.tobytes())


def _millimetres(depth: DepthArray, name: str) -> np.ndarray:
    raw = np.rint(depth.astype(np.float64) * 1000)
    if raw.max(initial=0) >= 65535:
        raise InputError(
            f"{name}: depth beyond 65.5 m cannot be represented in 16-bit millimetres."
        )
    return raw.astype(np.uint16)


def _ace(splits: Sequence[Split], job: Job) -> None:
    for split in splits:
        folder = job.root / split.name
        folder.mkdir()
        write_ace(folder, split.frames)
        # Depth stands beside rgb/, so its path leads out of it.
        depths = [f"../depth/{stem(frame.name)}.depth.png" for frame in split.frames]
        (folder / "rgb").mkdir()
        if split.depth:
            (folder / "depth").mkdir()
        _write_pixels(split, folder / "rgb", job, depths)


def _transforms(splits: Sequence[Split], job: Job) -> None:
    for split in splits:
        alone = len(splits) == 1
        file = "transforms.json" if alone else f"transforms_{split.name}.json"
        base = "" if alone else f"{split.name}/"
        names = [f"{base}images/{frame.name}" for frame in split.frames]
        depths = [f"{base}depth/{_png(frame.name)}" for frame in split.frames]
        write_transforms(job.root / file, split.frames, names, depths if split.depth else None)
        _write_pixels(split, job.root, job, depths, names)


def _png(name: str) -> str:
    return PurePosixPath(name).with_suffix(".png").as_posix()


def _colmap(splits: Sequence[Split], job: Job) -> None:
    everything = [frame for split in splits for frame in split.frames]
    folder = job.root / "sparse" / "0"
    folder.mkdir(parents=True)
    write_model(folder, everything)
    for split in splits:
        if split.name != "all":
            names = "".join(f"{frame.name}\n" for frame in split.frames)
            write_atomically(job.root / f"list_{split.name}.txt", names)
        _write_pixels(split, job.root / "images", job)


def _kapture(splits: Sequence[Split], job: Job) -> None:
    for split in splits:
        folder = job.root / {"train": "mapping", "test": "query"}.get(split.name, split.name)
        folder.mkdir()
        write_kapture(folder, split.frames)
        _write_pixels(split, folder / "sensors" / "records_data", job)


def _tum(splits: Sequence[Split], job: Job) -> None:
    for split in splits:
        stamps, poses = [], []
        for frame in split.frames:
            if frame.timestamp is None or frame.world_from_cam is None:
                field = "timestamp" if frame.timestamp is None else "world_from_cam"
                raise InputError(f"{frame.name} has no {field}; a TUM trajectory needs it.")
            stamps.append(frame.timestamp)
            poses.append(frame.world_from_cam)
        written = [round(stamp, 9) for stamp in stamps]
        if any(b <= a for a, b in itertools.pairwise(written)):
            raise InputError(
                f"The timestamps of {split.dataset.name} do not increase; a TUM trajectory cannot "
                "represent several sequences. Convert one sequence at a time (dataset.frames)."
            )
        write_tum(job.root / f"{split.name}.txt", stamps, np.array(poses), split.dataset.unit)


def _poses(splits: Sequence[Split], job: Job) -> None:
    for split in splits:
        entries = []
        for frame in split.frames:
            if frame.world_from_cam is None:
                raise InputError(f"{frame.name} has no world_from_cam; a pose list needs it.")
            focal = _only_focal(frame) if split.camera else None
            entries.append(NamedPose(frame.name, frame.world_from_cam, focal))
        write_pose_list(job.root / f"{split.name}.txt", entries)


def _only_focal(frame: Frame) -> float:
    camera = frame.camera
    centre = ((camera.width - 1) / 2, (camera.height - 1) / 2)
    if not camera.is_pinhole or camera.fx != camera.fy or (camera.cx, camera.cy) != centre:
        raise InputError(
            f"{frame.name}: a pose list holds one focal length only and cannot represent the camera "
            f"{camera.model} {camera.params}. Leave it out with drop=[camera]."
        )
    return camera.fx


def _kfnet(splits: Sequence[Split], job: Job) -> None:
    for split in splits:
        folder = job.root / split.name
        folder.mkdir()
        # The lists hold absolute paths: KFNet changes its working directory.
        names = tuple(str(job.final / split.name / "images" / f.name) for f in split.frames)
        _write_pixels(split, folder / "images", job)
        sequences = tuple(frame.sequence or split.name for frame in split.frames)
        for name, entries in (("image_list.txt", names), ("sequence_list.txt", sequences)):
            bad = next((e for e in entries if e != e.strip() or len(e.splitlines()) != 1), None)
            if bad is not None:
                raise InputError(f"{name} holds one entry a line and cannot represent {bad!r}.")
            write_atomically(folder / name, "".join(f"{entry}\n" for entry in entries))


LAYOUTS: Mapping[str, Layout] = {
    "ace": Layout(
        _ace, frozenset({"unit"}), "DSAC*/ACE folders: OUT/SPLIT/{rgb,poses,calibration}"
    ),
    "transforms": Layout(_transforms, frozenset(), "nerfstudio: OUT/transforms[_SPLIT].json"),
    "colmap": Layout(
        _colmap,
        frozenset({"timestamp", "sequence", "depth"}),
        "COLMAP: OUT/{images,sparse/0}, OUT/list_SPLIT.txt",
    ),
    "kapture": Layout(_kapture, frozenset({"depth", "unit"}), "kapture: OUT/{mapping,query}"),
    "tum": Layout(_tum, frozenset(), "TUM trajectory OUT/SPLIT.txt: poses only", pixels=False),
    "poses": Layout(
        _poses,
        frozenset(),
        "pose list OUT/SPLIT.txt of the pseudo ground truth format: poses and focal lengths only",
        pixels=False,
    ),
    "kfnet": Layout(
        _kfnet, frozenset(), "KFNet OUT/SPLIT/{image_list,sequence_list}.txt and images: no poses"
    ),
}
"""The layouts that `convert` writes."""

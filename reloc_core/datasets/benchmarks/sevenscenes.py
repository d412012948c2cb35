"""7Scenes (Shotton et al., CVPR 2013).

The pose files are those of the *depth* camera. "dslam" moves them to the colour camera with the Kinect
calibration of LIRIS that the scripts of DSAC*, ACE and GLACE use; "sfm" takes the pseudo ground truth of
Brachmann et al. (ICCV 2021), another world frame. "original" leaves the pose files as they are and gives
the images the depth camera's focal length, as DFNet, NeFeS and RelPose-GNN do: their published
networks and average poses belong to these poses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from reloc_core.datasets.benchmarks.base import (
    Benchmark,
    FetchOptions,
    Note,
    Source,
    pgt_source,
    place_frames,
    read_pgt,
)
from reloc_core.errors import DataError
from reloc_core.geometry import inverse, nearest_rotation
from reloc_core.io.archives import extract
from reloc_core.io.files import read_text
from reloc_core.io.images import read_depth
from reloc_core.io.poses import read_pose
from reloc_core.types import Camera, DepthArray, Float64Array, Frame

URL = "http://download.microsoft.com/download/2/8/5/28564B23-0828-408F-8631-23B1EFF1DAC8"
WIDTH, HEIGHT = 640, 480
RGB_FOCAL, DEPTH_FOCAL = 525.0, 585.0

RGB_FROM_DEPTH = np.array(
    [
        [0.99996518012567637, 0.0026765126468950343, -0.0079041012313000904, -0.025558943178152542],
        [
            -0.0027409311281316700,
            0.99996302803027592,
            -0.0081504520778013286,
            0.00010109636268061706,
        ],
        [0.0078819942130445332, 0.0081718328771890631, 0.99993554558014031, 0.0020318321729487039],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""Kinect calibration of LIRIS: depth camera to colour camera, metres."""

SPLITS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "chess": ((1, 2, 4, 6), (3, 5)),
    "fire": ((1, 2), (3, 4)),
    "heads": ((2,), (1,)),
    "office": ((1, 3, 4, 5, 8, 10), (2, 6, 7, 9)),
    "pumpkin": ((2, 3, 6, 8), (1, 7)),
    "redkitchen": ((1, 2, 5, 7, 8, 11, 13), (3, 4, 6, 12, 14)),
    "stairs": ((2, 3, 5, 6), (1, 4)),
}
"""Training and test sequences."""


_PREFIX = {"dslam": "", "sfm": "pgt_", "original": "original_"}


class SevenScenes(Benchmark):
    """See the module docstring."""

    name = "7scenes"
    title = "Microsoft 7-Scenes"
    licence = "Microsoft Research, non-commercial use; see the page"
    licence_url = "https://www.microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes/"
    scenes = tuple(SPLITS)
    choices: ClassVar = {"poses": ("dslam", "sfm", "original"), "depth": ("none", "registered")}
    verified = "addresses as in the set-up scripts of ACE; checksums unknown"

    def sources(self, scene: str, options: FetchOptions) -> Sequence[Source]:
        """The scene's archive, and pose lists for "sfm"."""
        archive = Source(f"7scenes/{scene}.zip", (f"{URL}/{scene}.zip",))
        if options.poses != "sfm":
            return [archive]
        lists = [pgt_source(f"pgt/sfm/7scenes/{scene}_{split}.txt") for split in ("train", "test")]
        return [archive, *lists]

    def folder(self, scene: str, options: FetchOptions) -> str:
        """`7scenes_SCENE`, `pgt_7scenes_SCENE` or `original_7scenes_SCENE`."""
        return f"{_PREFIX[options.poses]}7scenes_{scene}"

    def expected(self, scene: str, options: FetchOptions) -> Mapping[str, int]:
        """1000 frames a sequence, 500 on the stairs."""
        length = 500 if scene == "stairs" else 1000
        train, test = SPLITS[scene]
        return {"train": length * len(train), "test": length * len(test)}

    def build(
        self, scene: str, options: FetchOptions, files: Path, work: Path, out: Path, note: Note
    ) -> None:
        """Unpack the sequences, which are archives within the archive, and move the frames."""
        extract(files / "7scenes" / f"{scene}.zip", work, _wanted_outer)
        root = work / scene if (work / scene).is_dir() else work
        for split in ("train", "test"):
            listed = None
            if options.poses == "sfm":
                listed = read_pgt(files / f"pgt/pgt/sfm/7scenes/{scene}_{split}.txt")
            frames: list[Frame] = []
            images: list[Path] = []
            depths: list[tuple[Path, Camera]] = []
            for sequence in _sequences(root / f"{split.capitalize()}Split.txt"):
                folder = _unpack_sequence(root, sequence, options.depth != "none")
                for image in sorted(folder.glob("frame-*.color.png")):
                    frame = _frame(image, sequence, options.poses, listed)
                    frames.append(frame)
                    images.append(image)
                    depths.append(
                        (image.with_name(image.name.replace(".color.", ".depth.")), frame.camera)
                    )
            place_frames(out / split, frames, images)
            if options.depth == "registered":
                _write_depth(out / split / "depth", frames, depths)


def _wanted_outer(name: str) -> bool:
    return name.endswith((".zip", ".txt"))


def _sequences(path: Path) -> list[str]:
    """Folders of the sequences: "sequence3" in the split file is "seq-03"."""
    names = []
    for line in read_text(path).split():
        number = line.removeprefix("sequence")
        if not number.isdigit():
            raise DataError(f"{path.name} holds '{line}' where 'sequenceN' is expected.")
        names.append(f"seq-{int(number):02d}")
    if not names:
        raise DataError(f"{path.name} lists no sequences.")
    return names


def _unpack_sequence(root: Path, sequence: str, depth: bool) -> Path:
    archive = root / f"{sequence}.zip"
    if archive.is_file():
        endings = (
            (".color.png", ".pose.txt", ".depth.png") if depth else (".color.png", ".pose.txt")
        )
        extract(archive, root, lambda name: name.endswith(endings))
        archive.unlink()
    folder = root / sequence
    if not folder.is_dir():
        raise DataError(
            f"The archive holds no sequence {sequence}, though its split file lists it."
        )
    return folder


def _frame(
    image: Path, sequence: str, poses: str, listed: Mapping[str, tuple[Float64Array, float]] | None
) -> Frame:
    stem = image.name.removesuffix(".color.png")
    name = f"{sequence}-{image.name}"
    if listed is not None:
        key = f"{sequence}/{stem}"
        if key not in listed:
            raise DataError(f"The pseudo ground truth has no pose of {key}.")
        pose, focal = listed[key]
        return Frame(name, Camera.pinhole(focal, WIDTH, HEIGHT), pose)
    pose = read_pose(image.with_name(f"{stem}.pose.txt"))
    if not np.all(np.isfinite(pose)):
        raise DataError(f"The pose of {sequence}/{stem} is not finite.")
    pose[:3, :3] = nearest_rotation(pose[:3, :3])
    if poses == "original":
        return Frame(name, Camera.pinhole(DEPTH_FOCAL, WIDTH, HEIGHT), pose)
    return Frame(name, Camera.pinhole(RGB_FOCAL, WIDTH, HEIGHT), pose @ _depth_from_rgb())


def _depth_from_rgb() -> Float64Array:
    exact = RGB_FROM_DEPTH.copy()
    exact[:3, :3] = nearest_rotation(exact[:3, :3])
    return inverse(exact)


def register_depth(depth: DepthArray, rgb_focal: float) -> DepthArray:
    """Depth of the depth camera as the colour camera sees it.

    Back-projected with focal length 585, moved by the Kinect calibration and splatted to the nearest
    pixel; both principal points are (320, 240) in pixel indices, as in the published scripts. Unlike
    there, the nearest surface wins where several points fall on a pixel.

    Args:
        depth: (480, 640) metres, 0 where unknown.
        rgb_focal: of the colour camera, pixels.
    """
    height, width = depth.shape
    v, u = np.nonzero(depth > 0)
    z = depth[v, u].astype(np.float64)
    points = np.stack(
        [(u - width / 2) / DEPTH_FOCAL * z, (v - height / 2) / DEPTH_FOCAL * z, z, np.ones_like(z)]
    )
    x, y, z, _ = RGB_FROM_DEPTH @ points
    column = np.rint(rgb_focal * x / z + width / 2).astype(int)
    row = np.rint(rgb_focal * y / z + height / 2).astype(int)
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    result = np.full((height, width), np.inf)
    np.minimum.at(result, (row[inside], column[inside]), z[inside])
    return np.where(np.isfinite(result), result, 0).astype(np.float32)


def _write_depth(
    folder: Path, frames: Sequence[Frame], depths: Sequence[tuple[Path, Camera]]
) -> None:
    folder.mkdir()
    for frame, (path, camera) in zip(frames, depths, strict=True):
        registered = register_depth(read_depth(path), camera.fx)
        name = frame.name.replace(".color.png", ".depth.png")
        cv2.imwrite(str(folder / name), np.rint(registered * 1000).astype(np.uint16))

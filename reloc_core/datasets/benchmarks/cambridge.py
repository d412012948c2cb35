"""Cambridge Landmarks (Kendall, Grimes, Cipolla, ICCV 2015).

Poses come from `dataset_train.txt` and `dataset_test.txt` (camera centre and world-to-camera quaternion),
focal lengths from `reconstruction.nvm`. The lens distortion is ignored and the principal point is the
centre, as in the scripts of DSAC*, ACE and GLACE; images are reduced to a short side of 480 pixels.
"Street" is left out for its poor reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reloc_core.datasets.benchmarks.base import (
    Benchmark,
    FetchOptions,
    Note,
    Source,
    reduced,
    write_rgb,
)
from reloc_core.errors import DataError
from reloc_core.io.ace import write_ace
from reloc_core.io.archives import extract
from reloc_core.io.files import read_text
from reloc_core.io.images import read_image
from reloc_core.io.nvm import pose_from_center, read_nvm
from reloc_core.types import Camera, Float64Array, Frame

URL = "https://www.repository.cam.ac.uk/bitstream/handle/1810"
HANDLES = {
    "KingsCollege": "251342", "OldHospital": "251340", "ShopFacade": "251336",
    "StMarysChurch": "251294", "GreatCourt": "251291",
}  # fmt: skip
FARTHEST = 10_000.0
"""Poses whose world-to-camera translation has a larger entry are outliers and left out."""


class Cambridge(Benchmark):
    """See the module docstring."""

    name = "cambridge"
    title = "Cambridge Landmarks"
    licence = "see the page"
    licence_url = "https://www.repository.cam.ac.uk/items/53788265-cb98-42ee-b85b-7a0cbc8eddb3"
    scenes = tuple(HANDLES)
    verified = "addresses as in the set-up scripts of ACE; checksums unknown"

    def sources(self, scene: str, options: FetchOptions) -> Sequence[Source]:
        """The scene's archive."""
        url = f"{URL}/{HANDLES[scene]}/{scene}.zip"
        return [Source(f"cambridge/{scene}.zip", (url,))]

    def folder(self, scene: str, options: FetchOptions) -> str:
        """`Cambridge_SCENE`."""
        return f"Cambridge_{scene}"

    def build(
        self, scene: str, options: FetchOptions, files: Path, work: Path, out: Path, note: Note
    ) -> None:
        """Unpack without the videos, reduce the images, write poses and focal lengths."""
        endings = (".png", ".nvm", ".txt")
        extract(files / "cambridge" / f"{scene}.zip", work, lambda name: name.endswith(endings))
        root = work / scene if (work / scene).is_dir() else work
        focals = {
            str(Path(camera.name).with_suffix(".png").as_posix()): camera.focal
            for camera in read_nvm(root / "reconstruction.nvm")
        }
        for split in ("train", "test"):
            poses = read_dataset_list(root / f"dataset_{split}.txt")
            missing = [name for name in poses if name not in focals]
            if missing:
                note(f"{scene}/{split}: {len(missing)} images are not in the reconstruction")
            frames, far = [], 0
            for name in sorted(set(poses) - set(missing)):
                pose = poses[name]
                if np.abs(pose[:3, :3].T @ pose[:3, 3]).max() > FARTHEST:
                    far += 1
                    continue
                image, factor = reduced(read_image(root / name))
                flat = name.replace("/", "_")
                write_rgb(out / split / "rgb" / flat, image)
                height, width = image.shape[:2]
                camera = Camera.pinhole(focals[name] * factor, width, height)
                frames.append(Frame(flat, camera, pose))
            if far:
                note(f"{scene}/{split}: {far} images lie too far away and are left out")
            write_ace(out / split, frames)


def read_dataset_list(path: Path) -> Mapping[str, Float64Array]:
    """`world_from_cam` by image of `dataset_train.txt` or `dataset_test.txt`.

    Three header lines, then `image X Y Z W P Q R`: camera centre and world-to-camera quaternion.

    Raises:
        DataError: a line has other columns, or the list is empty.
    """
    poses = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if number <= 3 or not words:
            continue
        try:
            values = [float(word) for word in words[1:8]]
            if len(words) != 8 or not np.all(np.isfinite(values)):
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path.name}, line {number}: expected 'image X Y Z W P Q R'."
            ) from None
        poses[words[0]] = pose_from_center(values[3:], values[:3])
    if not poses:
        raise DataError(f"{path.name} lists no images.")
    return poses

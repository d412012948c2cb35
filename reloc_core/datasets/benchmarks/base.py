"""What all benchmark datasets share."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from reloc_core.errors import DataError
from reloc_core.io.ace import write_ace
from reloc_core.io.poselists import read_pose_list
from reloc_core.types import Float64Array, Frame, ImageArray

PGT_COMMIT = "22b7c48a0e55b49d0214a8dbb022426f518e2795"
PGT_URL = f"https://raw.githubusercontent.com/tsattler/visloc_pseudo_gt_limitations/{PGT_COMMIT}"
"""Pseudo ground truth of "On the Limits of Pseudo Ground Truth" (ICCV 2021), one fixed state of it."""

SHORT_SIDE = 480
"""Images of Cambridge and Aachen are reduced to this, as in the scripts of DSAC* and GLACE."""

Note = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A file to download.

    Attributes:
        path: name below the download folder, and below a mirror.
        urls: where it is published.
        sha256: of the content; None where nobody published it and it could not be verified.
    """

    path: str
    urls: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class FetchOptions:
    """What to make of a dataset.

    Attributes:
        poses: "dslam" (of the depth sensor's tracking) or "sfm" (pseudo ground truth), where there is a
            choice; "original": those of "dslam" without their move to the colour camera (7Scenes).
        depth: "none" or "registered" (7Scenes).
        focal: "published" as the scripts of DSAC*, ACE and GLACE set it, or "pgt" as re-estimated with
            the SfM poses (12Scenes).
        partial: accept other frame counts than the published ones.
    """

    poses: str = "dslam"
    depth: str = "none"
    focal: str = "published"
    partial: bool = False


class Benchmark(ABC):
    """One benchmark dataset.

    Attributes:
        name: on the command line.
        title: in full.
        licence: in a sentence, as far as known.
        licence_url: where the terms stand.
        scenes: names of the scenes.
        choices: options that exist beside the defaults, by name.
        verified: what is known about its addresses and checksums.
    """

    name: str
    title: str
    licence: str
    licence_url: str
    scenes: tuple[str, ...]
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    verified: str

    @abstractmethod
    def sources(self, scene: str, options: FetchOptions) -> Sequence[Source]:
        """Files that a scene needs."""

    @abstractmethod
    def folder(self, scene: str, options: FetchOptions) -> str:
        """Name of the scene's folder, as the scripts of DSAC*, ACE and GLACE have it."""

    @abstractmethod
    def build(
        self, scene: str, options: FetchOptions, files: Path, work: Path, out: Path, note: Note
    ) -> None:
        """Make the ACE layout of a scene.

        Args:
            scene: one of `scenes`.
            options: see `FetchOptions`.
            files: folder of the downloads, laid out as `Source.path`.
            work: empty folder for unpacking; removed afterwards.
            out: empty folder to fill with train/ and test/.
            note: tells the user something.

        Raises:
            DataError: an archive is damaged or not what it should be.
        """

    def expected(self, scene: str, options: FetchOptions) -> Mapping[str, int]:
        """Published number of frames by split, where it is known."""
        return {}


def pgt_source(path: str) -> Source:
    """A list of the pseudo ground truth repository."""
    return Source(f"pgt/{path}", (f"{PGT_URL}/{path}",))


def two_stems(name: str) -> str:
    """A path without its last two endings: the key of the pseudo ground truth lists."""
    return os.path.splitext(os.path.splitext(name)[0])[0]


def read_pgt(path: Path) -> dict[str, tuple[Float64Array, float]]:
    """`world_from_cam` and focal length by `two_stems` of the image.

    Raises:
        DataError: the list is damaged or has no focal lengths.
    """
    entries = read_pose_list(path)
    if any(entry.focal is None for entry in entries):
        raise DataError(
            f"{path} has no focal lengths: it is a list of estimates, not of ground truth."
        )
    return {two_stems(e.name): (e.world_from_cam, float(e.focal or 0)) for e in entries}


def place_frames(split: Path, frames: Sequence[Frame], images: Sequence[Path]) -> None:
    """Write one split in the ACE layout and move the image files into it."""
    (split / "rgb").mkdir(parents=True)
    write_ace(split, frames)
    for frame, image in zip(frames, images, strict=True):
        os.replace(image, split / "rgb" / frame.name)


def reduced(image: ImageArray) -> tuple[ImageArray, float]:
    """The image with a short side of 480 pixels, and the factor of its width.

    The long side is rounded up and the factor taken from the width, as in the scripts of DSAC*, ACE
    and GLACE; so is the bilinear filter.
    """
    height, width = image.shape[:2]
    aspect = height / width
    if aspect > 1:
        size = (SHORT_SIDE, math.ceil(SHORT_SIDE * aspect))
    else:
        size = (math.ceil(SHORT_SIDE / aspect), SHORT_SIDE)
    resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8), size[0] / width


def write_rgb(path: Path, image: ImageArray) -> None:
    """Write an RGB image in the format that the name says."""
    done, data = cv2.imencode(
        path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95]
    )
    if not done:
        raise DataError(f"{path.name} could not be encoded.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())

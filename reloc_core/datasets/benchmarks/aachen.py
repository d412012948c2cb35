"""Aachen Day-Night v1.0 (Sattler et al., CVPR 2018).

Mapping images come from the NVM reconstruction, queries from the lists with intrinsics. Images are
undistorted with the principal point at the centre and reduced to a short side of 480 pixels, as in the
script of GLACE. Unlike there, an image's pose is looked up by its name, not by its line, and queries have
no pose instead of the identity: they are judged at visuallocalization.net.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
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
from reloc_core.io.nvm import read_nvm
from reloc_core.io.poselists import read_query_list
from reloc_core.types import Camera, Frame, ImageArray

URL = "https://data.ciirc.cvut.cz/public/projects/2020VisualLocalization/Aachen-Day-Night"
IMAGES = "images/database_and_query_images.zip"
NVM = "3D-models/aachen_cvpr2018_db.nvm"
LIST = "3D-models/aachen_cvpr2018_db.list.txt"
QUERIES = tuple(f"queries/{time}_time_queries_with_intrinsics.txt" for time in ("day", "night"))
FOLDER = "images_upright"


class Aachen(Benchmark):
    """See the module docstring."""

    name = "aachen"
    title = "Aachen Day-Night v1.0"
    licence = "CC BY-NC-SA 4.0, non-commercial academic use"
    licence_url = f"{URL}/README_Aachen-Day-Night.md"
    scenes = ("aachen",)
    verified = "addresses as in the set-up script of GLACE; checksums unknown"

    def sources(self, scene: str, options: FetchOptions) -> Sequence[Source]:
        """Images, reconstruction and query lists."""
        return [
            Source(f"aachen/{path}", (f"{URL}/{path}",)) for path in (IMAGES, NVM, LIST, *QUERIES)
        ]

    def folder(self, scene: str, options: FetchOptions) -> str:
        """`aachen`."""
        return "aachen"

    def build(
        self, scene: str, options: FetchOptions, files: Path, work: Path, out: Path, note: Note
    ) -> None:
        """Undistort and reduce the images, write poses and focal lengths."""
        base = files / "aachen"
        listed = [line.split()[0] for line in read_text(base / LIST).splitlines() if line.split()]
        cameras = {camera.name.removeprefix("./"): camera for camera in read_nvm(base / NVM)}
        queries = {}
        for path in QUERIES:
            queries.update(read_query_list(base / path))
        extract(base / IMAGES, work, lambda name: name.startswith(f"{FOLDER}/"))
        unknown = [name for name in listed if name not in cameras]
        if unknown:
            note(f"aachen/train: {len(unknown)} listed images are not in the reconstruction")
        if len(unknown) == len(listed):
            raise DataError(f"{LIST} and {NVM} have no image in common.")
        frames = []
        for name in listed:
            if name in cameras:
                known = cameras[name]
                camera = _prepare(
                    work / FOLDER / name, out / "train", name, known.focal, -known.radial
                )
                frames.append(Frame(_flat(name), camera, known.world_from_cam))
        write_ace(out / "train", frames)
        frames = []
        for name, (model, _, _, params) in queries.items():
            if model != "SIMPLE_RADIAL" or len(params) != 4:
                raise DataError(f"{name}: expected a SIMPLE_RADIAL camera, found {model}.")
            camera = _prepare(work / FOLDER / name, out / "test", name, params[0], params[3])
            frames.append(Frame(_flat(name), camera))
        write_ace(out / "test", frames)


def _flat(name: str) -> str:
    return name.replace("/", "_")


def _prepare(source: Path, split: Path, name: str, focal: float, k1: float) -> Camera:
    image, factor = reduced(undistort(read_image(source), focal, k1))
    write_rgb(split / "rgb" / _flat(name), image)
    height, width = image.shape[:2]
    return Camera.pinhole(focal * factor, width, height)


def undistort(image: ImageArray, focal: float, k1: float) -> ImageArray:
    """Remove one radial term about the image centre (width / 2, height / 2)."""
    height, width = image.shape[:2]
    matrix = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return np.asarray(cv2.undistort(image, matrix, np.array([k1, 0.0, 0.0, 0.0])), np.uint8)

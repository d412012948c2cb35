"""A map put to work: from an image to a pose in one call.

from reloc_core import Camera, Localizer

localizer = Localizer.from_map("maps/room")
found = localizer.localize("photo.jpg", Camera.pinhole(525, 640, 480))
print(found.world_from_cam if found.localized else found.reason)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reloc_core.collection import open_pipeline
from reloc_core.engine.queries import Outcome, run_queries
from reloc_core.errors import DataError, InputError
from reloc_core.io.cameras import fit_camera
from reloc_core.io.headers import read_header
from reloc_core.io.images import decode_image, exif_focal, read_image
from reloc_core.mapped import camera_of_mapping, mapped_frames
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.runs import resolve_runtime
from reloc_core.types import Camera, DepthArray, ImageArray, Localization, Query

Intrinsics = Camera | float | np.ndarray | tuple[Camera, ...] | None
"""A camera, a focal length in pixels, a 3x3 calibration matrix, the cameras of mapping images to choose
from, or None for EXIF."""

CameraChoice = Camera | float | np.ndarray | Literal["map"] | None
"""The same as users give it: "map" is the camera of the mapping images."""

Image = str | Path | bytes | np.ndarray
"""A file, the content of one, or RGB pixels (H, W, 3) or grey ones (H, W), uint8."""


class Localizer:
    """Localizes single images or the frames of videos; safe to call from several threads.

    As many images are localized at a time as there are pipelines; those of a sequence by the first.

    Args:
        pipeline: ready to localize.
        copies: of it, with a state of their own.
    """

    def __init__(self, pipeline: Pipeline, copies: Sequence[Pipeline] = ()) -> None:
        self.pipeline = pipeline
        self._sequence: str | None = None
        self._idle = [*copies, pipeline]
        self._freed = threading.Condition()

    @classmethod
    def from_map(
        cls,
        map_dir: Path | str,
        solver: str | Mapping[str, Any] | None = None,
        refiners: Sequence[str | Mapping[str, Any]] | None = None,
        estimator: Mapping[str, Any] | None = None,
        device: str = "auto",
        threads: int = 0,
        seed: int = 42,
        workers: int = 1,
        orientation: str = "exif",
    ) -> Localizer:
        """Load a map.

        Args:
            map_dir: directory written by `reloc train` or `reloc collect`.
            solver: as in `Pipeline.from_map`.
            refiners: as in `Pipeline.from_map`.
            estimator: as in `Pipeline.from_map`.
            device: "auto", "cpu" or "cuda".
            threads: CPU threads of each image; 0 for all cores.
            seed: of everything random.
            workers: images that are localized at a time when several threads ask; each has the map in
                memory once more; those of a collection share its memory.
            orientation: as in `Pipeline`: "any" also tries the other turns of an image that fails.

        Raises:
            MapError: the map cannot be used.
            ConfigError: components do not fit or options are wrong.
        """
        runtime = resolve_runtime(device, threads, seed)
        workers = max(workers, 1)
        first, *copies = (
            open_pipeline(
                map_dir, solver, refiners, estimator, runtime, orientation=orientation,
                workers=workers,
            )
            for _ in range(workers)
        )  # fmt: skip
        return cls(first, copies)

    @property
    def map(self) -> Map | None:
        """The map that it localizes in."""
        return self.pipeline.map

    def localize(
        self,
        image: Image,
        camera: CameraChoice = None,
        depth: DepthArray | None = None,
        timestamp: float | None = None,
        sequence: str | None = None,
    ) -> Localization:
        """Find the pose of an image; "not localized", or refused by a stage, is a result, not an exception.

        Args:
            image: a file, the content of one, or RGB or grey pixels in uint8.
            camera: intrinsics, scaled to the image where they are of another size; or a focal length or
                a 3x3 calibration matrix in pixels of this image. "map": the camera of the mapping
                images. None takes the focal length from the EXIF data of a file.
            depth: (H, W) float32 metres, 0 where unknown, for methods that use it.
            timestamp: seconds.
            sequence: name of the video that the image belongs to. Methods with a memory keep it
                between images of one sequence; without a name every image is on its own.

        Raises:
            DataError: the image cannot be read, or its focal length is unknown.
            InputError: the arguments do not fit together.
        """
        chosen = intrinsics(camera, self.map)
        return self.localize_query(load_query(image, chosen, depth, timestamp, sequence))

    def localize_query(self, query: Query) -> Localization:
        """Localize a query of `load_query`; as `localize`."""
        return self.run(query).localization

    def run(self, query: Query, observed: bool = True) -> Outcome:
        """What becomes of a query, as `run_queries` says it; `observed` as there."""
        with self._pipeline(query.sequence is not None) as pipeline:
            goes_on = query.sequence is not None and query.sequence == self._sequence
            if pipeline is self.pipeline:
                self._sequence = query.sequence
            (outcome,) = run_queries(pipeline, [query], observed=observed, goes_on=goes_on)
            return outcome

    @contextmanager
    def _pipeline(self, first: bool) -> Iterator[Pipeline]:
        """A pipeline that nobody else uses meanwhile; copies before the first one, which remembers."""
        with self._freed:
            wanted = (lambda: self.pipeline in self._idle) if first else (lambda: bool(self._idle))
            self._freed.wait_for(wanted)
            chosen = self.pipeline if first else self._idle[0]
            self._idle.remove(chosen)
        try:
            yield chosen
        finally:
            with self._freed:
                # The first one stays the last to be chosen.
                self._idle.insert(len(self._idle) if chosen is self.pipeline else 0, chosen)
                self._freed.notify_all()


def intrinsics(camera: CameraChoice, scene_map: Map | None) -> Intrinsics:
    """What a user gave as camera, for `load_query`.

    Raises:
        InputError: nothing that tells intrinsics.
    """
    if isinstance(camera, str):
        if camera != "map":
            raise InputError(f"camera='{camera}' is no camera: {_CAMERAS}.")
        return () if scene_map is None else mapped_frames(scene_map).cameras
    if camera is None or isinstance(camera, Camera):
        return camera
    try:
        numbers = np.asarray(camera, np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(2)
    if isinstance(camera, bool) or numbers.shape not in ((), (3, 3)):
        raise InputError(f"camera={str(camera)[:60]} is no camera: {_CAMERAS}.")
    return numbers if numbers.shape else float(numbers)


_CAMERAS = "give a Camera, a focal length in pixels, a 3x3 calibration matrix, or 'map'"


def _of_matrix(matrix: np.ndarray, width: int, height: int) -> Camera:
    """The camera of a calibration matrix.

    Raises:
        InputError: it is none.
    """
    (fx, skew, cx), below = matrix[0], (matrix[1, 0], *matrix[2])
    if not np.isfinite(matrix).all() or below != (0, 0, 0, 1):
        raise InputError(
            f"A calibration matrix is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {matrix.tolist()}."
        )
    if abs(skew) > 1e-3 * fx:
        raise InputError(
            f"The calibration matrix has a skew of {skew:g}; pixels must be square-cut."
        )
    return Camera("PINHOLE", width, height, (fx, matrix[1, 1], cx, matrix[1, 2]))


def load_query(
    image: Image,
    camera: Intrinsics = None,
    depth: DepthArray | None = None,
    timestamp: float | None = None,
    sequence: str | None = None,
    name: str = "",
) -> Query:
    """An image as a query; arguments and errors as in `Localizer.localize`.

    The EXIF orientation of a file or of its content is kept in the query, which is localized upright;
    pixels, camera and pose stay those of the stored image.
    """
    name = name or (str(image) if isinstance(image, str | Path) else "image")
    pixels = load_pixels(image, name)
    encoded = isinstance(image, str | Path | bytes)
    return Query(
        name,
        _camera(image, camera, pixels, name),
        timestamp=timestamp,
        sequence=sequence,
        orientation=read_header(image, name).orientation if encoded else 1,  # type: ignore[arg-type]
        image=pixels,
        depth=depth,
    )


def load_pixels(image: Image, name: str = "image") -> ImageArray:
    """RGB pixels (H, W, 3) uint8 of a file, of the content of one, or of an array.

    Raises:
        DataError: it cannot be decoded.
        InputError: an array of another shape or type.
    """
    if isinstance(image, bytes):
        return decode_image(image, name)
    if isinstance(image, str | Path):
        return read_image(image)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise InputError(
            f"An image must be RGB uint8 of shape (height, width, 3), got {pixels.dtype} "
            f"{pixels.shape}."
        )
    return np.ascontiguousarray(pixels)


def _camera(image: Image, camera: Intrinsics, pixels: ImageArray, name: str) -> Camera:
    height, width = pixels.shape[:2]
    if isinstance(camera, tuple):
        found = camera_of_mapping(camera, width, height)
        if found is None:
            raise InputError(f"No camera of the mapping images fits {name}, {width}x{height}.")
        return found
    if isinstance(camera, Camera):
        return fit_camera(camera, width, height)
    if isinstance(camera, np.ndarray):
        return _of_matrix(camera, width, height)
    if camera is not None:
        return Camera.pinhole(camera, width, height)
    exif = exif_focal(image) if isinstance(image, str | Path) else None
    if exif is None:
        raise DataError(
            f"The focal length of {name} is unknown: give a Camera, or the focal length in pixels."
        )
    return replace(Camera.pinhole(exif.focal, width, height), focal_sigma=exif.sigma)

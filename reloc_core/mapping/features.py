"""Local features of a dataset's images: read ahead, described in batches, resumable.

What is described goes to disk in pieces, each written once, so that neither time nor memory grows with
more than the number of images. Descriptors, by far the largest part, are mapped from a file.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping.observations import Observations
from reloc_core.mapping.pairs import farthest_points, pose_features
from reloc_core.mapping.pieces import Part, Pieces
from reloc_core.mapping.views import depth_at
from reloc_core.types import Camera, Float64Array, FloatArray, ImageArray, Query

_PIECE = 32  # images
_READ = 200_000  # descriptors that are read before their memory is given back


class FoundKeypoints(Protocol):
    """Key points of one image, as `reloc_core.features.keypoints.Keypoints`."""

    @property
    def pixels(self) -> Float64Array:
        """(N, 2) in pixels of the original image."""

    @property
    def descriptors(self) -> Any:
        """(N, C) unit vectors, an array or a tensor."""


class Detector(Protocol):
    """What finds and describes key points."""

    resolution: int
    """Shorter side in pixels of the images that it sees."""

    def detect(self, images: Sequence[ImageArray], count: int) -> Sequence[FoundKeypoints]:
        """At most `count` key points of each image."""


@dataclass(frozen=True)
class Features:
    """Key points of N images of a dataset.

    Attributes:
        frames: (N,) indices of the dataset's frames.
        cameras: of the N images.
        world_from_cam: (N, 4, 4).
        images: (M,) number in 0..N-1 of each key point's image, ascending.
        pixels: (M, 2) in the stored images.
        descriptors: (M, C) float32 unit vectors.
        depths: (M,) measured depth along the optical axis, NaN where there is none.
        colors: (M, 3) uint8.
        resolution: of the detector.
    """

    frames: np.ndarray
    cameras: Sequence[Camera]
    world_from_cam: Float64Array
    images: np.ndarray
    pixels: Float64Array
    descriptors: FloatArray
    depths: Float64Array
    colors: ImageArray
    resolution: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counts(self) -> np.ndarray:
        """(N,) key points of each image."""
        return np.bincount(self.images, minlength=len(self.frames))

    def of_image(self, number: int) -> slice:
        """The rows of an image's key points."""
        first, last = np.searchsorted(self.images, [number, number + 1])
        return slice(int(first), int(last))

    def release(self) -> None:
        """Give back the memory of mapped descriptors; who asks for them again reads the file again."""
        held: object = self.descriptors.base
        if isinstance(held, mmap.mmap) and hasattr(held, "madvise"):
            held.madvise(mmap.MADV_DONTNEED)

    def described(self, rows: np.ndarray) -> FloatArray:
        """Descriptors (K, C) of key points (K,), read in the file's order and given back as it goes."""
        found = np.empty((len(rows), self.descriptors.shape[1]), np.float32)
        order = np.argsort(rows, kind="stable")
        for begin in range(0, len(rows), _READ):
            part = order[begin : begin + _READ]
            found[part] = self.descriptors[rows[part]]
            self.release()
        return found

    def observations(self, depth_noise: float = 0.0) -> Observations:
        """The key points as rays; with measured depths of the given relative noise if it is not 0."""
        depths = self.depths if depth_noise > 0 and np.isfinite(self.depths).any() else None
        return Observations.of(
            self.cameras, self.world_from_cam, self.images, self.pixels, depths, self.resolution,
            depth_noise or 0.02,
        )  # fmt: skip


def poses_of(dataset: Dataset, frames: np.ndarray) -> Float64Array:
    """(N, 4, 4) world_from_cam of frames.

    Raises:
        DataError: one has none.
    """
    poses = []
    for index in frames:
        frame = dataset.frames[int(index)]
        if frame.world_from_cam is None:
            raise DataError(f"{frame.name} has no pose; mapping needs one of every image.")
        poses.append(frame.world_from_cam)
    return np.stack(poses) if poses else np.zeros((0, 4, 4))


def spread_frames(dataset: Dataset, most: int) -> np.ndarray:
    """(N,) frames of a dataset, ascending: all, or `most` whose poses are spread.

    Raises:
        DataError: one of more than `most` has no pose.
    """
    frames = np.arange(len(dataset))
    if len(frames) > most:
        frames = np.sort(farthest_points(pose_features(poses_of(dataset, frames)), most))
    return frames


def tell_used(dataset: Dataset, frames: Sequence[int] | np.ndarray, run: Run, option: str) -> None:
    """Keep which frames of a dataset a map is made of, and note it where they are not all.

    Args:
        dataset: that is mapped.
        frames: (N,) indices of those used.
        run: of the mapping.
        option: that limits them.
    """
    if len(frames) < len(dataset):
        run.map.used = [int(i) for i in frames]
        run.note(f"{len(frames)} of {len(dataset)} mapping images are used ({option}).")


def describe(
    dataset: Dataset,
    frames: np.ndarray,
    detector: Detector,
    count: int,
    run: Run,
    *,
    batch: int = 4,
    resumable: bool = True,
) -> Features:
    """Key points of some images of a dataset.

    Images are read while others are described. What is described goes to files in the map's scratch
    directory (`reloc_core.mapping.pieces`), with which an interrupted run goes on.

    Args:
        dataset: posed.
        frames: (N,) indices.
        detector: what finds key points.
        count: at most so many per image.
        run: progress, checkpoints.
        batch: images described together.
        resumable: whether to use the map's checkpoint; off where the caller keeps its own there.

    Raises:
        DataError: a frame without pose, or an image that cannot be read.
        ShareDone: this process does a share of it, and the other shares are not done.
    """
    poses = poses_of(dataset, frames)
    of = (type(detector).__name__, detector.resolution, count, batch, frames.tolist())
    pieces = Pieces(run, "described", len(frames), _PIECE - _PIECE % batch or batch, of, resumable)
    steps = [(p, s, min(s + batch, p.stop)) for p in pieces.todo for s in p[::batch]]
    parts: list[Part] = []

    def read(step: int) -> list[Query]:
        _, start, stop = steps[step]
        return [dataset[int(i)] for i in frames[start:stop]]

    with (
        run.progress("Describing images", pieces.expected) as progress,
        ThreadPoolExecutor(1, thread_name_prefix="read-images") as pool,
    ):
        progress.advance(pieces.done)
        ahead = pool.submit(read, 0) if steps else None
        for step, (piece, start, stop) in enumerate(steps):
            assert ahead is not None
            queries = ahead.result()
            if step + 1 < len(steps):
                ahead = pool.submit(read, step + 1)
            found = detector.detect([q.image for q in queries], count)
            for offset, (query, keypoints) in enumerate(zip(queries, found, strict=True)):
                parts.append(_part(start + offset, query, keypoints))
            progress.advance(len(queries))
            if stop == piece.stop:
                pieces.write(piece, _joined(parts))
                parts = []
    pieces.finish()
    joined = _all(pieces, run.map.scratch / "descriptors" if resumable else None)
    return Features(
        frames=frames,
        cameras=[dataset.frames[int(i)].camera for i in frames],
        world_from_cam=poses,
        resolution=detector.resolution,
        images=joined["images"],
        pixels=joined["pixels"],
        descriptors=joined["descriptors"],
        depths=joined["depths"],
        colors=joined["colors"],
    )


def _all(pieces: Pieces, file: Path | None) -> Part:
    """All that was described; descriptors (M, C) lie in `file`, mapped into memory, if it is given."""
    total = sum(len(pieces[i]["images"]) for i in range(len(pieces)))
    if file is None or not total:
        return _joined([pieces[i] for i in range(len(pieces))])
    # Filled piece by piece: thousands of small arrays, kept to be joined, would leave a heap full of holes.
    result: dict[str, np.ndarray] = {}
    begin = 0
    for number in range(len(pieces)):
        part = pieces[number]
        end = begin + len(part["images"])
        for name, values in part.items():
            if name not in result:
                shape = (total, *values.shape[1:])
                result[name] = (
                    np.memmap(file, np.float32, "w+", shape=shape)
                    if name == "descriptors"
                    else np.empty(shape, values.dtype)
                )
            result[name][begin:end] = values
        begin = end
    return result


def _part(number: int, query: Query, found: FoundKeypoints) -> Part:
    descriptors = found.descriptors
    if not isinstance(descriptors, np.ndarray):
        descriptors = descriptors.cpu().numpy()
    nearest = np.rint(found.pixels).astype(int)
    x = nearest[:, 0].clip(0, query.camera.width - 1)
    y = nearest[:, 1].clip(0, query.camera.height - 1)
    return {
        "images": np.full(len(found.pixels), number),
        "pixels": np.asarray(found.pixels, np.float64),
        "descriptors": np.asarray(descriptors, np.float32),
        "depths": depth_at(query, found.pixels),
        "colors": query.image[y, x],
    }


def _joined(parts: list[Part]) -> Part:
    if not parts:
        return {
            "images": np.zeros(0, np.int64),
            "pixels": np.zeros((0, 2)),
            "descriptors": np.zeros((0, 1), np.float32),
            "depths": np.zeros(0),
            "colors": np.zeros((0, 3), np.uint8),
        }
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

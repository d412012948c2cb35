"""Local features of a dataset's images: read ahead, described in batches, resumable.

What is described goes to shards on disk, each written once, so that neither time nor memory grows with
more than the number of images. Descriptors, by far the largest part, are mapped from a file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping.observations import Observations
from reloc_core.mapping.pairs import farthest_points, pose_features
from reloc_core.mapping.views import depth_at
from reloc_core.storage import load_tensors, save_tensors
from reloc_core.types import Camera, Float64Array, FloatArray, ImageArray, Query

Part: TypeAlias = Mapping[str, np.ndarray]
CHECKPOINT_SECONDS = 10.0


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

    Images are read while others are described. Every ten seconds a shard is written into the map's
    scratch directory, and an interrupted run goes on after the last one.

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
    """
    poses = poses_of(dataset, frames)
    shards = _Shards(run.map.scratch) if resumable else None
    parts: list[Part] = []
    saved = run.map.load_checkpoint() if resumable else None
    done = shards.resume(int(saved[1]["described"])) if shards and saved else 0
    saved_at = time.monotonic()
    with (
        run.progress("Describing images", len(frames)) as progress,
        ThreadPoolExecutor(1, thread_name_prefix="read-images") as pool,
    ):
        progress.advance(done)
        starts = list(range(done, len(frames), batch))

        def read(start: int) -> list[Query]:
            return [dataset[int(i)] for i in frames[start : start + batch]]

        ahead = pool.submit(read, starts[0]) if starts else None
        for position, start in enumerate(starts):
            assert ahead is not None
            queries = ahead.result()
            if position + 1 < len(starts):
                ahead = pool.submit(read, starts[position + 1])
            found = detector.detect([q.image for q in queries], count)
            for offset, (query, keypoints) in enumerate(zip(queries, found, strict=True)):
                parts.append(_part(start + offset, query, keypoints))
            progress.advance(len(queries))
            done = start + len(queries)
            late = time.monotonic() - saved_at > CHECKPOINT_SECONDS
            if shards and (late or done == len(frames)):
                shards.add(parts, done)
                run.map.save_checkpoint({}, {"described": done})
                parts, saved_at = [], time.monotonic()
    joined = shards.joined() if shards else _joined(parts)
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


class _Shards:
    """Described images on disk, each file of consecutive ones and named by the number of its last.

    Args:
        folder: theirs alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("described-*.safetensors"))

    def resume(self, done: int) -> int:
        """Images that an interrupted run described; what it wrote beyond its checkpoint is removed."""
        for file in self._files():
            if int(file.stem.rpartition("-")[2]) > done:
                file.unlink()
        return done if self._files() else 0

    def add(self, parts: list[Part], done: int) -> None:
        """Write what was described since the last shard."""
        save_tensors(self._folder / f"described-{done:09d}.safetensors", _joined(parts), {})

    def joined(self) -> Part:
        """All of them; descriptors (M, C) lie in a file that is mapped into memory."""
        files = self._files()
        if not files:
            return _joined([])
        small: list[Part] = []
        for file in files:
            tensors, _ = load_tensors(file, "np")
            small.append({k: v for k, v in tensors.items() if k != "descriptors"})
        result = dict(_joined(small))
        width = tensors["descriptors"].shape[1]
        if not len(result["images"]):
            return {**result, "descriptors": np.zeros((0, width), np.float32)}
        every = np.memmap(
            self._folder / "descriptors", np.float32, "w+", shape=(len(result["images"]), width)
        )
        begin = 0
        for file in files:
            part = load_tensors(file, "np")[0]["descriptors"]
            every[begin : begin + len(part)] = part
            begin += len(part)
        return {**result, "descriptors": every}


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

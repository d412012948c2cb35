"""The embedded dataset: a furnished room, rendered with exact depth and poses.

Nothing is downloaded: frames are rendered when they are read. Both splits are
closed walks through the same room; the test path has another radius, other heights and other viewing
directions than the training path.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import cv2
import numpy as np

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.room.doorway import DOORWAY, row_of_rooms
from reloc_core.datasets.room.furniture import ROOM_SIZE
from reloc_core.datasets.room.render import Renderer
from reloc_core.datasets.room.store import Store
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset
from reloc_core.types import Camera, Float64Array, FloatArray, Frame, ImageArray, Query

FIELD_OF_VIEW = 2 * math.atan(320 / 525)
"""Horizontal, in radians: that of the Kinect camera."""

Identity: TypeAlias = tuple[Any, ...]
_CACHE_BYTES = 192 << 20
_SECONDS_PER_LAP = 9.0
_AT_DOORWAY = 8  # one of so many frames stands before a doorway, of each


class SyntheticDataset(Dataset):
    """Frames of the embedded room.

    Args:
        config: see `SyntheticConfig`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        if config.split not in ("train", "test"):
            raise ConfigError(f"dataset.split must be train or test, got '{config.split}'.")
        if not (32 <= config.width <= 4096 and 32 <= config.height <= 4096):
            raise ConfigError("dataset.width and dataset.height must be in 32..4096.")
        count = config.train_frames if config.split == "train" else config.test_frames
        if count < 1:
            raise ConfigError(f"dataset.{config.split}_frames must be at least 1, got {count}.")
        row = (*config.west, config.seed, *config.east)
        if min(config.noise, config.copy, *row) < 0:
            raise ConfigError(
                "dataset.noise, dataset.seed, dataset.copy and neighbours' seeds must not be negative."
            )
        self._config = config
        focal = config.width / 2 / math.tan(FIELD_OF_VIEW / 2)
        camera = Camera.pinhole(focal, config.width, config.height)
        self._row = row
        self._rendered_poses = trajectory(
            config.split, count, west=bool(config.west), east=bool(config.east)
        )
        poses = _mirrored(self._rendered_poses) if config.mirrored else self._rendered_poses
        self._frames = tuple(
            Frame(
                f"{config.split}/{i:06d}", camera, pose, _SECONDS_PER_LAP * i / count, config.split
            )
            for i, pose in enumerate(poses)
        )
        self._identity = repr(config)
        kept: Identity = (
            config.seed,
            config.shared,
            config.split,
            count,
            config.width,
            config.height,
        )
        if len(row) > 1:
            kept += (tuple(config.west), tuple(config.east))
        self._store = Store(kept) if config.cache else None

    @property
    def name(self) -> str:
        """Room and split."""
        return f"synthetic/{self._config.split}"

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata of all frames along the path."""
        return self._frames

    @property
    def has_depth(self) -> bool:
        """Whether queries carry depth, as the config says."""
        return self._config.depth

    def __getitem__(self, index: int) -> Query:
        """Render one frame; what was rendered last is kept."""
        frame = self._frames[index]
        index %= len(self._frames)
        image = _recent.get((self._identity, "image", index), lambda: self._image(index))
        depth = None
        if self._config.depth:
            depth = _recent.get((self._identity, "depth", index), lambda: self._depth(index)).copy()
        return Query(
            frame.name,
            frame.camera,
            frame.world_from_cam,
            frame.timestamp,
            frame.sequence,
            image=image.copy(),
            depth=depth,
        )

    def _image(self, index: int) -> ImageArray:
        image = self._rendered(index)
        if self._config.mirrored:
            image = image[:, ::-1]
        if self._config.negative:
            image = 255 - image
        return self._add_noise(np.ascontiguousarray(image), index)

    def _depth(self, index: int) -> FloatArray:
        depth = self._renderer().depth(self._frames[index].camera, self._in_row(index))
        return np.ascontiguousarray(depth[:, ::-1]) if self._config.mirrored else depth

    def _renderer(self) -> Renderer:
        """The room's row; built once per process, whichever thread asks first."""
        with _row_lock:
            return _row_of(self._row, self._config.shared)

    def _in_row(self, index: int) -> Float64Array:
        """(4, 4) pose in the axes of the row's first room."""
        pose: Float64Array = self._rendered_poses[index].copy()
        pose[0, 3] += ROOM_SIZE[0] * len(self._config.west)
        return pose

    def _rendered(self, index: int) -> ImageArray:
        """Without noise, from disk if it was kept there."""
        image = self._store.read(index) if self._store else None
        camera = self._frames[index].camera
        if image is None or image.shape != (camera.height, camera.width, 3):
            image = self._renderer().color(camera, self._in_row(index))
            if self._store:
                self._store.keep(index, image)
        return image

    def _add_noise(self, image: ImageArray, index: int) -> ImageArray:
        """Gaussian noise, correlated between the colours as after demosaicing."""
        if not self._config.noise:
            return image
        split = 0 if self._config.split == "train" else 1
        drawn = [self._config.seed, 2, split, index]
        rng = np.random.default_rng(drawn + [self._config.copy] * (self._config.copy > 0))
        # One tile of noise for all frames, shifted: drawing a million normals takes long.
        grain = np.roll(_grain(), tuple(rng.integers(0, 1024, 2).tolist()), (0, 1))
        height, width = image.shape[:2]
        repeats = (-(-height // 1024), -(-width // 1024), 1)
        tile = np.tile(grain, repeats)[:height, :width] * np.float32(self._config.noise)
        return np.asarray(cv2.add(image, tile, dtype=cv2.CV_8U), np.uint8)


def trajectory(split: str, count: int, *, west: bool = False, east: bool = False) -> Float64Array:
    """Poses of a closed walk; at its end, an eighth of them before each doorway.

    Args:
        split: "train" or "test".
        count: number of poses.
        west: whether the wall x = 0 has a doorway.
        east: whether the wall x = X has one.

    Returns:
        (count, 4, 4) world_from_cam; the camera looks across the room's middle and to the sides, or through
        the doorway.
    """
    at = (count // _AT_DOORWAY) * (west + east)
    walk = _walk(split, count - at)
    if not at:
        return walk
    sides = [side for side, there in (("west", west), ("east", east)) if there]
    return np.concatenate(
        [walk, *(_before_doorway(split, side, at // len(sides)) for side in sides)]
    )


def _walk(split: str, count: int) -> Float64Array:
    angle = 2 * np.pi * np.arange(count) / count
    # The test walk differs in radius, height and viewing direction.
    test = split == "test"
    if test:
        angle = angle + 0.11
        reach = 0.9 + 0.08 * np.sin(5 * angle + 1.0)
        height = 1.42 + 0.14 * np.sin(3 * angle + 2.0)
        turn = np.radians(28) * np.sin(3 * angle + 0.4)
        nod = np.radians(10) + np.radians(4) * np.sin(4 * angle + 1.3)
        roll = np.radians(3.5) * np.sin(3 * angle + 0.4)
    else:
        reach = 1.0 + 0.08 * np.sin(4 * angle)
        height = 1.45 + 0.2 * np.sin(2 * angle + 0.7)
        turn = np.radians(32) * np.sin(3 * angle)
        nod = np.radians(10) + np.radians(5) * np.sin(2 * angle + 2.1)
        roll = np.radians(3) * np.sin(2 * angle)
    middle = np.array(ROOM_SIZE[:2]) / 2
    position = np.stack(
        [
            middle[0] + 1.3 * reach * np.cos(angle),
            middle[1] - 0.05 + 0.95 * reach * np.sin(angle),
            height,
        ],
        1,
    )
    heading = np.arctan2(middle[1] - position[:, 1], middle[0] - position[:, 0]) + turn
    return _poses(position, heading, nod, roll)


def _before_doorway(split: str, side: str, count: int) -> Float64Array:
    """Steps (count, 4, 4) towards a doorway, looking through it and to its edges."""
    step = (np.arange(count) + 0.5) / count
    test = split == "test"
    gap = 1.5 - 0.8 * step - 0.07 * test
    aside = (0.14 if test else 0.2) * np.sin(9 * step + test)
    turn = np.radians(14) * np.sin((11 if test else 8) * step + 0.5)
    height = 1.45 + 0.12 * np.sin(7 * step + 2 * test)
    left, right, _ = DOORWAY
    outward = 1.0 if side == "east" else -1.0
    x = gap if side == "west" else ROOM_SIZE[0] - gap
    position = np.stack([x, (left + right) / 2 + aside, height], 1)
    heading = np.arctan2(-aside, outward * (gap + 2.0)) + turn
    return _poses(position, heading, np.full(count, np.radians(4.0)), np.zeros(count))


def _poses(
    position: Float64Array, heading: Float64Array, nod: Float64Array, roll: Float64Array
) -> Float64Array:
    """world_from_cam (N, 4, 4) of positions (N, 3) and angles (N,) in radians."""
    count = len(position)
    forward = np.stack(
        [np.cos(nod) * np.cos(heading), np.cos(nod) * np.sin(heading), -np.sin(nod)], 1
    )
    right = np.stack([np.sin(heading), -np.cos(heading), np.zeros(count)], 1)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 0], poses[:, :3, 1] = c * right + s * down, c * down - s * right
    poses[:, :3, 2], poses[:, :3, 3] = forward, position
    return poses


def _mirrored(poses: Float64Array) -> Float64Array:
    """Poses (N, 4, 4) in the room's mirror image along x, of cameras whose images are mirrored, too."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored = flip @ poses @ flip
    mirrored[:, 0, 3] += ROOM_SIZE[0]
    return np.asarray(mirrored, np.float64)


@lru_cache(maxsize=2)
def _row_of(seeds: tuple[int, ...], shared: bool) -> Renderer:
    return Renderer(row_of_rooms(seeds, shared))


_row_lock = threading.Lock()


class _Recent:
    """The images and depths that were read last, of all rooms together."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[Identity, Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Identity, make: Callable[[], Any]) -> Any:
        """What is kept under `key`, or is made and kept from now on."""
        with self._lock:
            found = self._arrays.get(key)
        if found is not None:
            return found
        made = make()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = made
                self._bytes += made.nbytes
            while self._bytes > _CACHE_BYTES:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return made


_recent = _Recent()


@lru_cache(maxsize=1)
def _grain() -> FloatArray:
    """(1024, 1024, 3) float32 noise of unit variance that wraps around."""
    rng = np.random.default_rng(7)
    luma = rng.standard_normal((1024, 1024, 1), np.float32)
    chroma = rng.standard_normal((1024, 1024, 3), np.float32)
    return np.asarray(np.float32(0.8) * luma + np.float32(0.6) * chroma)

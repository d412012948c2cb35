"""Memory of mapping many thousands of images by `landmarks`, without images.

    python benchmarks/large_memory.py --work DIR [--images 20000]

Rendering and describing 20,000 images takes hours; what holds memory is what comes after. Here rooms of
random points on their walls are "described" by projecting the points into the cameras of `synthetic`: 768
key points an image, a quarter of them clutter, with noisy positions and descriptors; a fifth of the points
look the same in all rooms. Everything else is the method's own code: pieces on disk, pairs, matches,
tracks, places, training. Missing are the network (about 0.4 GB) and the calibration, which localizes 90
held-out images whatever the number.

Prints resident memory at the beginning of each stage, and the largest: its own, and that of pages of files.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from landmarks.softmax import estimator as softmax
from landmarks.softmax.config import SoftmaxConfig

from reloc_core.datasets.room.furniture import ROOM_SIZE
from reloc_core.datasets.rooms import places
from reloc_core.datasets.synthetic import FIELD_OF_VIEW, trajectory
from reloc_core.features.keypoints import Keypoints
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Dataset
from reloc_core.runs import resolve_runtime
from reloc_core.testing import tools
from reloc_core.types import Camera, Frame, Query

_PER_ROOM, _POINTS, _CHANNELS = 100, 4500, 64
_SHARED, _CLUTTER, _LOOK_NOISE, _PIXEL_NOISE = 0.2, 0.25, 0.5, 0.4
_CAMERA = Camera.pinhole(160 / np.tan(FIELD_OF_VIEW / 2), 320, 240)


class Rooms(Dataset):
    """Frames of rooms whose images are blank but for their number."""

    def __init__(self, count: int) -> None:
        rooms = -(-count // _PER_ROOM)
        poses = np.tile(trajectory("train", _PER_ROOM), (rooms, 1, 1))
        poses[:, :3, 3] += np.repeat(places(rooms, 8.0), _PER_ROOM, 0)
        self.places = places(rooms, 8.0)
        self._frames = [
            Frame(f"{i:06d}", _CAMERA, pose, i / 10, "film") for i, pose in enumerate(poses[:count])
        ]

    @property
    def name(self) -> str:
        """Number of frames."""
        return f"{len(self._frames)} blank images"

    @property
    def frames(self) -> Sequence[Frame]:
        """Room after room."""
        return self._frames

    def __getitem__(self, index: int) -> Query:
        """A blank image."""
        frame = self._frames[index]
        image = np.zeros((240, 320, 3), np.uint8)
        image[0, :3, 0] = index % 256, index // 256 % 256, index // 65536
        return Query(frame.name, frame.camera, frame.world_from_cam, image=image)


class Projected:
    """A detector that knows where the room's points are."""

    resolution = 240

    def __init__(self, dataset: Rooms) -> None:
        self._dataset = dataset
        self._room, self._points, self._looks = -1, np.zeros(0), np.zeros(0)

    def _enter(self, room: int) -> None:
        if room == self._room:
            return
        rng, same = np.random.default_rng([7, room]), np.random.default_rng(7)
        points = rng.uniform(0, 1, (_POINTS, 3))
        wall = rng.integers(0, 3, _POINTS)
        points[np.arange(_POINTS), wall] = rng.integers(0, 2, _POINTS)
        looks = rng.standard_normal((_POINTS, _CHANNELS))
        shared = int(_SHARED * _POINTS)
        looks[:shared] = same.standard_normal((shared, _CHANNELS))
        self._points = points * ROOM_SIZE + self._dataset.places[room]
        self._looks = looks / np.linalg.norm(looks, axis=1, keepdims=True)
        self._room = room

    def detect(self, images: Sequence[np.ndarray], count: int) -> list[Keypoints]:
        """See `reloc_core.mapping.Detector`."""
        return [self._one(image, count) for image in images]

    def _one(self, image: np.ndarray, count: int) -> Keypoints:
        number = int(image[0, :3, 0] @ [1, 256, 65536])
        self._enter(number // _PER_ROOM)
        rng = np.random.default_rng([8, number])
        pose = self._dataset.frames[number].world_from_cam
        pixels, front = project(_CAMERA, transform(inverse(pose), self._points))
        inside = front & ((pixels > 4) & (pixels < (316, 236))).all(1)
        seen = rng.permutation(np.flatnonzero(inside))[: int(count * (1 - _CLUTTER))]
        looks = self._looks[seen]
        noise = rng.standard_normal(looks.shape) * _LOOK_NOISE / np.sqrt(_CHANNELS)
        clutter = rng.standard_normal((count - len(seen), _CHANNELS))
        looks = np.concatenate([looks + noise, clutter])
        looks /= np.linalg.norm(looks, axis=1, keepdims=True)
        where = pixels[seen] + _PIXEL_NOISE * rng.standard_normal((len(seen), 2))
        where = np.concatenate([where, rng.uniform(4, 236, (count - len(seen), 2))])
        return Keypoints(where, torch.ones(count), torch.from_numpy(looks).float())


class Watch:
    """Resident memory of this process, its own and that of pages of files, in MB."""

    def __init__(self) -> None:
        self.most = np.zeros(3)
        self._most_here = np.zeros(3)
        threading.Thread(target=self._run, daemon=True).start()

    @staticmethod
    def now() -> np.ndarray:
        """Total, own, of files."""
        lines = Path("/proc/self/status").read_text().splitlines()
        values = {key: int(rest.split()[0]) / 1e3 for key, _, rest in (x.partition(":") for x in lines)
                  if key in ("VmRSS", "RssAnon", "RssFile")}  # fmt: skip
        return np.array([values[key] for key in ("VmRSS", "RssAnon", "RssFile")])

    def _run(self) -> None:
        while True:
            now = self.now()
            self.most, self._most_here = (
                np.maximum(self.most, now),
                np.maximum(self._most_here, now),
            )
            time.sleep(0.05)

    def step(self, title: str) -> None:
        """Print what was the most since the last step."""
        total, own, files = self._most_here
        memory = f"{total:6.0f} MB, own {own:6.0f}, files {files:6.0f}"
        print(f"{time.process_time():8.0f} s  {memory} until: {title}", flush=True)
        self._most_here = np.zeros(3)


def main() -> None:
    """Map, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where the map goes")
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    resolve_runtime("cpu", threads=1, seed=1)
    watch, dataset = Watch(), Rooms(options.images)

    @contextmanager
    def progress(self: tools.RecordedRun, title: str, total: int) -> Any:
        watch.step(f"{title} {total}")
        yield self

    def note(self: tools.RecordedRun, text: str) -> None:
        watch.step(text)

    tools.RecordedRun.progress = progress  # type: ignore[method-assign]
    tools.RecordedRun.note = note  # type: ignore[method-assign]
    softmax._detector = lambda *_, **__: Projected(dataset)  # type: ignore[assignment]
    config = SoftmaxConfig()
    config.triangulation.max_images = options.images
    run = tools.start_run(options.work / "map", "landmarks", dataset)
    softmax.SoftmaxLandmarks(config).fit(dataset, run)
    run.map.finish()
    watch.step("the end")
    total, own, files = watch.most
    size = sum(file.stat().st_size for file in (options.work / "map").iterdir())
    print(f"{options.images} images: at most {total:.0f} MB, own {own:.0f} MB, files {files:.0f} MB; "
          f"{size / 1e3 / options.images:.1f} kB of map per image")  # fmt: skip


if __name__ == "__main__":
    main()

"""Pictures that were not taken in a mapped place, or that no camera could take."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import cv2
import numpy as np

from reloc_core.interfaces import Dataset
from reloc_core.io.images import decode_image
from reloc_core.types import Camera, ImageArray, Query


def foreign_pictures(dataset: Dataset, count: int, seed: int) -> Iterator[Query]:
    """Queries whose honest answer is "not localized".

    Half are mapping images made impossible, which come nearest to right ones: mirrored, cut into tiles that
    are shuffled, or one part repeated; a third are other rooms, rendered; the rest are noise, textures and
    drawings.

    Args:
        dataset: the mapping images, which give sizes and cameras.
        count: how many.
        seed: of everything random.
    """
    rng = np.random.default_rng((seed, 77))
    chosen = rng.choice(len(dataset), size=min(count, len(dataset)), replace=False)
    rooms = _rooms(rng)
    for number in range(count):
        frame = dataset.frames[int(chosen[number % len(chosen)])]
        camera = frame.camera
        if number % 2 == 0:
            image = _impossible(dataset[int(chosen[number % len(chosen)])].image, number // 2, rng)
        elif number % 6 < 5:
            image = _fit(next(rooms), camera)
        else:
            image = _drawn(number // 6, camera, rng)
        yield Query(f"foreign-{number:03d}", camera, image=np.ascontiguousarray(image))


def _impossible(image: ImageArray, turn: int, rng: np.random.Generator) -> ImageArray:
    height, width = image.shape[:2]
    kind = turn % 4
    if kind == 0:
        return image[:, ::-1]
    if kind == 1:
        return image[::-1]  # mirrored at the horizontal, which no turn of the camera does
    side = int(rng.integers(3, 7))
    rows, columns = (np.linspace(0, n, side + 1).astype(int) for n in (height, width))
    size = (int(columns[1]), int(rows[1]))
    tiles = [
        cv2.resize(image[rows[i] : rows[i + 1], columns[j] : columns[j + 1]], size)
        for i in range(side)
        for j in range(side)
    ]
    count = side**2
    order = rng.permutation(count) if kind == 2 else np.full(count, rng.integers(count))
    lines = [np.concatenate([tiles[k] for k in row], axis=1) for row in order.reshape(side, side)]
    grid = np.concatenate(lines)
    return np.asarray(cv2.resize(grid, (width, height)), np.uint8)


def _rooms(rng: np.random.Generator) -> Iterator[ImageArray]:
    """Rendered views of four other rooms (scripts/foreign_rooms.py), over and over."""
    folder = files(__package__).joinpath("rooms")
    pictures = sorted(p.name for p in folder.iterdir() if p.name.endswith(".jpg"))
    while True:
        for number in rng.permutation(len(pictures)):
            yield decode_image(folder.joinpath(pictures[number]).read_bytes(), pictures[number])


def _fit(image: ImageArray, camera: Camera) -> ImageArray:
    """An image cropped and enlarged to a camera's size."""
    height, width = image.shape[:2]
    scale = max(camera.width / width, camera.height / height)
    enlarged = cv2.resize(
        image, (int(np.ceil(width * scale)), int(np.ceil(height * scale))),
        interpolation=cv2.INTER_CUBIC,
    )  # fmt: skip
    return np.asarray(enlarged[: camera.height, : camera.width], np.uint8)


def _drawn(turn: int, camera: Camera, rng: np.random.Generator) -> ImageArray:
    """White noise, clouds, gratings, polygons."""
    height, width = camera.height, camera.width
    kind = turn % 4
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == 1:
        total = np.zeros((height, width, 3), np.float32)
        for octave in range(2, 8):
            small = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
            large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
            total += np.asarray(large, np.float32) / 1.6**octave
        total = 128 + 40 * total / (total.std() + 1e-6)
        return np.asarray(np.clip(total, 0, 255), np.uint8)
    if kind == 2:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
        wave = wave * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle)) / period)
        return np.repeat((128 + 120 * wave).astype(np.uint8)[..., None], 3, axis=2)
    canvas = np.full((height, width, 3), int(rng.integers(256)), np.uint8)
    for _ in range(60):
        corners = rng.uniform(0, 1, (int(rng.integers(3, 7)), 2)) * [width, height]
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        cv2.fillPoly(canvas, [corners.astype(np.int32)], colour)
    return canvas

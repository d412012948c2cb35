"""Procedural textures: uint8 RGB albedo, drawn with NumPy and OpenCV.

Every texture has one signature, `texture(rng, height, width)` with sizes in texels, and is rich in
corners at scales of some centimetres: what local features need, and what real rooms have. Patterns
that repeat (bricks, planks, tiles) vary from element to element so that they are not ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np

from reloc_core.types import FloatArray, ImageArray

Texture: TypeAlias = Callable[[np.random.Generator, int, int], ImageArray]
Color: TypeAlias = tuple[int, int, int]

WHITE: Color = (236, 234, 228)
INK: Color = (38, 38, 44)
PALETTE: tuple[Color, ...] = (
    (196, 62, 52), (224, 148, 48), (238, 204, 92), (72, 134, 84), (40, 98, 122), (58, 74, 140),
    (120, 66, 112), (226, 216, 196), (44, 46, 54), (170, 92, 60), (96, 164, 176), (204, 128, 140),
)  # fmt: skip


def noise(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 4
) -> FloatArray:
    """Smooth value noise, about -1..1, float32 (height, width); `cell` is the coarsest period."""
    total = np.zeros((height, width), np.float32)
    amplitude = 1.0
    for _ in range(octaves):
        rows, columns = int(height / cell) + 3, int(width / cell) + 3
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        size = (max(int(columns * cell), width), max(int(rows * cell), height))
        total += amplitude * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)[:height, :width]
        amplitude *= 0.5
        cell = max(cell / 2, 1.0)
    return total / 1.6


def pick(rng: np.random.Generator, colors: tuple[Color, ...] = PALETTE) -> Color:
    """A random colour of a palette, slightly varied."""
    c = np.array(colors[int(rng.integers(len(colors)))]) + rng.integers(-14, 15, 3)
    r, g, b = np.clip(c, 8, 245).tolist()
    return int(r), int(g), int(b)


def shaded(color: Color, field: FloatArray, amount: float) -> ImageArray:
    """A colour modulated by a field of about -1..1."""
    image = np.array(color, np.float32) * (1 + amount * field[..., None])
    return np.clip(image, 0, 255).astype(np.uint8)


def plaster(color: Color, amount: float = 0.07) -> Texture:
    """Painted plaster: faint blotches, some grain and a few marks."""

    def draw(rng: np.random.Generator, height: int, width: int) -> ImageArray:
        field = noise(rng, height, width, 160, 6)
        image = shaded(color, field, amount)
        for _ in range(height * width // 26_000):
            x, y = int(rng.integers(width)), int(rng.integers(height))
            tone = tuple(int(c * rng.uniform(0.72, 0.9)) for c in color)
            axes = (int(rng.integers(2, 7)), int(rng.integers(1, 4)))
            cv2.ellipse(
                image, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, tone, -1, cv2.LINE_AA
            )
        return image

    return draw


def wood(color: Color) -> Texture:
    """Wood grain along the longer side, with knots."""

    def draw(rng: np.random.Generator, height: int, width: int) -> ImageArray:
        tall = height > width
        h, w = (width, height) if tall else (height, width)
        coarse = cv2.resize(noise(rng, h, max(w // 12, 4), 10, 3), (w, h))
        rings = np.sin(7 * coarse + np.linspace(0, h / 14, h, dtype=np.float32)[:, None])
        image = shaded(color, 0.6 * rings + 0.6 * noise(rng, h, w, 24, 3), 0.13)
        for _ in range(max(h * w // 30_000, 1)):
            x, y, r = int(rng.integers(w)), int(rng.integers(h)), int(rng.integers(3, 8))
            dark = tuple(int(c * 0.5) for c in color)
            cv2.ellipse(image, (x, y), (2 * r, r), 0, 0, 360, dark, 1, cv2.LINE_AA)
            cv2.ellipse(image, (x, y), (r, r // 2 + 1), 0, 0, 360, dark, -1, cv2.LINE_AA)
        return np.ascontiguousarray(image.transpose(1, 0, 2)) if tall else image

    return draw


def bricks(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A brick wall; every brick has its own tone."""
    image = shaded((168, 160, 150), noise(rng, height, width, 12, 2), 0.12)
    rows, brick_w = max(height // 22, 1), 66
    for row in range(rows + 1):
        y0 = row * height // rows
        y1 = (row + 1) * height // rows - 3
        for x0 in range(-(row % 2) * brick_w // 2, width, brick_w):
            base = np.array((158, 84, 62)) * rng.uniform(0.6, 1.3) + rng.uniform(-16, 16, 3)
            tone = tuple(int(c) for c in np.clip(base, 0, 240))
            jitter = rng.integers(-2, 3, 2)
            corner = (x0 + brick_w - 4 + int(jitter[0]), y1 + int(jitter[1]))
            cv2.rectangle(image, (x0 + 1, y0 + 1), corner, tone, -1)
    return shaded_image(image, noise(rng, height, width, 9, 3), 0.16)


def shaded_image(image: ImageArray, field: FloatArray, amount: float) -> ImageArray:
    """An image modulated by a field of about -1..1."""
    result = image.astype(np.float32) * (1 + amount * field[..., None])
    return np.clip(result, 0, 255).astype(np.uint8)


def planks(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A floor of boards with random joints and tones."""
    image = np.empty((height, width, 3), np.uint8)
    grain = wood((172, 122, 78))(rng, height, width)
    board = 40
    for y in range(0, height, board):
        x = -int(rng.integers(0, 300))
        while x < width:
            end = x + int(rng.integers(180, 480))
            a, b = max(x, 0), min(end, width)
            if b > a:
                shift = int(rng.integers(height))
                strip = np.take(grain, np.arange(y, min(y + board, height)) + shift, 0, mode="wrap")
                tone = rng.uniform(0.66, 1.16, 3) * 0.4 + rng.uniform(0.66, 1.12) * 0.6
                image[y : y + board, a:b] = np.clip(strip[:, a:b] * tone, 0, 255)
                cv2.line(image, (b - 1, y), (b - 1, y + board), (62, 40, 26), 2)
            x = end
        cv2.line(image, (0, y), (width, y), (66, 44, 30), 2)
    return image


def ceiling(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Acoustic tiles with pinholes."""
    image = shaded((228, 228, 224), noise(rng, height, width, 60, 4), 0.05)
    pitch = 70
    for y in range(0, height, pitch):
        for x in range(0, width, pitch):
            image[y : y + pitch, x : x + pitch] = np.clip(
                image[y : y + pitch, x : x + pitch] * rng.uniform(0.93, 1.04), 0, 255
            )
    for _ in range(height * width // 260):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(image, (x, y), int(rng.integers(1, 3)), (168, 168, 164), -1, cv2.LINE_AA)
    for y in range(0, height, pitch):
        cv2.line(image, (0, y), (width, y), (176, 176, 174), 2)
    for x in range(0, width, pitch):
        cv2.line(image, (x, 0), (x, height), (176, 176, 174), 2)
    return image


def fabric(color: Color, accents: int = 3) -> Texture:
    """Woven cloth with scattered motifs."""

    def draw(rng: np.random.Generator, height: int, width: int) -> ImageArray:
        yy, xx = np.mgrid[:height, :width].astype(np.float32)
        weave = np.sin(xx * 1.3) * np.sin(yy * 1.3)
        image = shaded(color, 0.5 * weave + 0.5 * noise(rng, height, width, 70, 4), 0.12)
        inks = [pick(rng) for _ in range(accents)]
        for _ in range(height * width // 1500 if accents else 0):
            x, y = int(rng.integers(width)), int(rng.integers(height))
            motif(rng, image, (x, y), int(rng.integers(5, 16)), inks[int(rng.integers(accents))])
        return image

    return draw


def motif(
    rng: np.random.Generator, image: ImageArray, at: tuple[int, int], size: int, color: Color
) -> None:
    """Draw one small random shape."""
    kind = int(rng.integers(5))
    angle = float(rng.uniform(0, 180))
    if kind == 0:
        cv2.circle(image, at, size // 2 + 1, color, -1, cv2.LINE_AA)
    elif kind == 1:
        cv2.circle(image, at, size // 2 + 2, color, 2, cv2.LINE_AA)
    elif kind == 2:
        box = cv2.boxPoints((at, (size * 1.2, size * 0.5), angle)).astype(np.int32)
        cv2.fillConvexPoly(image, box, color, cv2.LINE_AA)
    elif kind == 3:
        cv2.ellipse(image, at, (size, size // 3 + 1), angle, 0, 360, color, -1, cv2.LINE_AA)
    else:
        spin = np.radians(angle) + np.arange(3) * 2.1
        corners = np.array(at) + size * np.stack([np.cos(spin), np.sin(spin)], 1)
        cv2.fillConvexPoly(image, corners.astype(np.int32), color, cv2.LINE_AA)


def rug(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A carpet: nested borders, a field of motifs, a medallion."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (132, 44, 44)
    inset = 0
    for step in (14, 8, 26, 8, 12):
        cv2.rectangle(image, (inset, inset), (width - inset, height - inset), pick(rng), -1)
        inset += step
    cv2.rectangle(image, (inset, inset), (width - inset, height - inset), (118, 40, 46), -1)
    for _ in range(height * width // 700):
        x = int(rng.integers(8, width - 8))
        y = int(rng.integers(8, height - 8))
        motif(rng, image, (x, y), int(rng.integers(5, 15)), pick(rng))
    center = (width // 2, height // 2)
    for scale in (0.34, 0.29, 0.2, 0.1):
        axes = (int(width * scale), int(height * scale))
        cv2.ellipse(image, center, axes, 0, 0, 360, pick(rng), -1, cv2.LINE_AA)
        for spin in np.arange(0, 2 * np.pi, 0.42):
            at = (int(center[0] + axes[0] * np.cos(spin)), int(center[1] + axes[1] * np.sin(spin)))
            motif(rng, image, at, int(rng.integers(5, 12)), pick(rng))
    return shaded_image(image, noise(rng, height, width, 6, 2), 0.16)


def books(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A row of book spines with titles and bands."""
    image = np.full((height, width, 3), 40, np.uint8)
    x = 0
    while x < width:
        w = int(rng.integers(8, 19))
        top = int(height * rng.uniform(0, 0.22))
        color, ink = pick(rng), pick(rng, (WHITE, (232, 200, 96), INK))
        cv2.rectangle(image, (x, top), (x + w - 2, height), color, -1)
        for _ in range(int(rng.integers(1, 4))):
            y = int(rng.integers(top + 2, height))
            cv2.rectangle(image, (x, y), (x + w - 2, y + int(rng.integers(1, 7))), ink, -1)
        y = top + int(rng.integers(6, 14))
        while y < height - 12 and w > 9:
            gap = int(rng.integers(3, 7))
            cv2.rectangle(image, (x + 3, y), (x + w - 6, y + gap - 2), ink, -1)
            y += gap + int(rng.integers(1, 12) > 9) * 9
            if rng.uniform() < 0.14:
                break
        x += w
    return image

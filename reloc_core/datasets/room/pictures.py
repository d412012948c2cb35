"""Textures that show something: posters, screens, labels, windows."""

from __future__ import annotations

import cv2
import numpy as np

from reloc_core.datasets.room.textures import (
    INK,
    WHITE,
    Color,
    Texture,
    motif,
    noise,
    pick,
    shaded,
    shaded_image,
    wood,
)
from reloc_core.types import ImageArray

_LETTERS = "ABCDEFGHIJKLMNOPRSTUVXYZabcdefghkmnprstuvz0123456789&?!"


def text_lines(
    rng: np.random.Generator,
    image: ImageArray,
    box: tuple[int, int, int, int],
    line: int,
    ink: Color,
) -> None:
    """Fill a box (left, top, right, bottom) with lines of random words, `line` texels high."""
    left, top, right, bottom = box
    for y in range(top + line, bottom, line):
        x = left
        while x < right - line:
            count = int(rng.integers(1, 8))
            word = "".join(_LETTERS[int(rng.integers(len(_LETTERS)))] for _ in range(count))
            scale = line / 34
            (w, _), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_DUPLEX, scale, 1)
            if x + w > right:
                break
            thick = 2 if line > 18 else 1
            cv2.putText(
                image, word, (x, y), cv2.FONT_HERSHEY_DUPLEX, scale, ink, thick, cv2.LINE_AA
            )
            x += w + line // 3
        if rng.uniform() < 0.1:
            break


def poster(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """One of several kinds of wall pictures in a frame."""
    kinds = (_abstract, _page, _landscape, _mosaic, _grid)
    image = kinds[int(rng.integers(len(kinds)))](rng, height, width)
    frame = pick(rng, (INK, (96, 62, 40), (206, 198, 180)))
    border = max(min(height, width) // 26, 4)
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), frame, 2 * border)
    return image


def _abstract(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    image = shaded(pick(rng), noise(rng, height, width, 80, 4), 0.12)
    small = min(height, width)
    for _ in range(60):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        motif(rng, image, (x, y), int(small * rng.uniform(0.03, 0.2)), pick(rng))
    for _ in range(9):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        cv2.line(image, ends[0], ends[1], pick(rng), int(rng.integers(2, 6)), cv2.LINE_AA)
    return image


def _page(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    image = shaded(WHITE, noise(rng, height, width, 60, 3), 0.04)
    margin = width // 9
    title = height // 5
    text_lines(rng, image, (margin, margin, width - margin, title + margin), height // 9, pick(rng))
    middle = height // 2
    image[title + 2 * margin : middle, margin : width - margin] = _abstract(
        rng, max(middle - title - 2 * margin, 1), width - 2 * margin
    )
    text_lines(rng, image, (margin, middle, width - margin, height - margin), height // 22, INK)
    return image


def _landscape(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    top, low = np.array(pick(rng), np.float32), np.array((244, 214, 170), np.float32)
    sky = np.broadcast_to(top * (1 - ramp) + low * ramp, (height, width, 3))
    image: ImageArray = np.array(sky, np.uint8, order="C")
    sun = (int(width * rng.uniform(0.2, 0.8)), int(height * rng.uniform(0.15, 0.4)))
    cv2.circle(image, sun, height // 10, (252, 232, 150), -1, cv2.LINE_AA)
    for layer in range(5):
        base = height * (0.4 + 0.13 * layer)
        ridge = base + height * 0.14 * noise(rng, 1, width, width / 3, 5)[0]
        outline = [(0, height), *zip(range(width), ridge.astype(int).tolist(), strict=True)]
        color = np.array((70, 104, 92)) * (1.25 - 0.2 * layer) + rng.uniform(-24, 24, 3)
        tone = tuple(int(c) for c in np.clip(color, 0, 255))
        cv2.fillPoly(image, [np.array([*outline, (width, height)], np.int32)], tone, cv2.LINE_AA)
        for _ in range(12 * layer):
            x = int(rng.integers(width))
            y = int(ridge[x] + rng.integers(4, height // 7))
            size = int(height * rng.uniform(0.015, 0.045)) + 2
            tree = np.array([(x - size // 2, y), (x + size // 2, y), (x, y - 2 * size)])
            cv2.fillConvexPoly(image, tree, tuple(int(c * 0.55) for c in tone), cv2.LINE_AA)
    return image


def _mosaic(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Nearest-seed cells, like a map of districts."""
    seeds = rng.uniform(0, (width, height), (70, 2)).astype(np.float32)
    colors = np.array([pick(rng) for _ in seeds], np.uint8)
    yy, xx = np.mgrid[0:height:2, 0:width:2].astype(np.float32)
    best = np.full(xx.shape, np.inf, np.float32)
    label = np.zeros(xx.shape, np.intp)
    for i, (x, y) in enumerate(seeds):
        distance = (xx - x) ** 2 + (yy - y) ** 2
        closer = distance < best
        best[closer], label[closer] = distance[closer], i
    cells = colors[label]
    edges = cv2.morphologyEx(label.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    cells[edges > 0] = WHITE
    return np.asarray(cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _grid(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    image = np.empty((height, width, 3), np.uint8)
    image[:] = WHITE
    xs = np.sort(rng.integers(0, width, 6))
    ys = np.sort(rng.integers(0, height, 7))
    for a, b in zip([0, *xs], [*xs, width], strict=True):
        for c, d in zip([0, *ys], [*ys, height], strict=True):
            if rng.uniform() < 0.55:
                cv2.rectangle(image, (int(a), int(c)), (int(b), int(d)), pick(rng), -1)
    for x in xs:
        cv2.line(image, (int(x), 0), (int(x), height), INK, 5)
    for y in ys:
        cv2.line(image, (0, int(y)), (width, int(y)), INK, 5)
    return image


def screen(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A monitor with coloured lines of code and a plot."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (28, 32, 42)
    step = max(height // 22, 5)
    for y in range(step, height - step, step):
        x = step + int(rng.integers(0, 5)) * step
        while x < width * 0.62 and rng.uniform() < 0.86:
            w = int(rng.integers(step, 5 * step))
            cv2.rectangle(image, (x, y), (x + w, y + step // 2), pick(rng), -1)
            x += w + step // 2
    left = int(width * 0.66)
    cv2.rectangle(image, (left, step), (width - step, height // 2), (232, 232, 226), -1)
    for _ in range(3):
        xs = np.linspace(left + 4, width - step - 4, 18)
        ys = height * (0.28 + 0.16 * noise(rng, 1, 18, 6, 3)[0])
        line = np.stack([xs, ys], 1).astype(np.int32)
        cv2.polylines(image, [line], False, pick(rng), 2, cv2.LINE_AA)
    image[height // 2 + step : height - step, left : width - step] = _mosaic(
        rng, height - step - (height // 2 + step), width - step - left
    )
    return image


def keyboard(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Rows of keys."""
    image = np.full((height, width, 3), 44, np.uint8)
    pitch = max(height // 5, 6)
    for row in range(5):
        x = 3 + row * 3
        while x < width - pitch:
            w = pitch if rng.uniform() < 0.85 else 2 * pitch
            tone = int(rng.integers(150, 226))
            y = row * pitch + 2
            cv2.rectangle(image, (x, y), (x + w - 4, y + pitch - 4), (tone, tone, tone - 6), -1)
            cv2.circle(image, (x + w // 3, y + pitch // 3), 2, INK, -1)
            x += w
    return image


def cardboard(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A carton side with tape, label and stamps."""
    image = shaded((176, 134, 88), noise(rng, height, width, 50, 5), 0.1)
    cv2.rectangle(image, (width * 4 // 10, 0), (width * 5 // 10, height), (206, 178, 128), -1)
    x, y = int(width * rng.uniform(0.05, 0.45)), int(height * rng.uniform(0.08, 0.4))
    w, h = int(width * 0.42), int(height * 0.42)
    cv2.rectangle(image, (x, y), (x + w, y + h), WHITE, -1)
    text_lines(rng, image, (x + 4, y + 2, x + w - 4, y + h - 2), max(h // 5, 8), INK)
    for _ in range(5):
        at = (int(rng.integers(width)), int(rng.integers(height)))
        motif(rng, image, at, max(min(height, width) // 9, 4), pick(rng, (INK, (150, 44, 40))))
    return image


def whiteboard(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Formulas, boxes and arrows in marker pen."""
    image = shaded((238, 240, 240), noise(rng, height, width, 120, 3), 0.03)
    inks: tuple[Color, ...] = (INK, (40, 70, 170), (180, 44, 44), (30, 120, 70))
    for _ in range(9):
        x, y = int(rng.integers(20, width - 60)), int(rng.integers(20, height - 40))
        w, h = int(rng.integers(50, 150)), int(rng.integers(24, 80))
        ink = inks[int(rng.integers(4))]
        text_lines(rng, image, (x, y, min(x + w, width - 10), min(y + h, height - 8)), 20, ink)
        if rng.uniform() < 0.6:
            cv2.rectangle(image, (x - 6, y - 4), (x + w, y + h + 6), ink, 2, cv2.LINE_AA)
        end = rng.integers(20, (width - 20, height - 20)).tolist()
        cv2.arrowedLine(image, (x + w, y + h // 2), end, ink, 2, cv2.LINE_AA, 0, 0.08)
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (140, 144, 148), 10)
    return image


def window(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A bright view through glazing bars."""
    image = _landscape(rng, height, width)
    image = np.asarray(np.clip(image.astype(np.float32) * 0.7 + 76, 0, 255), np.uint8)
    for part in (0.0, 0.5, 1.0):
        cv2.line(image, (int(width * part), 0), (int(width * part), height), WHITE, 16)
        cv2.line(image, (0, int(height * part)), (width, int(height * part)), WHITE, 16)
    return image


def door(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A panelled door with a handle and a note."""
    image = wood((150, 104, 68))(rng, height, width)
    for top, low in ((0.06, 0.42), (0.5, 0.92)):
        for left, right in ((0.12, 0.46), (0.54, 0.88)):
            a = (int(width * left), int(height * top))
            b = (int(width * right), int(height * low))
            cv2.rectangle(image, a, b, (92, 60, 38), 4)
            cv2.rectangle(image, (a[0] + 7, a[1] + 7), (b[0] - 7, b[1] - 7), (190, 142, 100), 2)
    cv2.circle(image, (int(width * 0.93), int(height * 0.47)), 9, (214, 206, 180), -1, cv2.LINE_AA)
    x, y, w, h = width // 3, height // 5, width // 3, height // 8
    image[y : y + h, x : x + w] = _page(rng, h, w)
    return image


def drawers(rows: int, columns: int, color: Color) -> Texture:
    """The front of a chest of drawers."""

    def draw(rng: np.random.Generator, height: int, width: int) -> ImageArray:
        image = wood(color)(rng, height, width)
        for row in range(rows):
            for column in range(columns):
                a = (column * width // columns + 4, row * height // rows + 4)
                b = ((column + 1) * width // columns - 4, (row + 1) * height // rows - 4)
                part = image[a[1] : b[1], a[0] : b[0]]
                part[:] = np.clip(part * rng.uniform(0.8, 1.12), 0, 255)
                cv2.rectangle(image, a, b, (58, 38, 26), 2)
                knob = ((a[0] + b[0]) // 2, (a[1] + b[1]) // 2)
                cv2.circle(image, knob, 6, (34, 28, 26), -1, cv2.LINE_AA)
                cv2.circle(image, (knob[0] - 2, knob[1] - 2), 2, WHITE, -1, cv2.LINE_AA)
        return image

    return draw


def globe(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Land and sea with meridians; wraps around horizontally."""
    field = noise(rng, height, width, width / 5, 5)
    blend = np.linspace(0, 1, width, dtype=np.float32)
    field = field * (1 - blend) + field[:, ::-1] * blend  # equal at both ends
    land = (field > np.median(field))[..., None]
    image = np.where(land, np.array((164, 148, 84)), np.array((58, 104, 150))).astype(np.uint8)
    image = shaded_image(image, noise(rng, height, width, 14, 3), 0.25)
    for i in range(1, 12):
        cv2.line(image, (i * width // 12, 0), (i * width // 12, height), (226, 222, 200), 1)
    for i in range(1, 6):
        cv2.line(image, (0, i * height // 6), (width, i * height // 6), (226, 222, 200), 1)
    for _ in range(40):
        at = (int(rng.integers(width)), int(rng.integers(height // 6, 5 * height // 6)))
        cv2.circle(image, at, 2, (170, 40, 40), -1, cv2.LINE_AA)
    return image


def leaves(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Foliage."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (26, 48, 26)
    for _ in range(height * width // 60):
        at = (int(rng.integers(width)), int(rng.integers(height)))
        green = (int(rng.integers(40, 120)), int(rng.integers(90, 180)), int(rng.integers(36, 80)))
        axes = (int(rng.integers(6, 14)), int(rng.integers(2, 5)))
        cv2.ellipse(image, at, axes, float(rng.uniform(0, 180)), 0, 360, green, -1, cv2.LINE_AA)
    return image


def pottery(color: Color) -> Texture:
    """Glazed bands with motifs."""

    def draw(rng: np.random.Generator, height: int, width: int) -> ImageArray:
        image = shaded(color, noise(rng, height, width, 30, 3), 0.1)
        y = 0
        while y < height:
            band = int(rng.integers(4, 22))
            cv2.rectangle(image, (0, y), (width, y + band // 2), pick(rng), -1)
            for x in range(0, width, 24):
                motif(rng, image, (x + int(rng.integers(8)), y + band), 9, pick(rng))
            y += band + 14
        return image

    return draw


def paper(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """A printed sheet or a book cover."""
    return (_page, _abstract, _grid, _mosaic)[int(rng.integers(4))](rng, height, width)

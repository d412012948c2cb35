"""The furnished room: where everything stands."""

from __future__ import annotations

import numpy as np

from reloc_core.datasets.room.pictures import (
    cardboard,
    door,
    drawers,
    globe,
    keyboard,
    leaves,
    paper,
    poster,
    pottery,
    screen,
    whiteboard,
    window,
)
from reloc_core.datasets.room.surfaces import Model
from reloc_core.datasets.room.textures import (
    Texture,
    books,
    bricks,
    ceiling,
    fabric,
    pick,
    planks,
    plaster,
    rug,
    wood,
)

ROOM_SIZE = (5.6, 4.6, 2.6)
"""Metres along x, y and z; one corner of the room is the world's origin."""

LAMPS = ((1.6, 1.5), (4.0, 3.0))
"""x, y of the two square ceiling lamps."""


_OAK, _WALNUT, _PINE = (186, 136, 86), (112, 74, 50), (214, 172, 116)
_STEEL, _DARK, _LINEN = (150, 152, 156), (52, 52, 58), (204, 192, 170)


_SHARED = 1_000_003


def furnish(seed: int, shared: bool = False) -> Model:
    """Build the room.

    Args:
        seed: of textures and of everything that is placed at random.
        shared: whether pictures, door, sofa and sideboard are those of all such rooms, whatever the seed.
    """
    own = np.random.default_rng([seed, 1])
    common = np.random.default_rng(_SHARED) if shared else own
    model = Model(own, np.array(ROOM_SIZE))
    _shell(model)
    _bookcase(model, 1.25)
    _desk(model)
    model.rng = common
    _sofa(model)
    model.rng = own
    _middle(model)
    model.rng = common
    _sideboard(model)
    model.rng = own
    _corners(model)
    model.rng = common
    _walls(model)
    return model


def _shell(model: Model) -> None:
    x, y, z = model.size
    ex, ey, ez = np.diag([x, y, z])
    zero = np.zeros(3)
    model.quad(ey, ex, -ey, planks)
    model.quad(ez, ex, ey, ceiling, density=150)
    # Seen from inside: y = 0, x = X, y = Y, x = 0.
    model.quad(ex + ez, -ex, -ez, plaster((222, 208, 182)))
    model.quad(ex + ey + ez, -ey, -ez, plaster((158, 180, 178)))
    model.quad(ey + ez, ex, -ez, bricks)
    model.quad(zero + ez, ey, -ez, plaster((212, 214, 204)))
    lamp = plaster((255, 252, 240), 0.0)
    for cx, cy in LAMPS:
        corner = np.array([cx - 0.35, cy - 0.35, z - 0.004])
        edge_u, edge_v = np.array([0.7, 0, 0]), np.array([0, 0.7, 0])
        model.quad(corner, edge_u, edge_v, lamp, density=60, emits=True)


def _bookcase(model: Model, x: float) -> None:
    """Against the wall y = 0, facing +y."""
    width, depth, height = 1.7, 0.34, 2.05
    case = wood(_WALNUT)
    y = depth / 2
    for side in (-1, 1):
        model.box((x + side * (width / 2 - 0.015), y), 0, (0.03, depth, height), case)
    model.box((x, 0.01), 0, (width - 0.06, 0.02, height), case)
    shelves = 5
    pitch = (height - 0.03) / shelves
    for i in range(shelves + 1):
        model.box((x, y + 0.01), i * pitch, (width - 0.06, depth - 0.02, 0.03), case)
        if i == shelves:
            break
        left = x - width / 2 + 0.05
        while left < x + width / 2 - 0.2:
            w = float(model.rng.uniform(0.14, 0.36))
            w = min(w, x + width / 2 - 0.05 - left)
            tall = float(model.rng.uniform(0.2, pitch - 0.07))
            deep = float(model.rng.uniform(0.17, 0.25))
            center = (left + w / 2, 0.03 + deep / 2)
            kind = model.rng.uniform()
            base = i * pitch + 0.03
            if kind < 0.74:
                back = plaster(pick(model.rng))
                model.box(center, base, (w, deep, tall), back, 180, books, density=420)
            elif kind < 0.86:
                r = min(0.075, w / 2)
                model.cylinder(center, base, r, tall * 0.8, pottery(pick(model.rng)))
            else:
                model.box(center, base, (w, 0.03, tall), wood(_DARK), 180, poster, density=420)
            left += w + float(model.rng.uniform(0.01, 0.07))
    for dx, h in ((-0.5, 0.2), (0.1, 0.27), (0.52, 0.16)):
        model.box((x + dx, 0.18), height, (0.36, 0.26, h), cardboard, yaw=8 * dx)


def _desk(model: Model) -> None:
    """Against the wall x = 0, below the whiteboard."""
    top = wood(_PINE)
    model.box((0.4, 3.2), 0.71, (0.76, 1.7, 0.035), top)
    model.box((0.4, 2.37), 0, (0.7, 0.04, 0.71), top)
    model.box((0.4, 3.8), 0, (0.66, 0.42, 0.68), wood(_WALNUT), 0)
    model.box((0.725, 3.8), 0.02, (0.02, 0.4, 0.66), drawers(3, 1, _OAK), 0)
    z = 0.745
    model.box((0.22, 3.02), z, (0.24, 0.18, 0.02), plaster(_DARK))
    model.box((0.2, 3.02), z + 0.02, (0.05, 0.04, 0.14), plaster(_DARK))
    model.box((0.235, 3.02), z + 0.12, (0.62, 0.035, 0.37), plaster(_DARK), 90, screen, density=480)
    model.box((0.23, 3.6), z + 0.1, (0.44, 0.03, 0.3), plaster(_STEEL), 76, screen, density=480)
    model.box((0.23, 3.6), z, (0.1, 0.1, 0.12), plaster(_STEEL), 76)
    model.box((0.55, 3.02), z, (0.44, 0.15, 0.018), plaster(_DARK), 90, top=keyboard, density=480)
    for x, y, yaw in ((0.56, 2.62, 12), (0.5, 3.42, 80), (0.62, 3.55, 65)):
        model.box((x, y), z, (0.21, 0.29, 0.004), paper, yaw, density=480)
    for i in range(5):
        long = float(model.rng.uniform(0.16, 0.24))
        spin = float(model.rng.uniform(-25, 25))
        model.box(
            (0.24, 2.56), z + 0.035 * i, (long, 0.2, 0.035), books, spin, top=paper, density=480
        )
    model.cylinder((0.6, 3.3), z, 0.04, 0.1, pottery((60, 110, 140)), plaster((70, 40, 24)))
    model.cylinder((0.2, 3.93), z, 0.045, 0.12, pottery((200, 150, 60)), plaster(_DARK))
    # A stool in front.
    model.cylinder((1.05, 3.1), 0.02, 0.05, 0.42, plaster(_STEEL))
    model.cylinder((1.05, 3.1), 0.44, 0.2, 0.07, fabric((60, 92, 120)))


def _sofa(model: Model) -> None:
    """Against the wall y = Y, facing -y."""
    x, back = 2.9, ROOM_SIZE[1]
    cloth = fabric((74, 108, 112), 3)
    model.box((x, back - 0.45), 0.08, (2.0, 0.84, 0.32), cloth)
    model.box((x, back - 0.12), 0.4, (2.0, 0.22, 0.42), cloth)
    for side in (-1, 1):
        model.box((x + side * 1.08, back - 0.45), 0.0, (0.18, 0.86, 0.58), cloth)
        model.box((x + side * 0.48, back - 0.52), 0.4, (0.92, 0.68, 0.1), fabric((92, 128, 130), 2))
    for dx, yaw, color in ((-0.72, 14, (198, 92, 60)), (-0.3, -9, (228, 190, 92)),
                           (0.7, -16, (150, 70, 100))):  # fmt: skip
        model.box(
            (x + dx, back - 0.33), 0.5, (0.42, 0.14, 0.38), fabric(color, 4), yaw, density=400
        )


def _middle(model: Model) -> None:
    """Rug and coffee table, things on it."""
    model.box((2.8, 2.25), 0, (2.5, 1.7, 0.012), rug)
    top = wood(_OAK)
    model.box((2.8, 2.25), 0.4, (1.15, 0.66, 0.04), top, 8)
    for dx, dy in ((-0.48, -0.25), (0.48, -0.25), (0.48, 0.25), (-0.48, 0.25)):
        c, s = np.cos(np.radians(8)), np.sin(np.radians(8))
        at = (2.8 + c * dx - s * dy, 2.25 + s * dx + c * dy)
        model.box(at, 0, (0.06, 0.06, 0.4), top, 8)
    z = 0.44
    model.cylinder((3.1, 2.4), z, 0.07, 0.03, wood(_WALNUT))
    model.sphere((3.1, 2.4, z + 0.16), 0.14, globe)
    for i, (long, short) in enumerate(((0.3, 0.22), (0.26, 0.2), (0.23, 0.17))):
        yaw = float(model.rng.uniform(-30, 30))
        model.box((2.5, 2.2), z + 0.03 * i, (long, short, 0.03), books, yaw, top=paper, density=480)
    model.box((2.8, 2.05), z, (0.3, 0.21, 0.004), paper, 25, density=480)
    model.box((3.2, 2.12), z, (0.21, 0.29, 0.004), paper, -12, density=480)
    model.cylinder((2.72, 2.42), z, 0.09, 0.09, pottery((180, 80, 60)), plaster((90, 50, 36)))
    model.cylinder((4.15, 1.55), 0, 0.27, 0.38, fabric((176, 120, 62), 4))
    model.box((1.75, 2.95), 0, (0.34, 0.3, 0.26), cardboard, 24)


def _sideboard(model: Model) -> None:
    """Against the wall x = X, facing -x."""
    x, y = ROOM_SIZE[0] - 0.22, 2.75
    model.box((x, y), 0, (1.9, 0.44, 0.75), wood(_OAK), -90, drawers(3, 4, _OAK))
    model.box((x + 0.12, y - 0.1), 0.83, (1.05, 0.05, 0.6), plaster(_DARK), -90, screen)
    model.box((x + 0.1, y - 0.1), 0.75, (0.4, 0.2, 0.08), plaster(_DARK), -90)
    model.cylinder((x - 0.02, y + 0.68), 0.75, 0.085, 0.3, pottery((60, 96, 130)))
    model.cylinder((x - 0.08, y + 0.5), 0.75, 0.055, 0.18, pottery((190, 160, 90)))
    model.box((x - 0.02, y - 0.8), 0.75, (0.2, 0.02, 0.26), wood(_DARK), -70, poster, density=480)
    model.box((x - 0.1, y - 0.72), 0.75, (0.15, 0.02, 0.18), wood(_PINE), -100, poster, density=480)
    model.sphere((x - 0.1, y + 0.86, 0.75 + 0.07), 0.07, fabric((180, 60, 50), 3))


def _corners(model: Model) -> None:
    x, y, _ = ROOM_SIZE
    # Plant beside the sofa.
    model.cylinder((x - 0.42, y - 0.42), 0, 0.19, 0.36, pottery((170, 96, 62)), leaves)
    model.cylinder((x - 0.42, y - 0.42), 0.36, 0.025, 0.5, wood(_WALNUT))
    for dx, dy, z, r in ((0, 0, 1.1, 0.24), (-0.15, 0.1, 0.86, 0.18), (0.12, -0.12, 0.84, 0.17),
                         (-0.08, -0.16, 1.26, 0.15), (0.1, 0.12, 1.34, 0.14)):  # fmt: skip
        model.sphere((x - 0.42 + dx, y - 0.42 + dy, z), r, leaves)
    # Cartons.
    model.box((x - 0.45, 0.42), 0, (0.62, 0.5, 0.42), cardboard, 9)
    model.box((x - 0.5, 0.4), 0.42, (0.44, 0.4, 0.3), cardboard, -14)
    model.box((x - 0.46, 0.42), 0.72, (0.3, 0.26, 0.2), cardboard, 22)
    model.box((x - 1.12, 0.3), 0, (0.4, 0.34, 0.3), cardboard, -7)
    # Floor lamp and bin beside the desk.
    model.cylinder((0.42, y - 0.24), 0, 0.14, 0.03, plaster(_DARK))
    model.cylinder((0.42, y - 0.24), 0.03, 0.016, 1.4, plaster(_STEEL))
    model.cylinder((0.42, y - 0.24), 1.4, 0.17, 0.26, fabric((232, 212, 160), 3))
    model.cylinder((0.3, 2.1), 0, 0.14, 0.34, pottery((90, 96, 104)), plaster(_DARK))


def _walls(model: Model) -> None:
    """Pictures, whiteboard, door, window; thin boxes, so that their edges have parallax."""
    x, y, _ = ROOM_SIZE
    frame = wood(_LINEN)

    def hang(
        wall: str, along: float, bottom: float, width: float, height: float, texture: Texture
    ) -> None:
        thick = 0.025
        half = thick / 2
        center, yaw = {
            "y0": ((along, half), 180.0),
            "x1": ((x - half, along), -90.0),
            "y1": ((along, y - half), 0.0),
            "x0": ((half, along), 90.0),
        }[wall]
        model.box(center, bottom, (width, thick, height), frame, yaw, texture, density=360)

    hang("y0", 2.75, 1.2, 0.62, 0.86, poster)
    hang("y0", 3.5, 1.0, 0.5, 0.5, poster)
    hang("y0", 3.5, 1.62, 0.56, 0.42, poster)
    hang("y0", 4.25, 1.05, 0.62, 0.9, poster)
    hang("y0", 4.98, 1.3, 0.6, 0.46, poster)
    hang("y0", 4.98, 1.85, 0.46, 0.4, poster)
    hang("x1", 1.15, 0.0, 0.86, 2.05, door)
    hang("x1", 2.0, 1.45, 0.42, 0.6, poster)
    hang("x1", 2.65, 1.62, 0.62, 0.46, poster)
    hang("x1", 3.35, 1.3, 0.54, 0.76, poster)
    hang("y1", 0.95, 1.15, 0.5, 0.7, poster)
    hang("y1", 1.8, 1.1, 0.8, 0.6, poster)
    hang("y1", 2.75, 1.05, 0.72, 0.96, poster)
    hang("y1", 3.65, 1.2, 0.72, 0.54, poster)
    hang("y1", 4.4, 1.5, 0.4, 0.56, poster)
    hang("y1", 3.6, 1.85, 0.42, 0.34, poster)
    hang("x0", 3.2, 1.3, 1.5, 0.95, whiteboard)
    hang("x0", 1.25, 0.95, 1.3, 1.2, window)
    hang("x0", 2.2, 1.5, 0.34, 0.48, poster)
    hang("x0", 4.25, 1.2, 0.44, 0.62, poster)
    # A wall shelf over the sideboard's end.
    model.box((x - 0.1, 3.95), 1.35, (0.9, 0.2, 0.03), wood(_PINE), -90)
    for i, dy in enumerate((-0.34, -0.08, 0.2)):
        texture = books if i != 1 else cardboard
        model.box((x - 0.11, 3.95 + dy), 1.38, (0.24, 0.16, 0.22), plaster(_LINEN), -90, texture)

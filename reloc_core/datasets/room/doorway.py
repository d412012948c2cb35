"""Doorways: rooms that stand in a row along x share walls, and each shared wall has an opening.

The wall x = X of a room and the wall x = 0 of the next one are the same plane, each seen from its own
side, so rays that pass the opening simply meet what the next room has. Each room keeps its own light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reloc_core.datasets.room.furniture import ROOM_SIZE, furnish
from reloc_core.datasets.room.lighting import bake
from reloc_core.datasets.room.surfaces import Model, Surface

DOORWAY = (0.72, 1.58, 2.05)
"""Along y from and to, and its height, metres: where the eastern wall has its door."""

_HANGS = 0.03  # metres from the wall within which a thing hangs on it


def row_of_rooms(seeds: Sequence[int], shared: bool) -> list[Surface]:
    """Lit surfaces of rooms in a row; the first one's corner is the origin.

    Args:
        seeds: of the rooms, from west to east.
        shared: see `furnish`.
    """
    surfaces = []
    for place, seed in enumerate(seeds):
        model = furnish(seed, shared)
        if place > 0:
            open_wall(model, 0.0)
        if place + 1 < len(seeds):
            open_wall(model, ROOM_SIZE[0])
        bake(model)
        shift = np.array([place * ROOM_SIZE[0], 0, 0])
        surfaces += [replace(s, origin=s.origin + shift) for s in model.surfaces]
    return surfaces


def open_wall(model: Model, x: float) -> None:
    """Cut the doorway out of the wall at x, and take down what hangs there."""
    left, right, top = DOORWAY
    kept = []
    for surface in model.surfaces:
        low, high = surface.hull.min(0), surface.hull.max(0)
        apart = high[1] <= left or low[1] >= right or low[2] >= top
        if apart or np.abs(surface.hull[:, 0] - x).max() > _HANGS:
            kept.append(surface)
        elif low[1] <= 0 and high[1] >= ROOM_SIZE[1]:
            kept += _around(surface)
    model.surfaces = kept
    model.blocks = [
        b for b in model.blocks
        if abs(b.center[0] - x) > _HANGS or not left < b.center[1] < right or b.center[2] > top
    ]  # fmt: skip


def _around(wall: Surface) -> list[Surface]:
    """What is left of a whole wall: beside the doorway on both sides, and above it."""
    left, right, top = DOORWAY
    u = sorted((y - wall.origin[1]) / wall.edge_u[1] for y in (left, right))
    v = (top - wall.origin[2]) / wall.edge_v[2]
    height, width = wall.texture.shape[:2]

    def part(u0: float, u1: float, v0: float, v1: float) -> Surface:
        rows, columns = (
            slice(round(a * n), round(b * n)) for a, b, n in ((v0, v1, height), (u0, u1, width))
        )
        return replace(
            wall,
            origin=wall.origin + u0 * wall.edge_u + v0 * wall.edge_v,
            edge_u=(u1 - u0) * wall.edge_u,
            edge_v=(v1 - v0) * wall.edge_v,
            texture=wall.texture[rows, columns],
        )

    return [part(0, u[0], 0, 1), part(u[1], 1, 0, 1), part(u[0], u[1], 0, v)]

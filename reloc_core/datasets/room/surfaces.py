"""What the room is made of: textured quads, discs, spheres and upright cylinders.

World axes: x and y along the floor, z up, metres. Quads are seen from one side only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from reloc_core.datasets.room.textures import Texture
from reloc_core.types import Float64Array, ImageArray


@dataclass
class Surface:
    """One textured surface.

    A point of a quad is `origin + u * edge_u + v * edge_v` with u, v in 0..1, u to the right and v
    down as seen from its front; a disc is the ellipse inscribed in it. Spheres and cylinders stand
    at `origin` (centre of the sphere, centre of the cylinder's bottom); u is the azimuth / 2 pi,
    v runs from top to bottom.

    Attributes:
        kind: shape.
        origin: (3,) world.
        edge_u: (3,) world; quads and discs.
        edge_v: (3,) world; quads and discs.
        radius: metres; spheres and cylinders.
        height: metres; cylinders.
        texture: (h, w, 3) uint8, row 0 at v = 0; light is baked in by `lighting.bake`.
        emits: whether it shines by itself, so that no light is baked in.
    """

    kind: Literal["quad", "disc", "sphere", "cylinder"]
    origin: Float64Array
    edge_u: Float64Array
    edge_v: Float64Array
    radius: float
    height: float
    texture: ImageArray
    emits: bool = False

    @cached_property
    def normal(self) -> Float64Array:
        """Unit normal of a quad or disc, towards the side it is seen from."""
        n = np.cross(self.edge_v, self.edge_u)
        return np.asarray(n / np.linalg.norm(n))

    @property
    def extent(self) -> tuple[float, float]:
        """Length along u and v in metres."""
        if self.kind in ("quad", "disc"):
            return float(np.linalg.norm(self.edge_u)), float(np.linalg.norm(self.edge_v))
        along = self.height if self.kind == "cylinder" else np.pi * self.radius
        return 2 * np.pi * self.radius, float(along)

    @cached_property
    def hull(self) -> Float64Array:
        """(N, 3) points whose convex hull contains the surface."""
        if self.kind in ("quad", "disc"):
            corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
            return np.array([self.origin + u * self.edge_u + v * self.edge_v for u, v in corners])
        r = self.radius
        low, high = (-r, r) if self.kind == "sphere" else (0.0, self.height)
        offsets = [(x, y, z) for x in (-r, r) for y in (-r, r) for z in (low, high)]
        return np.asarray(self.origin + np.array(offsets))

    def points(self, u: Float64Array, v: Float64Array) -> tuple[Float64Array, Float64Array]:
        """World points and unit normals (..., 3) at parameters u, v (...)."""
        if self.kind in ("quad", "disc"):
            p = self.origin + u[..., None] * self.edge_u + v[..., None] * self.edge_v
            return p, np.broadcast_to(self.normal, p.shape)
        azimuth = 2 * np.pi * u
        if self.kind == "cylinder":
            n = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], -1)
            p = self.origin + self.radius * n
            p[..., 2] = self.origin[2] + (1 - v) * self.height
            return p, n
        polar = np.pi * v
        n = np.stack(
            [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1
        )
        return self.origin + self.radius * n, n


@dataclass
class Block:
    """A solid that casts shadows: a box turned about z, or a sphere.

    Attributes:
        center: (3,) world.
        half: (3,) half sizes along its own axes; all equal to the radius for a sphere.
        yaw: rotation about z in radians.
        round: whether it is a sphere.
    """

    center: Float64Array
    half: Float64Array
    yaw: float = 0.0
    round: bool = False


@dataclass
class Model:
    """Surfaces and the solids behind them; grows by `box`, `sphere`, `cylinder`, `quad`.

    Attributes:
        rng: source of all randomness.
        size: (3,) of the room, one corner at the origin.
        density: texels per metre.
        surfaces: what is seen.
        blocks: what casts shadows.
    """

    rng: np.random.Generator
    size: Float64Array
    density: float = 300.0
    surfaces: list[Surface] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def quad(
        self,
        origin: Float64Array,
        edge_u: Float64Array,
        edge_v: Float64Array,
        texture: Texture,
        density: float | None = None,
        emits: bool = False,
        disc: bool = False,
    ) -> None:
        """Add a quad or the disc inscribed in it."""
        self._add("disc" if disc else "quad", origin, edge_u, edge_v, 0, 0, texture, density, emits)

    def box(
        self,
        center: tuple[float, float],
        bottom: float,
        size: tuple[float, float, float],
        texture: Texture,
        yaw: float = 0.0,
        front: Texture | None = None,
        top: Texture | None = None,
        density: float | None = None,
    ) -> None:
        """Add a box standing at `bottom`.

        Args:
            center: x, y of its axis.
            bottom: height of its lower side.
            size: along its own x, y and z, metres.
            texture: of all sides.
            yaw: rotation about z in degrees; `front` is the side towards -y at 0.
            front: texture of the front, if different.
            top: texture of the top, if different.
            density: texels per metre, if different from the model's.
        """
        angle = np.radians(yaw)
        ax = np.array([np.cos(angle), np.sin(angle), 0.0])
        ay = np.array([-ax[1], ax[0], 0.0])
        az = np.array([0.0, 0.0, 1.0])
        half = np.array(size) / 2
        middle = np.array([center[0], center[1], bottom + half[2]])
        sx, sy, sz = size
        front = front or texture
        # (normal, right as seen from outside, width) of the four sides, starting with the front.
        sides = ((-ay, ax, sx, half[1]), (ax, ay, sy, half[0]), (ay, -ax, sx, half[1]),
                 (-ax, -ay, sy, half[0]))  # fmt: skip
        for i, (n, right, width, reach) in enumerate(sides):
            corner = middle + n * reach - right * width / 2 + az * half[2]
            if not self._hidden(corner, right * width, -az * sz):
                drawn = front if i == 0 else texture
                self.quad(corner, right * width, -az * sz, drawn, density)
        for n, back, drawn in ((az, -ay, top or texture), (-az, ay, texture)):
            corner = middle + n * half[2] - ax * half[0] - back * half[1]
            if not self._hidden(corner, ax * sx, back * sy):
                self.quad(corner, ax * sx, back * sy, drawn, density)
        self.blocks.append(Block(middle, half, float(angle)))

    def sphere(self, center: tuple[float, float, float], radius: float, texture: Texture) -> None:
        """Add a sphere."""
        zero = np.zeros(3)
        at = np.array(center, np.float64)
        self._add("sphere", at, zero, zero, radius, 0, texture, None, False)
        self.blocks.append(Block(at, np.full(3, radius), round=True))

    def cylinder(
        self,
        center: tuple[float, float],
        bottom: float,
        radius: float,
        height: float,
        texture: Texture,
        top: Texture | None = None,
    ) -> None:
        """Add an upright cylinder with a lid."""
        zero = np.zeros(3)
        at = np.array([*center, bottom])
        self._add("cylinder", at, zero, zero, radius, height, texture, None, False)
        corner = at + np.array([-radius, radius, height])
        edge_u, edge_v = np.array([2 * radius, 0, 0]), np.array([0, -2 * radius, 0])
        self.quad(corner, edge_u, edge_v, top or texture, disc=True)
        half = np.array([0.85 * radius, 0.85 * radius, height / 2])
        self.blocks.append(Block(at + np.array([0, 0, height / 2]), half))

    def _hidden(self, corner: Float64Array, edge_u: Float64Array, edge_v: Float64Array) -> bool:
        """Whether a side lies flush on a wall, the floor or the ceiling."""
        corners = np.array([corner, corner + edge_u, corner + edge_v])
        low = (corners < 2e-3).all(0).any()
        return bool(low or (corners > self.size - 2e-3).all(0).any())

    def _add(
        self,
        kind: Literal["quad", "disc", "sphere", "cylinder"],
        origin: Float64Array,
        edge_u: Float64Array,
        edge_v: Float64Array,
        radius: float,
        height: float,
        texture: Texture,
        density: float | None,
        emits: bool,
    ) -> None:
        empty = np.zeros((0, 0, 3), np.uint8)
        surface = Surface(kind, origin, edge_u, edge_v, radius, height, empty, emits)
        texels = [max(round(e * (density or self.density)), 4) for e in surface.extent]
        # Textures are drawn with brushes of fixed size: tiny sides are cut from a larger drawing.
        w, h = (max(t, 24) for t in texels)
        surface.texture = texture(self.rng, h, w)[: texels[1], : texels[0]]
        self.surfaces.append(surface)

"""Rooms in a row: what is seen through their doorways is the next room, where it is and as it looks."""

import numpy as np
import pytest

from reloc_core.datasets.config import RoomsConfig, SyntheticConfig
from reloc_core.datasets.room.doorway import DOORWAY
from reloc_core.datasets.room.furniture import ROOM_SIZE
from reloc_core.datasets.rooms import RoomsDataset
from reloc_core.errors import ConfigError
from reloc_core.geometry import inverse, lift, project, transform

LONG = ROOM_SIZE[0]
FRAMES = 24  # of each room: 3 of them before each doorway
ROOM = SyntheticConfig(width=320, height=240, train_frames=FRAMES, test_frames=8, noise=0.0)


def row(rooms=2, **options):
    return RoomsDataset(
        RoomsConfig(generate=rooms, doors=options.pop("doors", rooms), room=ROOM, **options)
    )


def points(query):
    """(H, W, 3) in the world."""
    y, x = np.mgrid[: query.camera.height, : query.camera.width]
    pixels = np.stack([x, y], -1).astype(float)
    return transform(query.world_from_cam, lift(query.camera, pixels, query.depth))


def through(query, wall):
    """(H, W) whether the ray through a pixel meets the plane x = `wall` inside the doorway."""
    eye = query.world_from_cam[:3, 3]
    rays = points(query) - eye
    share = (wall - eye[0]) / np.where(rays[..., 0] == 0, np.nan, rays[..., 0])
    y, z = eye[1] + share * rays[..., 1], eye[2] + share * rays[..., 2]
    left, right, top = DOORWAY
    return (share > 0) & (left < y) & (y < right) & (z < top)


def test_depth_through_an_opening_is_that_of_the_far_wall_and_beside_it_of_the_near_one():
    query = row()[FRAMES - 2]
    seen, open_ = points(query), through(query, LONG)
    # Rays by the room's dimensions alone: over the door leaf and pictures, under the ceiling.
    eye = query.world_from_cam[:3, 3]
    rays = seen - eye
    far = eye + rays * ((2 * LONG - eye[0]) / rays[..., :1])
    free = open_ & (far[..., 2] > 2.1) & (far[..., 2] < 2.55) & (abs(far[..., 1] - 2.3) < 1.8)
    assert free.sum() > 300
    np.testing.assert_allclose(seen[free][:, 0], 2 * LONG, atol=1e-3)
    assert (seen[open_][:, 0] > LONG - 1e-3).all()
    assert (seen[~open_][:, 0] < LONG + 1e-3).all()
    closed = row(doors=0)[FRAMES - 2]
    assert points(closed)[..., 0].max() < LONG + 1e-3


def test_a_point_seen_through_a_doorway_looks_as_it_does_in_its_own_room():
    world = row()
    own = [world[i] for i in range(FRAMES, 2 * FRAMES)]
    compared = 0
    for index in (FRAMES - 3, FRAMES - 1):
        there = world[index]
        inner = through(there, LONG)
        where, color = points(there)[inner], there.image[inner].astype(float)
        for query in own:
            local = transform(inverse(query.world_from_cam), where)
            pixels, front = project(query.camera, local)
            near = np.rint(np.nan_to_num(pixels, nan=-9)).astype(int)
            ok = front & ((near >= 6) & (near < (314, 234))).all(1)
            near, z = near[ok], local[ok][:, 2]
            same = abs(query.depth[near[:, 1], near[:, 0]] - z) < 0.01 * z
            if same.sum() < 1500:
                continue
            compared += 1
            near, seen = near[same], color[ok][same]

            def error(shift, query=query, near=near, seen=seen):
                x, y = (near + shift).T
                return np.median(np.abs(query.image[y, x] - seen).mean(1))

            moved = [error(np.array(s)) for s in ((5, 0), (-5, 0), (0, 5), (0, -5))]
            assert error((0, 0)) < 8
            assert error((0, 0)) < 0.8 * min(moved)
    assert compared >= 4


def test_rows_are_closed_and_their_rooms_share_walls():
    world = row(5, doors=2, spacing=6.0)
    assert all((world[i].depth > 0.4).all() for i in range(len(world)))
    first = [world.frames[room * FRAMES].world_from_cam[:3, 3] for room in range(5)]
    corner = np.array([[0, 0, 0], [LONG, 0, 0], [0, -6, 0], [LONG, -6, 0], [0, -12, 0]])
    np.testing.assert_allclose(first - first[4] - (corner - corner[4]), 0, atol=0.2)
    # The last room has no neighbour: nobody stands before its door, and nothing is seen beyond it.
    assert points(world[5 * FRAMES - 1])[..., 0].max() < LONG + 1e-3


def test_mirrored_rows_are_mirror_images_as_a_whole():
    world = row(4, doors=2, seeds=2)
    for index in (FRAMES - 1, 2 * FRAMES - 1):
        plain, mirrored = world[index], world[index + 2 * FRAMES]
        np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
        expected = points(plain)[:, ::-1] * [-1, 1, 1] + [LONG, -5, 0]
        np.testing.assert_allclose(points(mirrored), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"doors": -1, "generate": 2}, "negative"),
        ({"doors": 2, "rooms": [{"name": "synthetic"}]}, "generate"),
        ({"doors": 2, "generate": 9, "seeds": 3}, "whole rows"),
        ({"doors": 2, "generate": 8, "seeds": 4, "repeat": 2}, "whole rows"),
        ({"doors": 2, "generate": 4, "spacing": 4}, "spacing"),
    ],
)
def test_mistakes_are_told(options, says):
    with pytest.raises(ConfigError, match=says):
        RoomsDataset(RoomsConfig(**options))

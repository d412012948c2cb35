"""Rooms in one world: where they come to lie, what is read, and bad lists."""

import numpy as np
import pytest

from reloc_core.datasets.benchmarks.base import FetchOptions
from reloc_core.datasets.benchmarks.sevenscenes import SevenScenes
from reloc_core.datasets.benchmarks.twelvescenes import TwelveScenes
from reloc_core.datasets.config import RoomsConfig, SyntheticConfig
from reloc_core.datasets.room_lists import published_list
from reloc_core.datasets.rooms import RoomsDataset
from reloc_core.errors import ConfigError, DataError

SMALL = {"width": 64, "height": 48, "train_frames": 3, "test_frames": 2, "depth": False}
TWO = [{"name": "synthetic", "seed": seed, **SMALL} for seed in (3, 4)]


@pytest.fixture
def listing(tmp_path, ace_folder):
    """A list of twelve rooms as published; only two folders exist."""
    for name in ("room5", "room4"):
        ace_folder(tmp_path / name / "train")
    lines = [f"room{i} {i} {2 * i} {3 * i}" for i in range(12)]
    path = tmp_path / "i12.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("room", "place"), [(4, (-5, 0, 0)), (5, (-5, -5, 0))])
def test_a_listed_room_lies_where_the_published_scripts_put_it(listing, room, place):
    """Grid side ceil(sqrt(12)) = 4, so rooms 4 and 5 are the first two of the second row."""
    moved = RoomsDataset(RoomsConfig(str(listing), only=f"room{room}"))
    rng = np.random.default_rng(1)  # as the folder's writer draws them
    stored = rng.normal(size=(6, 3))
    centres = np.stack([frame.world_from_cam[:3, 3] for frame in moved.frames])
    mean = np.array([room, 2 * room, 3 * room])
    np.testing.assert_allclose(centres - stored, np.tile(place - mean, (6, 1)), atol=1e-6)
    assert moved.frames[0].name == f"room{room}/seq-01-frame-000000.color.png"
    assert moved.frames[0].sequence == f"room{room}/seq-01"


def test_rooms_follow_each_other_and_show_their_own_images():
    world = RoomsDataset(RoomsConfig(rooms=TWO, spacing=8.0))
    alone = [RoomsDataset(RoomsConfig(rooms=[entry])) for entry in TWO]
    assert len(world) == 6
    assert len({f.name for f in world.frames}) == 6
    for number, query in enumerate(world):
        room, inner = divmod(number, 3)
        own = alone[room][inner]
        np.testing.assert_array_equal(query.image, own.image)
        shift = query.world_from_cam[:3, 3] - own.world_from_cam[:3, 3]
        np.testing.assert_allclose(shift, [0, -8.0 * room, 0], atol=1e-12)
        np.testing.assert_array_equal(query.world_from_cam[:3, :3], own.world_from_cam[:3, :3])
        assert query.name == world.frames[number].name
    assert list(world.content()) == [part for room in alone for part in room.content()]


def test_frames_know_their_room():
    rooms = RoomsDataset(RoomsConfig(rooms=[{**e, "train_frames": 3} for e in TWO]))
    labels = [f"{rooms.frames[i].room}/" for i in range(6)]
    assert all(f.name.startswith(r) for f, r in zip(rooms.frames, labels, strict=True))
    assert len(set(labels)) == 2
    assert rooms[4].room == rooms.frames[4].room


def test_both_splits_of_a_room_share_its_place():
    """Walks through the same room about the same middle: a move of one split alone would show."""
    centres = [
        np.mean([f.world_from_cam[:3, 3] for f in RoomsDataset(RoomsConfig(
            rooms=[{**e, "train_frames": 40, "test_frames": 40} for e in TWO], split=split,
            only="synthetic-1")).frames], 0)
        for split in ("train", "test")
    ]  # fmt: skip
    assert np.linalg.norm(centres[0] - centres[1]) < 0.3


@pytest.mark.parametrize(("name", "count"), [("i12", 12), ("i19", 19), ("i12d", 12), ("i19d", 19)])
def test_published_lists_name_the_fetched_folders(name, count):
    poses = "dslam" if name.endswith("d") else "sfm"
    folders = []
    for benchmark in (TwelveScenes(), SevenScenes())[: 1 + (count == 19)]:
        options = FetchOptions(poses=poses)
        folders += [benchmark.folder(scene, options) for scene in benchmark.scenes]
    listed = [line.split()[0] for line in published_list(name).splitlines()]
    assert len(listed) == count
    assert sorted(listed) == sorted(folders)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, ConfigError, "either"),
        ({"rooms": [{"root": "x"}]}, ConfigError, "name: ace"),
        ({"rooms": TWO, "generate": 2}, ConfigError, "either"),
        ({"generate": 9, "seeds": 2}, ConfigError, "a quarter"),
        ({"generate": 9, "repeat": 1}, ConfigError, "repeat"),
        ({"generate": -1}, ConfigError, "generate"),
        ({"rooms": TWO, "only": "synthetic-7"}, ConfigError, "no room"),
        ({"rooms": TWO, "spacing": 0}, ConfigError, "positive"),
        ({"rooms": [{"name": "synthetic", "seeds": 1}]}, ConfigError, "seed"),
    ],
)
def test_mistakes_are_told(options, error, says):
    with pytest.raises(error, match=says):
        RoomsDataset(RoomsConfig(**options))


@pytest.mark.parametrize(
    "text", ["", "room5 1 2\n", "room5 1 2 nan\n", "room5 1 2 3\nroom5 1 2 3\n", "room5 1 2 x\n"]
)
def test_bad_lists_are_refused(listing, text):
    listing.write_text(text)
    with pytest.raises(DataError, match=r"i12\.txt"):
        RoomsDataset(RoomsConfig(str(listing)))


def test_generated_rooms_differ_but_for_those_that_repeat_another():
    small = {**SMALL, "train_frames": 1}
    room = SyntheticConfig(**small, noise=0.0)
    world = RoomsDataset(RoomsConfig(generate=6, seeds=2, repeat=4, room=room))
    images = [query.image.astype(int) for query in world]
    alike = {(i, j) for i in range(6) for j in range(i) if not (images[i] - images[j]).any()}
    assert alike == {(3, 2)}
    np.testing.assert_array_equal(images[2], images[0][:, ::-1])  # its mirror image
    np.testing.assert_array_equal(images[4], 255 - images[0])
    noisy = RoomsDataset(RoomsConfig(generate=6, seeds=2, repeat=4, room=SyntheticConfig(**small)))
    again = noisy[3].image.astype(int) - noisy[2].image
    assert 0 < abs(again).mean() < 5

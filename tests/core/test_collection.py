"""Several maps opened as one: routing, memory, alignment, contradictions, bad input."""

import dataclasses
import json

import numpy as np
import pytest

from reloc_core import Localizer
from reloc_core.alignment import align, moved, scale_of
from reloc_core.cli.main import main
from reloc_core.collection import Collection, Member, judged, merge, open_pipeline
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.subset import Subset
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.engine import evaluate, train
from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.geometry import pose_minus, pose_plus
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline
from reloc_core.types import Localization, Status

PLACES = {"left": 0, "right": 1}
FAR = np.array([[0.0, -1, 0, 30], [1, 0, 0, 5], [0, 0, 1, 2], [0, 0, 0, 1]])


def room(name, split="train"):
    return SyntheticDataset(
        SyntheticConfig(split, 160, 120, train_frames=24, test_frames=6, depth=False,
                        mirrored=name == "right", negative=name == "right")
    )  # fmt: skip


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A map of each of two rooms, which share a rendering but look different."""
    folder = tmp_path_factory.mktemp("maps")
    for name in PLACES:
        train(room(name), folder / name, "landmarks", threads=1)
    return folder


@pytest.fixture(scope="module")
def house(maps):
    """Both as one; the second lies elsewhere in the common world, and only one fits into memory."""
    members = {
        name: Member(Map.open(maps / name), room(name), FAR if name == "right" else np.eye(4))
        for name in PLACES
    }
    megabytes = 3.5e-6 * max(member.map.bytes for member in members.values())
    return merge(members, maps / "house", memory_mb=megabytes).path


def errors(found, query, world_from_map):
    apart = pose_minus(found.world_from_cam, world_from_map @ query.world_from_cam)
    return np.linalg.norm(apart[3:]), np.degrees(np.linalg.norm(apart[:3]))


def test_queries_find_their_map_and_its_place_in_the_world(house, maps):
    collection = open_pipeline(house)
    assert not collection._loaded
    right = 0
    for name, pose in (("left", np.eye(4)), ("right", FAR), ("left", np.eye(4))):
        alone = Pipeline.from_map(maps / name)
        for query in room(name, "test"):
            assert next(iter(collection.route(query))) == name
            found = collection.localize(query)
            assert len(collection._loaded) == 1
            expected = alone.localize(query)
            assert found.localized == expected.localized
            if found.localized:
                right += errors(found, query, pose)[0] < 0.2
                np.testing.assert_allclose(
                    found.world_from_cam, pose @ expected.world_from_cam, atol=1e-9
                )
    assert right >= 12  # of 18, in images of 160 x 120


def test_the_evidence_lies_in_the_common_world(house, maps):
    query = room("right", "test")[1]
    given, _ = open_pipeline(house).localize_with_evidence(query)
    own, _ = Pipeline.from_map(maps / "right").localize_with_evidence(query)
    turn = FAR[:3, :3]
    assert np.abs(own.covariances - turn @ own.covariances @ turn.T).max() > 1e-6
    np.testing.assert_allclose(given.points3d, own.points3d @ turn.T + FAR[:3, 3], atol=1e-9)
    np.testing.assert_allclose(given.covariances, turn @ own.covariances @ turn.T, atol=1e-9)


def test_the_localizer_and_the_evaluation_take_it(house):
    localizer = Localizer.from_map(house, threads=1)
    query = room("right", "test")[1]
    found = localizer.localize(query.image, "map")
    assert errors(found, query, FAR)[0] < 0.2
    moved = [
        dataclasses.replace(q, world_from_cam=FAR @ q.world_from_cam) for q in room("right", "test")
    ]
    assert localizer.map.info.unit == "metre"
    evaluation = evaluate(house, room("left", "test"))
    assert evaluation.metrics.localized >= 4
    assert len(moved) == 6


def test_maps_are_aligned_by_images_of_one_in_the_other(maps):
    """The other map's frame is this one's, moved by a known pose."""
    pipeline = Pipeline.from_map(maps / "left")
    known = pose_plus(np.eye(4), np.array([0.1, -0.4, 0.7, 3.0, -2.0, 1.0]))

    class Elsewhere(Subset):
        @property
        def frames(self):
            return [
                dataclasses.replace(f, world_from_cam=np.linalg.inv(known) @ f.world_from_cam)
                for f in super().frames
            ]

    elsewhere = Elsewhere(room("left"), list(range(24)))
    found = align(pipeline, elsewhere)
    apart = pose_minus(found, known)
    assert np.linalg.norm(apart[3:]) < 0.05
    assert np.linalg.norm(apart[:3]) < np.radians(1)
    with pytest.raises(DataError, match="overlap"):
        align(pipeline, room("right"))


def test_of_poses_that_contradict_each_other_at_most_one_is_right():
    """The chance of each, by counting: both claims right is impossible, the rest is independent."""
    here = Localization(
        Status.LOCALIZED, world_from_cam=np.eye(4), covariance=1e-4 * np.eye(6), score=0.9
    )
    there = dataclasses.replace(here, world_from_cam=FAR, score=0.6)
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=(2, 1_000_000)) < [[0.9], [0.6]]
    possible = ~(first & second)
    assert judged(here, there).score == pytest.approx(
        (first & possible).sum() / possible.sum(), abs=0.005
    )
    assert judged(here, dataclasses.replace(here, score=0.6)).score == 0.9
    as_sure = judged(here, dataclasses.replace(there, score=0.9))
    assert not as_sure.localized
    assert "another map" in as_sure.reason
    assert judged(here, Localization.failure("none")).score == 0.9


def test_the_verb_makes_and_shows_one(maps, tmp_path, capsys):
    entries = {
        name: {"map_dir": str(maps / name),
               "dataset": {"name": "synthetic", "width": 160, "height": 120, "train_frames": 4}}
        for name in PLACES
    }  # fmt: skip
    given = json.dumps(entries).replace('"', "")
    out = tmp_path / "both"
    assert main(["collect", f"maps={given}", f"map_dir={out}"]) == 0
    assert main(["collect", f"map_dir={out}"]) == 0
    assert capsys.readouterr().err.count("left:") == 2
    assert main(["collect", f"maps={given}", f"map_dir={out}"]) == 2
    assert "finished map" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("maps_option", "says"),
    [
        ("{a: {map_dir: x}}", "dataset"),
        ("{a: {map_dir: x, dataset: {width: 3}}}", "name"),
        ("{a: {map_dir: x, dataset: {name: synthetic}, pose: 3}}", "pose"),
        ("{a: {map_dir: x, dataset: {name: synthetic}, world_from_map: [[1, 2]]}}", "rigid"),
        ("{a: {map_dir: x, dataset: {name: synthetic}}}", "no map"),
        ("[1]", "maps must be"),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, maps_option, says):
    assert main(["collect", f"maps={maps_option}", f"map_dir={tmp_path / 'out'}"]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_together_is_refused(house, maps, tmp_path):
    left = Member(Map.open(maps / "left"), room("left"), np.eye(4))
    with pytest.raises(ConfigError, match="at least two"):
        merge({"left": left}, tmp_path / "one")
    units = dataclasses.replace(left.map.info, unit="scene unit")
    other = Member(Map(left.map.path, units, {}), left.dataset, np.eye(4))
    with pytest.raises(ConfigError, match="units"):
        merge({"left": left, "other": other}, tmp_path / "two")
    with pytest.raises(MapError, match="single map"):
        Pipeline.from_map(house)
    moved = tmp_path / "house"
    moved.mkdir()
    for file in house.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MapError, match="no map in"):
        open_pipeline(moved)


def test_workers_share_the_memory(house):
    # One of the two fits; of half the memory still the one that is asked, and no other.
    alone = Collection(Map.open(house), {})
    shared = Collection(Map.open(house), {}, workers=4)
    assert shared._budget == alone._budget / 4
    localizer = Localizer.from_map(house, threads=1, workers=2)
    assert localizer.pipeline._budget == alone._budget / 2


class Larger(Subset):
    """Poses moved and twice as large, in an arbitrary unit."""

    unit = "scene unit"

    @property
    def frames(self):
        return [
            dataclasses.replace(f, world_from_cam=moved(np.linalg.inv(TWICE), f.world_from_cam))
            for f in super().frames
        ]

    def __getitem__(self, index):
        query = super().__getitem__(index)
        return dataclasses.replace(query, world_from_cam=self.frames[index].world_from_cam)


class Loose(Subset):
    unit = "scene unit"


TWICE = np.array([[0.0, -0.5, 0, 3], [0.5, 0, 0, 1], [0, 0, 0.5, 2], [0, 0, 0, 1]])
"""World from a map of twice the size."""


def test_maps_of_different_scale_lie_in_one_world(tmp_path):
    whole = list(range(24))
    small, large = Loose(room("left"), whole), Larger(room("left"), whole)
    for name, data in (("small", small), ("large", large)):
        train(data, tmp_path / name, "landmarks", threads=1)
    pose = align(Pipeline.from_map(tmp_path / "small"), large)
    assert scale_of(pose) == pytest.approx(0.5, rel=0.02)
    members = {
        name: Member(Map.open(tmp_path / name), data, at)
        for name, data, at in (("small", small, np.eye(4)), ("large", large, TWICE))
    }
    collection = open_pipeline(merge(members, tmp_path / "both").path)
    here, there = (Pipeline.from_map(tmp_path / name) for name in ("small", "large"))
    compared = 0
    for query in room("left", "test"):
        _, found = collection._ask("large", query)
        expected, truth = there.localize(query), query.world_from_cam
        if not found.localized:
            continue
        compared += 1
        np.testing.assert_allclose(
            found.world_from_cam, moved(TWICE, expected.world_from_cam), atol=1e-9
        )
        np.testing.assert_allclose(
            found.covariance[3:, 3:], expected.covariance[3:, 3:] / 4, rtol=1e-6
        )
        np.testing.assert_allclose(found.covariance[:3, :3], expected.covariance[:3, :3], rtol=1e-6)
        np.testing.assert_allclose(found.world_from_cam[:3, :3] @ found.world_from_cam[:3, :3].T,
                                   np.eye(3), atol=1e-9)  # fmt: skip
        assert np.linalg.norm(found.world_from_cam[:3, 3] - truth[:3, 3]) < 0.3
        assert found.stages[-1][1] == pytest.approx(found.world_from_cam)
    assert compared >= 3
    assert here.localize(room("left", "test")[1]).localized

"""The softmax readout: its decoder, its places, and maps of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from landmarks.softmax.config import DecoderConfig, SoftmaxConfig
from landmarks.softmax.decoder import PositionDecoder, top_k
from landmarks.softmax.estimator import SoftmaxLandmarks
from landmarks.softmax.places import Places

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.errors import MapError
from reloc_core.features.vlad import vlad
from reloc_core.interfaces import Runtime
from reloc_core.maps import Map
from reloc_core.storage import load_tensors, save_tensors
from reloc_core.testing import start_run


def unit(count, seed, channels=64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, channels, generator=generator), dim=1)


@pytest.mark.parametrize("width", [5, 31, 32, 1000, 4097])
def test_top_k_is_that_of_torch(width):
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    values, index = top_k(rows, min(8, width))
    expected = rows.topk(min(8, width), 1)
    assert torch.equal(values, expected.values)
    assert torch.equal(index, expected.indices)


def test_landmarks_that_take_part_are_all_that_count():
    keys, positions = unit(300, 0), torch.randn(300, 3)
    config = DecoderConfig()
    whole = PositionDecoder(keys, positions, torch.zeros(300), config)
    among = torch.arange(0, 300, 3)
    part = PositionDecoder(keys[among], positions[among], torch.zeros(100), config)
    query = F.normalize(keys[among[:50]] + 0.05 * unit(50, 1), dim=1)
    for ours, expected in zip(whole(query, among), part(query), strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(whole(query, among)[0], positions[among[:50]], atol=0.5, rtol=0)


def two_rooms():
    """Places of which two and two share a vocabulary of descriptors, and queries of each kind."""
    words = unit(16, 2)
    kinds = [words[:8], words[8:]]
    generator = torch.Generator().manual_seed(3)

    def picture(kind):
        chosen = torch.randint(8, (200,), generator=generator)
        noise = torch.randn(200, 64, generator=generator) * 0.02
        return F.normalize(kinds[kind][chosen] + noise, dim=1)

    looks = torch.stack([vlad(picture(k), words) for k in (0, 1, 0, 1)])
    seen = [torch.arange(100 * p, 100 * p + 100) for p in range(4)]
    return Places(looks, words, seen), picture


def test_a_query_is_compared_with_the_places_that_look_like_it():
    places, picture = two_rooms()
    for kind in (0, 1):
        expected = torch.cat([places.seen[kind], places.seen[kind + 2]])
        assert torch.equal(places.candidates(picture(kind), 150, 400), expected)
        one = places.candidates(picture(kind), 100, 400)
        assert len(one) == 100
        assert one[0] in (100 * kind, 100 * kind + 200)
    assert places.candidates(picture(0), 0, 400) is None
    assert places.candidates(picture(0), 400, 400) is None
    assert places.candidates(torch.zeros(0, 64), 150, 400) is None


@pytest.fixture(scope="module")
def room():
    return SyntheticDataset(SyntheticConfig(width=320, height=240, train_frames=60, test_frames=6))


def config():
    made = SoftmaxConfig()
    made.keypoints.resolution = 240
    made.keypoints.mapping = made.keypoints.query = 400
    made.triangulation.min_views = 2
    made.decoder.iterations = 60
    made.decoder.candidates = 400
    return made


@pytest.fixture(scope="module")
def fitted(room, tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "map"
    run = start_run(path, "landmarks.softmax")
    estimator = SoftmaxLandmarks(config())
    estimator.fit(room, run)
    run.map.finish()
    return estimator, path


def test_what_was_chosen_is_stored_and_thin_cover_is_told(fitted, room, tmp_path):
    details = Map.open(fitted[1]).info.details
    assert details["plan"]["resolution"] == 240
    assert details["cover"]["median"] > 100
    few = config()
    few.keypoints.mapping, few.decoder.iterations = 100, 1
    run = start_run(tmp_path / "thin", "landmarks.softmax")
    SoftmaxLandmarks(few).fit(room, run)
    assert any("expect queries to fail" in str(values) for _, values in run.events)


def test_scene_points_are_where_the_surfaces_are(fitted, point_errors):
    estimator, _ = fitted
    assert len(estimator.decoder.keys) > 800  # or a query would be compared with all
    assert np.median(point_errors(estimator, 0.2)) < 0.10


def test_round_trip_and_maps_without_places(fitted, room, tmp_path):
    estimator, path = fitted
    loaded = SoftmaxLandmarks(config())
    loaded.load(Map.open(path), Runtime())
    ours, theirs = estimator.estimate(room[7]), loaded.estimate(room[7])
    np.testing.assert_allclose(ours.points3d, theirs.points3d, atol=1e-5)
    points = loaded.scene_points()
    assert points.colors.shape == points.points.shape
    np.testing.assert_array_equal(points.colors, estimator.scene_points().colors)
    old = Map.open(path)
    old._files = {n: f for n, f in old._files.items() if "places" not in n}
    before = SoftmaxLandmarks(config())
    before.load(old, Runtime())
    every = config()
    every.decoder.candidates = 0
    whole = SoftmaxLandmarks(every)
    whole.load(Map.open(path), Runtime())
    np.testing.assert_array_equal(
        before.estimate(room[7]).points3d, whole.estimate(room[7]).points3d
    )


@pytest.mark.parametrize("damage", ["index", "negative", "counts", "length"])
def test_places_that_do_not_fit_are_refused(fitted, damage, tmp_path):
    _, path = fitted
    tensors, _ = load_tensors(path / "places.safetensors")
    if damage == "index":
        tensors["seen"][-1] = 10**6
    elif damage == "negative":
        tensors["seen"][0] = -1
    elif damage == "counts":
        tensors["seen_counts"][0] += 1
    else:
        tensors["words"] = tensors["words"][:-1]
    save_tensors(tmp_path / "places.safetensors", tensors, {})
    read = Map.open(path)
    real = read.tensors
    read.tensors = lambda name, *a, **k: (
        load_tensors(tmp_path / "places.safetensors") if name == "places" else real(name, *a, **k)
    )
    with pytest.raises(MapError, match="do not fit"):
        SoftmaxLandmarks(config()).load(read, Runtime())

import numpy as np
import pytest
from kfnet_temporal.common.grid import FeatureExtractor
from kfnet_temporal.common.labels import interpolate, labels_at, make_labels
from kfnet_temporal.common.stereo import StereoDepth
from kfnet_temporal.measurement_config import LabelConfig

from reloc_core.errors import DataError


@pytest.fixture(scope="module")
def run(tmp_path_factory, film, start_run):
    return start_run(tmp_path_factory.mktemp("labels") / "map", film(8))


def test_plane_sweep_finds_the_wall(film):
    data = film(40, depth=False)
    depth = StereoDepth(data, FeatureExtractor(144), assumed=3.0)
    assert depth.assumed is None
    errors, known = [], []
    for i in (5, 20, 35):
        found = depth.distances(i)
        query = film(40)[i]
        points = labels_at(query, depth.extractor(query).pixels)
        truth = np.linalg.norm(points - query.world_from_cam[:3, 3], axis=1).reshape(found.shape)
        known.append(np.isfinite(found).mean())
        errors.append(np.abs(found / truth - 1)[np.isfinite(found)])
    assert np.mean(known) > 0.3
    assert np.median(np.concatenate(errors)) < 0.15


def test_a_still_camera_puts_everything_at_the_assumed_distance(film, run):
    data = film(10, depth=False)
    from dataclasses import replace

    still = data._frames[0].world_from_cam
    data._frames = [replace(f, world_from_cam=still) for f in data._frames]
    labels = make_labels(data, LabelConfig(resolution=144, assumed_distance=2.5), run)
    query = data[3]
    points = labels.at(3, query, np.array([[10.0, 20.0], [100.0, 60.0]]))
    np.testing.assert_allclose(np.linalg.norm(points - still[:3, 3], axis=1), 2.5)


def lists(folder, data, stride):
    pairs = []
    for i, frame in enumerate(data.frames):
        query = data[i]
        height, width = query.image.shape[:2]
        y, x = np.mgrid[0:height:stride, 0:width:stride]
        points = labels_at(query, np.stack([x, y], -1).reshape(-1, 2).astype(float))
        path = folder / f"{i}.bin"
        values = np.c_[np.where(np.isfinite(points), points, -1), np.isfinite(points).all(1)]
        values.astype("<f4").tofile(path)
        pairs.append((folder / frame.name, path))
    for name, column in zip(
        ("image_list.txt", "label_list.txt"), zip(*pairs, strict=True), strict=True
    ):
        (folder / name).write_text("".join(f"{path}\n" for path in column))


@pytest.mark.parametrize("stride", [1, 8])
def test_label_files_say_what_depth_says(tmp_path, film, run, stride):
    data = film(3)
    lists(tmp_path, data, stride)
    labels = make_labels(data, LabelConfig("files", str(tmp_path)), run)
    pixels = np.array([[16.0, 24.0], [100.3, 70.6], [3.0, 130.0]])
    np.testing.assert_allclose(labels.at(1, data[1], pixels), labels_at(data[1], pixels), atol=0.02)


def test_labels_of_another_resolution(tmp_path, film, run):
    data = film(2)
    lists(tmp_path, data, 4)
    labels = make_labels(data, LabelConfig("files", str(tmp_path)), run)
    with pytest.raises(DataError, match="bytes"):
        labels.at(0, data[0], np.zeros((1, 2)))


def test_label_lists_that_miss_an_image(tmp_path, film, run):
    lists(tmp_path, film(2), 8)
    with pytest.raises(DataError, match="does not name"):
        make_labels(film(3), LabelConfig("files", str(tmp_path)), run)


def test_depth_that_is_not_there(film, run):
    with pytest.raises(DataError, match="no depth"):
        make_labels(film(3, depth=False), LabelConfig("depth"), run)


def test_interpolation_of_a_plane_is_exact_and_stops_at_unknown():
    y, x = np.mgrid[0:6, 0:8].astype(float)
    plane = np.stack([2 * x - y, x + 3 * y, 0 * x + 1], -1)
    places = np.array([[1.25, 2.5], [6.0, 4.0], [7.0, 5.0]])
    expected = np.stack([2 * places[:, 0] - places[:, 1], places @ [1, 3], np.ones(3)], -1)
    np.testing.assert_allclose(interpolate(plane, places), expected)
    plane[2, 2] = np.nan
    found = interpolate(plane, np.array([[1.5, 2.0], [1.0, 2.0]]))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()

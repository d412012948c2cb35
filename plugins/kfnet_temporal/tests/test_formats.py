import numpy as np
import pytest
from kfnet_temporal.common.formats import (
    coordinate_map,
    read_label,
    read_lists,
    read_transform,
    scene_transform,
)
from kfnet_temporal.common.labels import lift_labels

from reloc_core.errors import DataError
from reloc_core.geometry import inverse, project, so3_exp, transform
from reloc_core.types import Camera


def labelled(h=48, w=64):
    points = np.random.default_rng(0).normal(size=(h, w, 3))
    points[3, 5] = np.nan
    return points


def write_label(path, points):
    """As the published code does."""
    valid = np.isfinite(points).all(-1, keepdims=True)
    np.concatenate([np.where(valid, points, -1.0), valid], -1).astype("<f4").tofile(path)


@pytest.mark.parametrize("eighth", [False, True])
def test_label_round_trip_in_both_resolutions(tmp_path, eighth):
    points = labelled()[::8, ::8] if eighth else labelled()
    points = points.copy()
    points[1, 2] = np.nan
    write_label(tmp_path / "0.bin", points)
    assert (tmp_path / "0.bin").stat().st_size == points.shape[0] * points.shape[1] * 16
    found, mask = read_label(tmp_path / "0.bin", 48, 64)
    assert np.array_equal(mask, np.isfinite(points).all(-1))
    assert np.allclose(found[mask], points[mask], atol=1e-6)
    raw = np.fromfile(tmp_path / "0.bin", "<f4").reshape(*points.shape[:2], 4)
    assert raw[1, 2].tolist() == [-1, -1, -1, 0]


def test_label_of_another_resolution_is_refused(tmp_path):
    write_label(tmp_path / "0.bin", np.zeros((20, 30, 3)))
    with pytest.raises(DataError, match="9600 bytes"):
        read_label(tmp_path / "0.bin", 48, 64)
    with pytest.raises(DataError, match="does not exist"):
        read_label(tmp_path / "1.bin", 48, 64)


def test_scene_transform_turns_onto_principal_axes(tmp_path):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4000, 3)) * [3.0, 1.0, 0.2] @ so3_exp(np.array([0.3, 0.2, 1.0])) + [
        5,
        6,
        7,
    ]
    found = scene_transform(np.r_[points, [[np.nan] * 3]])
    turned = transform(found, points)
    assert np.allclose(turned.mean(0), 0, atol=1e-9)
    covariance = np.cov(turned.T)
    assert np.allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-9)
    assert np.allclose(np.sqrt(np.diag(covariance)), [3.0, 1.0, 0.2], rtol=0.05)
    np.savetxt(tmp_path / "transform.txt", found)
    read = read_transform(tmp_path / "transform.txt")
    assert np.abs(transform(np.linalg.inv(read), transform(found, points)) - points).max() < 1e-5


def test_a_published_reflection_is_accepted(tmp_path):
    matrix = np.diag([1.0, 1.0, -1.0, 1.0])
    np.savetxt(tmp_path / "t.txt", matrix)
    assert np.linalg.det(read_transform(tmp_path / "t.txt")[:3, :3]) == pytest.approx(-1)
    np.savetxt(tmp_path / "t.txt", np.diag([2.0, 1, 1, 1]))
    with pytest.raises(DataError, match="orthogonal"):
        read_transform(tmp_path / "t.txt")


def test_lists(tmp_path):
    pairs = [(tmp_path / f"{i}.png", tmp_path / f"{i}.bin") for i in range(3)]
    for name, column in zip(
        ("image_list.txt", "label_list.txt"), zip(*pairs, strict=True), strict=True
    ):
        (tmp_path / name).write_text("".join(f"{path}\n" for path in column))
    assert read_lists(tmp_path) == pairs
    (tmp_path / "label_list.txt").write_text("a.bin\n")
    with pytest.raises(DataError, match="line by line"):
        read_lists(tmp_path)


def test_confidence_is_one_over_the_deviation():
    found = coordinate_map(np.zeros((2, 3, 3)), np.array([[0.05, 0.1, np.inf]] * 2))
    assert found.dtype == np.float32
    assert found.shape == (2, 3, 4)
    assert np.allclose(found[0, :, 3], [20, 10, 0])


def test_labels_project_back_to_their_pixels():
    camera = Camera("OPENCV", 64, 48, (60.0, 61.0, 31.0, 24.0, -0.1, 0.02, 0.001, 0.0))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = so3_exp(np.array([0.1, -0.2, 0.3])), [1, 2, 3]
    depth = np.random.default_rng(2).uniform(1, 3, (48, 64)).astype(np.float32)
    depth[10, 12] = 0
    y, x = np.mgrid[0:48:2, 0:64:2]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    world = lift_labels(camera, depth, pose, pixels)
    known = np.isfinite(world).all(1)
    assert (~known).sum() == 1
    found, _ = project(camera, transform(inverse(pose), world[known]))
    assert np.abs(found - pixels[known]).max() < 1e-6
    assert np.allclose(
        transform(inverse(pose), world[known])[:, 2], depth[y, x].reshape(-1)[known], atol=1e-6
    )

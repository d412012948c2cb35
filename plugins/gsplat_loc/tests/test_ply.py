"""Files of Gaussians and point clouds."""

import struct

import numpy as np
import pytest
import torch
from gsplat_loc.field.gaussians import checked
from gsplat_loc.field.ply import read_ply, read_points, write_ply

from reloc_core.errors import DataError, MapError


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_round_trip(tmp_path, make_field, degree):
    field = make_field(degree=degree)
    origin = np.array([10.0, -3.0, 2.0])
    features = torch.randn(len(field), 64)
    write_ply(tmp_path / "field.ply", field, origin, features)
    again, at, semantic = read_ply(tmp_path / "field.ply")
    world = again.means.double().numpy() + at
    np.testing.assert_allclose(world, field.means.double().numpy() + origin, atol=2e-6)
    for name in ("colors", "opacities", "scales", "quaternions"):
        torch.testing.assert_close(getattr(again, name), getattr(field, name), atol=0, rtol=0)
    torch.testing.assert_close(semantic, features, atol=0, rtol=0)


def test_layout_is_that_of_viewers(tmp_path, make_field):
    """Property names in the viewers' order, and coefficients channel by channel."""
    field = make_field(count=3, degree=3)
    write_ply(tmp_path / "field.ply", field, np.zeros(3))
    content = (tmp_path / "field.ply").read_bytes()
    header, body = content.split(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.split()[2] for line in lines[3:]]
    rest = [f"f_rest_{i}" for i in range(45)]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest,
                     "opacity", "scale_0", "scale_1", "scale_2",
                     "rot_0", "rot_1", "rot_2", "rot_3"]  # fmt: skip
    second = dict(zip(names, struct.unpack("<62f", body[248:496]), strict=True))
    # channel * 15 + coefficient; coefficient 0 of f_rest is the second of all.
    assert second["f_rest_17"] == pytest.approx(float(field.colors[1, 3, 1]))
    assert second["f_dc_2"] == pytest.approx(float(field.colors[1, 0, 2]))
    assert second["rot_0"] == pytest.approx(float(field.quaternions[1, 0]))


def test_missing_properties_are_named(tmp_path):
    path = tmp_path / "cloud.ply"
    path.write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\n"
        "property float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\n"
        "end_header\n0 1 2 255 0 9\n3 4 5 1 2 3\n"
    )
    with pytest.raises(DataError, match="no f_dc_0, f_dc_1, f_dc_2, opacity"):
        read_ply(path)
    points, rgb = read_points(path)
    np.testing.assert_array_equal(points, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(rgb, [[255, 0, 9], [1, 2, 3]])


def test_truncated_and_foreign_files(tmp_path, field):
    write_ply(tmp_path / "field.ply", field, np.zeros(3))
    content = (tmp_path / "field.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(content[:-10])
    with pytest.raises(DataError, match="truncated"):
        read_ply(tmp_path / "cut.ply")
    (tmp_path / "no.ply").write_bytes(b"\x89PNG....")
    with pytest.raises(DataError, match="no PLY"):
        read_ply(tmp_path / "no.ply")


def test_values_that_are_not_finite_are_refused(tmp_path, field):
    field.scales[3, 1] = float("nan")
    write_ply(tmp_path / "field.ply", field, np.zeros(3))
    with pytest.raises(MapError, match="1 of 50 Gaussians have a 'scales' that is not finite"):
        read_ply(tmp_path / "field.ply")


def test_tensors_of_other_shapes_are_refused(field):
    tensors = field.tensors()
    with pytest.raises(MapError, match="lacks 'opacities'"):
        checked({k: v for k, v in tensors.items() if k != "opacities"}, "file")
    with pytest.raises(MapError, match="'quaternions' has shape"):
        checked({**tensors, "quaternions": tensors["quaternions"][:, :3]}, "file")
    with pytest.raises(MapError, match="'colors' has shape"):
        checked({**tensors, "colors": tensors["colors"][:, :3]}, "file")


def test_large_coordinates_keep_their_precision(tmp_path, make_field):
    """Millimetres in UTM: float32 alone has half a metre there."""
    field = make_field()
    origin = np.array([512_345.678901, 5_401_234.567891, 231.25])
    write_ply(tmp_path / "field.ply", field, origin)
    again, at, _ = read_ply(tmp_path / "field.ply")
    world = again.means.double().numpy() + at
    np.testing.assert_allclose(world, field.means.double().numpy() + origin, atol=2e-6, rtol=0)
    points, _ = read_points(tmp_path / "field.ply")
    np.testing.assert_allclose(points, world, atol=2e-6, rtol=0)


@pytest.mark.parametrize("origin", ["1 2", "1 2 nan", "one two three"])
def test_a_damaged_origin_is_refused(tmp_path, origin):
    path = tmp_path / "cloud.ply"
    path.write_text(
        f"ply\nformat ascii 1.0\ncomment origin {origin}\nelement vertex 0\nend_header\n"
    )
    with pytest.raises(DataError, match="three numbers"):
        read_points(path)

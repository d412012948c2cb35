"""Worlds of models whose true scale and axes are known: a model is the truth under another similarity."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from reloc_core.errors import ConfigError, DataError
from reloc_core.geometry import project, transform
from reloc_core.io.poses import pose_text
from reloc_core.reconstruction.options import ScaleOptions
from reloc_core.reconstruction.scale import find_world, gps_of, similarity, up_of
from reloc_core.reconstruction.world import Posed
from reloc_core.types import Camera

CAMERA = Camera.pinhole(400.0, 640, 480)
SCALE, TURN, SHIFT = 2.5, Rotation.from_euler("xyz", [0.4, -1.1, 2.0]).as_matrix(), [4.0, -1.0, 7.0]
POINTS = np.random.default_rng(1).uniform([-2, -2, 0], [2, 2, 1], (300, 3))


def looking(position, target):
    """A camera held level, z up in the world."""
    forward = np.subtract(target, position) / np.linalg.norm(np.subtract(target, position))
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = position
    return pose


def truth(line=False):
    angles = np.linspace(0, 1.5, 8)
    if line:
        places = [(x, -5.0, 1.5) for x in np.linspace(-2, 2, 8)]
        return [looking(p, (p[0] + 0.1, 0, 0.3)) for p in places]
    return [looking((5 * np.sin(a), -5 * np.cos(a), 1.5 + 0.2 * a), (0, 0, 0.5)) for a in angles]


def model(poses, orientation=1):
    """The same as a model of another scale, turn and origin, as structure from motion leaves it."""
    images = []
    for number, pose in enumerate(poses):
        moved = np.eye(4)
        moved[:3, :3] = TURN @ pose[:3, :3]
        moved[:3, 3] = SCALE * TURN @ pose[:3, 3] + SHIFT
        points = SCALE * POINTS @ TURN.T + SHIFT
        images.append(Posed(f"i{number}.jpg", CAMERA, moved, orientation, points))
    return images


def placed(world, images):
    return world.point(np.stack([image.world_from_cam[:3, 3] for image in images]))


def distances(points):
    return np.linalg.norm(points[:, None] - points, axis=-1)


def test_similarity_is_the_one_that_was_applied():
    scale, rotation, shift = similarity(POINTS, SCALE * POINTS @ TURN.T + SHIFT)
    assert scale == pytest.approx(SCALE)
    np.testing.assert_allclose(rotation, TURN, atol=1e-12)
    np.testing.assert_allclose(shift, SHIFT, atol=1e-12)


@pytest.mark.parametrize("line", [False, True])
def test_up_is_where_cameras_were_held(line):
    up = up_of(model(truth(line)))
    expected = TURN @ [0, 0, 1]
    # Along a line all cameras look alike, and the mean of their own up leans as they do.
    assert np.degrees(np.arccos(min(up @ expected, 1.0))) < (15 if line else 1e-3)


def test_photos_held_upright_are_upright_whatever_way_the_sensor_lay():
    sideways = []
    for pose in truth():
        turned = pose.copy()
        # Tag 6: a clockwise quarter turn makes the stored pixels upright.
        turned[:3, :3] = pose[:3, :3] @ [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
        sideways.append(turned)
    np.testing.assert_allclose(up_of(model(sideways, 6)), TURN @ [0, 0, 1], atol=1e-6)


def test_nothing_given_leaves_the_scale(tmp_path):
    images = model(truth())
    world = find_world(ScaleOptions(), images, tmp_path)
    assert (world.scale, world.unit) == (1.0, "scene unit")
    np.testing.assert_allclose(world.rotation @ TURN @ [0, 0, 1], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(placed(world, images).mean(0), 0, atol=1e-9)


def test_distance(tmp_path):
    poses = truth()
    images = model(poses)
    between = float(np.linalg.norm(poses[0][:3, 3] - poses[7][:3, 3]))
    world = find_world(ScaleOptions(distance=["i0.jpg", "i7.jpg", between]), images, tmp_path)
    assert world.scale == pytest.approx(1 / SCALE)
    assert world.unit == "metre"
    with pytest.raises(ConfigError, match=r"'i9.jpg' is not among the 8 registered images"):
        find_world(ScaleOptions(distance=["i9.jpg", "i7.jpg", 1.0]), images, tmp_path)


def test_known_poses(tmp_path):
    poses = truth()
    images = model(poses)
    for chosen in (range(8), (1, 6)):
        folder = tmp_path / str(len(chosen))
        folder.mkdir()
        for number in chosen:
            (folder / f"i{number}.txt").write_text(pose_text(poses[number]))
        world = find_world(ScaleOptions(poses=str(folder)), images, tmp_path)
        np.testing.assert_allclose(placed(world, images), [p[:3, 3] for p in poses], atol=1e-6)
    (folder / "i1.txt").unlink()
    with pytest.raises(DataError, match="at least 2 registered images"):
        find_world(ScaleOptions(poses=str(folder)), images, tmp_path)


def test_depth(tmp_path):
    poses = truth()
    for number, pose in enumerate(poses):
        depth = np.zeros((480, 640), np.uint16)
        points = transform(np.linalg.inv(pose), POINTS)
        pixels, seen = project(CAMERA, points)
        for (x, y), z in zip(np.rint(pixels[seen]).astype(int), points[seen][:, 2], strict=True):
            if 0 <= x < 640 and 0 <= y < 480:
                depth[y, x] = round(1000 * z)
        cv2.imwrite(str(tmp_path / f"i{number}.png"), depth)
    images = model(poses)
    world = find_world(ScaleOptions(depth=str(tmp_path)), images, tmp_path)
    assert world.scale == pytest.approx(1 / SCALE, rel=2e-3)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="0 of 8 registered images have a depth image"):
        find_world(ScaleOptions(depth=str(tmp_path / "none")), images, tmp_path)


def with_gps(path, latitude, longitude, altitude):
    def parts(value):
        value = abs(value)
        minutes = value % 1 * 60
        return (float(int(value)), float(int(minutes)), minutes % 1 * 60)

    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif.get_ifd(0x8825).update(
        {
            1: "N" if latitude >= 0 else "S", 2: parts(latitude),
            3: "E" if longitude >= 0 else "W", 4: parts(longitude),
            5: b"\x00" if altitude >= 0 else b"\x01", 6: abs(altitude),
        }
    )  # fmt: skip
    image.save(path, exif=exif)


def test_gps_tags(tmp_path):
    with_gps(tmp_path / "a.jpg", -33.8567844, 151.2152967, -4.0)
    assert gps_of(tmp_path / "a.jpg") == pytest.approx((-33.8567844, 151.2152967, -4.0), abs=1e-6)
    Image.new("RGB", (8, 6)).save(tmp_path / "b.jpg")
    assert gps_of(tmp_path / "b.jpg") is None


@pytest.mark.parametrize("line", [False, True])
def test_gps(tmp_path, line):
    """East and north by the radii of the ellipsoid at the origin: good to millimetres over 100 m."""
    grow = 20.0
    poses = truth(line)
    latitude, longitude, altitude = 47.0, 8.0, 400.0
    a, e2 = 6378137.0, 6.69437999014e-3
    w = np.sqrt(1 - e2 * np.sin(np.radians(latitude)) ** 2)
    north, east = a * (1 - e2) / w**3 + altitude, (a / w + altitude) * np.cos(np.radians(latitude))
    first = poses[0][:3, 3]
    for number, pose in enumerate(poses):
        e, n, u = grow * (pose[:3, 3] - first)
        with_gps(
            tmp_path / f"i{number}.jpg", latitude + np.degrees(n / north),
            longitude + np.degrees(e / east), altitude + u,
        )  # fmt: skip
    images = model(poses)
    world = find_world(ScaleOptions(gps=True), images, tmp_path)
    expected = grow * (np.stack([p[:3, 3] for p in poses]) - first)
    np.testing.assert_allclose(placed(world, images), expected, atol=0.2)
    assert world.unit == "metre"
    origin = world.details["origin"]
    assert origin["latitude"] == pytest.approx(latitude, abs=1e-7)
    assert origin["altitude"] == pytest.approx(altitude, abs=1e-2)


FOUR = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
AROUND = [looking((1.2 * np.sin(a), -1.2 * np.cos(a), 1.5), (0, 0, 0)) for a in (0, 0.5, 1.0, 1.6)]


def photographed(folder, prints):
    """Images of prints that lie on the ground around the origin, drawn by their homographies.

    Args:
        folder: for the images.
        prints: (grey picture, centre of its ground (2,), width and height in metres) of each.
    """
    for number, pose in enumerate(AROUND):
        grey = np.full((480, 640), 128, np.uint8)
        for picture, (x, y), (width, height) in prints:
            h, w = picture.shape
            ground = np.array([[-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]]) / 2
            ground = ground * [width, height, 0] + [x, y, 0]
            seen, _ = project(CAMERA, transform(np.linalg.inv(pose), ground))
            # Edges of pixels, drawn four times as large and averaged.
            ends = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32) - 0.5
            warp = cv2.getPerspectiveTransform(ends, (4 * (seen + 0.5) - 0.5).astype(np.float32))
            large = cv2.warpPerspective(
                picture, warp, (2560, 1920), borderValue=128, borderMode=cv2.BORDER_CONSTANT
            )
            drawn = cv2.resize(large, (640, 480), interpolation=cv2.INTER_AREA)
            grey = np.where(drawn != 128, drawn, grey)
        cv2.imwrite(str(folder / f"i{number}.jpg"), grey, [cv2.IMWRITE_JPEG_QUALITY, 98])
    return model(AROUND)


def marker(number, width):
    """A print of a marker whose side is two thirds of its width with the white margin."""
    code = cv2.aruco.generateImageMarker(FOUR, number, 240)
    return np.pad(code, 60, constant_values=255), (width, width)


def test_markers(tmp_path):
    """A marker of 0.4 m on the ground."""
    picture, size = marker(7, 0.6)
    images = photographed(tmp_path, [(picture, (0, 0), size)])
    world = find_world(ScaleOptions(marker=0.4), images, tmp_path)
    assert world.scale == pytest.approx(1 / SCALE, rel=5e-3)
    np.testing.assert_allclose(placed(world, images), [p[:3, 3] for p in AROUND], atol=0.01)
    assert world.details["markers"] == [7]
    assert world.details["side_deviation"] < 5e-3
    with pytest.raises(DataError, match="no marker 5X5_50 is seen"):
        find_world(ScaleOptions(marker=0.4, dictionary="5X5_50"), images, tmp_path)
    with pytest.raises(DataError, match=r"no marker .* by two .*\(2 sightings of 1 markers\)"):
        find_world(ScaleOptions(marker=0.4), [images[0]] * 2, tmp_path)
    with pytest.raises(ConfigError, match="Did you mean '4X4_50'"):
        find_world(ScaleOptions(marker=0.4, dictionary="4x4_50"), images, tmp_path)


def test_markers_of_a_charuco_board(tmp_path):
    board = cv2.aruco.CharucoBoard((4, 3), 0.25, 0.19, FOUR)
    images = photographed(tmp_path, [(board.generateImage((800, 600)), (0, 0), (1.0, 0.75))])
    world = find_world(ScaleOptions(marker=0.19), images, tmp_path)
    assert world.scale == pytest.approx(1 / SCALE, rel=5e-3)
    assert world.details["markers"] == list(range(6))
    assert re.search(r"6 markers of 0.19 m, whose sides differ by 0\.\d+ %", world.source)


def test_markers_of_two_sizes_are_refused(tmp_path):
    prints = [marker(1, 0.45), marker(2, 0.3)]
    places = [(-0.3, 0), (0.3, 0)]
    images = photographed(tmp_path, [(p, c, s) for (p, s), c in zip(prints, places, strict=True)])
    with pytest.raises(
        DataError, match="differ by 20 % in the median. Are they printed in several"
    ):
        find_world(ScaleOptions(marker=0.3), images, tmp_path)

"""Images in bags: written by `rosbags`, read back by us."""

import cv2
import numpy as np
import pytest

from reloc_core.errors import ConfigError, DataError
from reloc_core.io.bags import ImageBag, is_bag

pytest.importorskip("rosbags")

from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

START = 1_700_000_000
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 255, (4, 20, 30, 3)).astype(np.uint8)


def write(path, messages):
    """A bag of (topic, type, fields) triples; rosbag 1 for the ending .bag."""
    one = path.suffix == ".bag"
    store = get_typestore(Stores.ROS1_NOETIC if one else Stores.ROS2_HUMBLE)
    types = store.types
    writer = (
        Writer1(path)
        if one
        else Writer2(
            path,
            version=9,
            storage_plugin=StoragePlugin.MCAP if "mcap" in path.name else StoragePlugin.SQLITE3,
        )
    )
    with writer:
        known = {}
        for number, (topic, kind, fields) in enumerate(messages):
            name = f"sensor_msgs/msg/{kind}"
            if topic not in known:
                known[topic] = writer.add_connection(topic, name, typestore=store)
            stamp = fields.pop("stamp", START * 10**9 + number * 10**8)
            time = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
            more = {"seq": number} if one else {}
            header = types["std_msgs/msg/Header"](stamp=time, frame_id="lens", **more)
            message = types[name](header=header, **fields)
            data = (store.serialize_ros1 if one else store.serialize_cdr)(message, name)
            writer.write(known[topic], (START + 100) * 10**9 + number, data)
    return path


def raw(image, encoding, padding=0, **more):
    channels = image.reshape(*image.shape[:2], -1)
    rows = np.ascontiguousarray(channels).view(np.uint8).reshape(len(image), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    return {
        "height": image.shape[0], "width": image.shape[1], "encoding": encoding, "is_bigendian": 0,
        "step": rows.shape[1], "data": rows.ravel(), **more,
    }  # fmt: skip


def compressed(image):
    data = cv2.imencode(".png", image[..., ::-1])[1].ravel()
    return {"format": "png", "data": data}


def images(count=4):
    return [("/cam/image_raw", "Image", raw(p, "bgr8")) for p in PICTURES[:count, ..., ::-1]]


@pytest.mark.parametrize("name", ["one.bag", "two", "two_mcap"])
@pytest.mark.parametrize("packed", [False, True])
def test_images_come_back(tmp_path, name, packed):
    messages = (
        [("/cam/image/compressed", "CompressedImage", compressed(p)) for p in PICTURES]
        if packed
        else images()
    )
    path = write(tmp_path / name, messages)
    assert is_bag(path)
    bag = ImageBag(path)
    found = list(bag)
    assert len(bag) == len(found) == 4
    for picture, message, number in zip(PICTURES, found, range(4), strict=True):
        np.testing.assert_array_equal(message.image, picture)
        assert message.timestamp == pytest.approx(START + 0.1 * number, abs=1e-6)
        assert message.frame_id == bag.frame_id == "lens"
    assert bag.notes == []


@pytest.mark.parametrize("file", ["*.mcap", "*.db3"])
def test_single_files_of_rosbag_2(tmp_path, file):
    path = write(tmp_path / ("two_mcap" if "mcap" in file else "two"), images())
    (inside,) = path.glob(file)
    assert len(list(ImageBag(inside))) == 4


def test_the_time_of_recording_stands_in_for_a_header_without_one(tmp_path):
    path = write(tmp_path / "two", [("/image", "Image", raw(PICTURES[0], "rgb8", stamp=0))])
    assert next(iter(ImageBag(path))).timestamp == START + 100


def test_encodings(tmp_path):
    grey = PICTURES[0, ..., 0]
    deep = (grey.astype(np.uint16) << 8) + 77
    four = np.dstack([PICTURES[0], grey])
    given = {
        "rgb8": (PICTURES[0], PICTURES[0]),
        "rgba8": (four, PICTURES[0]),
        "bgra8": (np.dstack([PICTURES[0, ..., ::-1], grey]), PICTURES[0]),
        "mono8": (grey, np.dstack([grey] * 3)),
        "mono16": (deep, np.dstack([grey] * 3)),
    }
    for encoding, (stored, expected) in given.items():
        path = write(
            tmp_path / encoding, [("/image", "Image", raw(stored, encoding, padding=2 * 3))]
        )
        np.testing.assert_array_equal(next(iter(ImageBag(path))).image, expected)


@pytest.mark.parametrize(
    ("pattern", "offsets"),
    [("rggb", "RGGB"), ("bggr", "BGGR"), ("gbrg", "GBRG"), ("grbg", "GRBG")],
)
def test_bayer_patterns(tmp_path, pattern, offsets):
    """A plain colour, sampled by the pattern as its name spells it, comes back inside the border."""
    colour = {"R": 200, "G": 120, "B": 40}
    mosaic = np.zeros((20, 30), np.uint8)
    for k, letter in enumerate(offsets):
        mosaic[k // 2 :: 2, k % 2 :: 2] = colour[letter]
    path = write(tmp_path / "two", [("/image", "Image", raw(mosaic, f"bayer_{pattern}8"))])
    image = next(iter(ImageBag(path))).image
    assert (image[4:-4, 4:-4] == list(colour.values())).all()


def test_yuv(tmp_path):
    mosaic = np.full((20, 30, 2), 128, np.uint8)
    mosaic[..., 1] = 200
    path = write(tmp_path / "two", [("/image", "Image", raw(mosaic, "yuv422"))])
    image = next(iter(ImageBag(path))).image
    assert np.ptp(image) == 0  # grey: no chroma
    assert image[0, 0, 0] == pytest.approx((200 - 16) * 255 / 219, abs=2)


def test_depth_does_not_make_the_choice_hard(tmp_path):
    depth = ("/depth", "Image", raw(np.full((20, 30), 1000, np.uint16), "16UC1"))
    path = write(tmp_path / "two", [depth, *images()])
    bag = ImageBag(path)
    assert bag.topic == "/cam/image_raw"
    assert {t.name: t.count for t in bag.topics} == {"/cam/image_raw": 4, "/depth": 1}
    with pytest.raises(DataError, match="depth images only"):
        ImageBag(write(tmp_path / "depth", [depth]))


def test_several_topics(tmp_path):
    other = [("/right/image_raw", "Image", raw(PICTURES[0], "rgb8"))]
    path = write(tmp_path / "two", [*images(), *other])
    with pytest.raises(ConfigError, match=r"/cam/image_raw \(4\) \| /right/image_raw \(1\)"):
        ImageBag(path)
    assert len(list(ImageBag(path, "/right/image_raw"))) == 1
    with pytest.raises(ConfigError, match="Did you mean '/right/image_raw'"):
        ImageBag(path, "/right/imageraw")


def info(**more):
    return {
        "height": 20, "width": 30, "distortion_model": "plumb_bob", "d": np.array([0.1, -0.2, 0, 0, 0.0]),
        "k": np.array([25.0, 0, 14, 0, 26, 9, 0, 0, 1]), "r": np.eye(3).ravel(), "p": np.zeros(12),
        "binning_x": 0, "binning_y": 0, **more,
    }  # fmt: skip


def test_calibration_of_the_bag(tmp_path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    region = store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    path = write(
        tmp_path / "two", [("/cam/camera_info", "CameraInfo", info(roi=region)), *images()]
    )
    camera = ImageBag(path).camera
    assert (camera.model, camera.width, camera.height) == ("OPENCV", 30, 20)
    assert camera.params == (25, 26, 14, 9, 0.1, -0.2, 0, 0)
    assert ImageBag(write(tmp_path / "plain", images())).camera is None


def test_bags_without_images(tmp_path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    region = store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    path = write(tmp_path / "two", [("/cam/camera_info", "CameraInfo", info(roi=region))])
    with pytest.raises(DataError, match=r"holds no images .*/cam/camera_info"):
        ImageBag(path)


@pytest.mark.parametrize("name", ["one.bag", "two.mcap", "two.db3"])
def test_what_is_no_bag(tmp_path, name):
    with pytest.raises(DataError, match="does not exist"):
        ImageBag(tmp_path / name)
    (tmp_path / name).write_bytes(b"no bag" * 100)
    with pytest.raises(DataError, match=name):
        ImageBag(tmp_path / name)
    with pytest.raises(DataError, match="metadata"):
        ImageBag(tmp_path)


@pytest.mark.parametrize("name", ["one.bag", "two_mcap", "two"])
def test_truncated_bags_are_refused_or_noted(tmp_path, name):
    path = write(tmp_path / name, images())
    file = path if path.is_file() else next(f for f in path.iterdir() if f.suffix != ".yaml")
    content = file.read_bytes()
    for share in (0.2, 0.5, 0.9):
        file.write_bytes(content[: int(share * len(content))])
        try:
            bag = ImageBag(path)
            complete = len(list(bag)) == 4
        except DataError:
            continue
        assert complete or bag.notes


def test_encodings_that_are_not_supported(tmp_path):
    path = write(tmp_path / "odd", [("/image", "Image", raw(PICTURES[0], "lab8"))])
    with pytest.raises(DataError, match="'lab8' are not supported"):
        list(ImageBag(path))
    short = raw(PICTURES[0], "rgb8") | {"height": 4000}
    with pytest.raises(DataError, match="damaged"):
        list(ImageBag(write(tmp_path / "short", [("/image", "Image", short)])))

"""Images of every kind of source, without a reconstruction."""

import contextlib
import re
import shutil
import struct

import cv2
import numpy as np
import pytest

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.stream import VideoStream
from reloc_core.errors import DataError
from reloc_core.io.headers import read_header
from reloc_core.io.images import read_image
from reloc_core.reconstruction.options import ReconstructOptions
from reloc_core.reconstruction.source import prepare


class Silent:
    @contextlib.contextmanager
    def progress(self, title, total):
        yield self

    def advance(self, steps=1, **values):
        pass


def options(images, **more):
    return ReconstructOptions(str(images), "unused", **more)


@pytest.mark.parametrize("name", ["record.bag", "record"])
def test_bag(walk, tmp_path, name):
    pytest.importorskip("rosbags")
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import Writer as Writer2
    from rosbags.typesys import Stores, get_typestore

    one = name.endswith(".bag")
    store = get_typestore(Stores.ROS1_NOETIC if one else Stores.ROS2_HUMBLE)
    kind = "sensor_msgs/msg/CompressedImage"
    path, types = tmp_path / name, store.types
    with Writer1(path) if one else Writer2(path, version=9) as writer:
        topic = writer.add_connection("/lens/compressed", kind, typestore=store)
        for number, image in enumerate(walk.images.values()):
            stamp = types["builtin_interfaces/msg/Time"](sec=100, nanosec=number * 33_000_000)
            more = {"seq": number} if one else {}
            header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="lens", **more)
            data = cv2.imencode(".png", image[..., ::-1])[1].ravel()
            message = types[kind](header=header, format="png", data=data)
            write = store.serialize_ros1 if one else store.serialize_cdr
            writer.write(topic, 10**9 * (200 + number), write(message, kind))
    (tmp_path / "images").mkdir()
    source = prepare(options(path, motion=0.12), tmp_path / "images", [], Silent())
    assert source.video
    assert 4 <= len(source.photos) < len(walk.images)
    images = list(walk.images.values())
    for photo in source.photos:
        number = int(photo.name[-10:-4])
        assert photo.timestamp == pytest.approx(100 + 0.033 * number)
        written = read_image(tmp_path / "images" / photo.name).astype(float)
        assert np.abs(written - images[number]).mean() < 5  # JPEG


def film(path, images):
    path.parent.mkdir(exist_ok=True)
    height, width = images[0].shape[:2]
    kind = cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), kind, 30, (width, height))
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return path


def test_another_video_of_the_same_name_takes_other_names(walk, tmp_path):
    shown, folder = list(walk.images.values()), tmp_path / "images"
    folder.mkdir()
    first = film(tmp_path / "a" / "walk.avi", shown)
    second = film(tmp_path / "b" / "walk.avi", shown[::-1])
    wanted = {"motion": 0.12}
    names = [p.name for p in prepare(options(first, **wanted), folder, [], Silent()).photos]
    before = {name: (folder / name).read_bytes() for name in names}
    # The same video again has nothing new.
    with pytest.raises(DataError, match="no image that is new"):
        prepare(options(first, **wanted), folder, names, Silent())
    others = prepare(options(second, **wanted), folder, names, Silent()).photos
    assert len(others) >= 4
    assert all(re.fullmatch(r"walk-2_[0-9]{6}\.jpg", photo.name) for photo in others)
    assert all(photo.lens.startswith("walk-2 ") for photo in others)
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert {p.name for p in folder.iterdir()} == {*names, *(photo.name for photo in others)}
    assert not (tmp_path / ".frames").exists()


def test_a_video_that_ends_too_early_says_so(walk, tmp_path):
    path = film(tmp_path / "walk.avi", list(walk.images.values()))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 8])
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="its key frames are [12] .*may be truncated"):
        prepare(options(path, motion=0.3), tmp_path / "images", [], Silent())


def test_frames_of_a_phone_held_upright_say_so(walk, tmp_path):
    path = film(tmp_path / "up.mp4", list(walk.images.values()))
    content = bytearray(path.read_bytes())
    # The matrix of the track's header: version and flags, five numbers, and 16 bytes precede it.
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    turn = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *turn)
    path.write_bytes(content)
    (tmp_path / "images").mkdir()
    photos = prepare(options(path, motion=0.12), tmp_path / "images", [], Silent()).photos
    (turned,) = {query.orientation for query in VideoStream(path, CameraConfig(focal=200))}
    assert turned == 6
    for photo in photos:
        header = read_header(tmp_path / "images" / photo.name)
        assert photo.orientation == header.orientation == turned
        assert (photo.width, photo.height) == (header.width, header.height) == (256, 192)


def test_a_folder_of_frames_gives_key_frames(walk, tmp_path):
    (tmp_path / "images").mkdir()
    source = prepare(
        options(walk.folder, video=True, motion=0.12), tmp_path / "images", [], Silent()
    )
    names = [photo.name for photo in source.photos]
    assert 4 <= len(names) < len(walk.names)
    assert set(names) < set(walk.names)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == sorted(names)
    assert "taken for a video" in source.notes[0]


def test_photos_keep_their_names_but_for_blanks(room, tmp_path):
    photos, images = tmp_path / "photos", tmp_path / "images"
    photos.mkdir()
    images.mkdir()
    for number, name in enumerate(room.names[:3]):
        shutil.copy(room.folder / name, photos / f"my photo {number}.png")
    shutil.copy(room.folder / room.names[0], photos / "the same.png")
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "walk.mp4").write_bytes(b"video")
    source = prepare(options(photos), images, [], Silent())
    problems = {photo.name: photo.problem for photo in source.photos}
    assert [n for n, p in problems.items() if not p] == [f"my_photo_{i}.png" for i in range(3)]
    assert problems["the_same.png"] == "duplicate of my_photo_0.png"
    assert "cannot be read" in problems["broken.png"]
    assert len({photo.lens for photo in source.photos if not photo.problem}) == 1
    assert len(list(images.iterdir())) == 3
    assert "walk.mp4 is left out" in source.notes[0]


def test_dark_pictures_of_different_things_are_no_duplicates(room, tmp_path):
    photos, images = tmp_path / "photos", tmp_path / "images"
    photos.mkdir()
    images.mkdir()
    for name in room.names[:3]:
        # A little noise is detail enough to go on.
        dark = cv2.imread(str(room.folder / name)) // 60 + 1
        dark[::9, ::9] += 30
        cv2.imwrite(str(photos / name), dark)
    shutil.copy(photos / room.names[0], photos / "same.png")
    problems = [p.problem for p in prepare(options(photos), images, [], Silent()).photos]
    assert problems == ["", "", "", f"duplicate of {room.names[0]}"]


def test_two_names_that_become_one(room, tmp_path):
    for name in ("a b.png", "a_b.png"):
        shutil.copy(room.folder / room.names[0], tmp_path / name)
    with pytest.raises(DataError, match="would be called a_b.png"):
        prepare(options(tmp_path), tmp_path, [], Silent())

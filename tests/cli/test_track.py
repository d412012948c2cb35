"""`reloc track` on everything that holds frames with times."""

import json

import cv2
import numpy as np
import pytest
from tum import read_tum

from reloc_core.cli import track as verb
from reloc_core.cli.main import main
from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder
from reloc_core.datasets.timed import read_times, time_in_name, timed
from reloc_core.errors import ConfigError, DataError

FRAMES = 6


@pytest.fixture(scope="module")
def pictures(ace_scene):
    files = sorted((ace_scene / "train/rgb").iterdir())[:FRAMES]
    return [cv2.imread(str(file)) for file in files]


@pytest.fixture
def toy_map(toy_plugin, ace_scene, tmp_path):
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    return tmp_path / "map"


def folder(path, pictures, names):
    path.mkdir()
    for name, picture in zip(names, pictures, strict=False):
        cv2.imwrite(str(path / name), picture)
    return path


def track(toy_map, tmp_path, capsys, *arguments):
    capsys.readouterr()
    code = main(["track", f"map_dir={toy_map}", f"output_dir={tmp_path}/out", *arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_a_folder_whose_names_are_times(toy_map, pictures, tmp_path, capsys):
    names = [f"{1700000000 + i * 0.1:.3f}.png" for i in range(FRAMES)]
    images = folder(tmp_path / "frames", pictures, names)
    code, lines, said = track(toy_map, tmp_path, capsys, f"images={images}", "camera.focal=130")
    assert code == 0, said
    assert [line["name"] for line in lines] == names
    assert all(line["status"] == "localized" for line in lines)
    stamps, poses = read_tum(tmp_path / "out/poses_tum.txt")
    np.testing.assert_allclose(stamps, [float(name[:-4]) for name in names])
    np.testing.assert_allclose(poses[0], lines[0]["world_from_cam"], atol=1e-6)


def test_a_video(toy_map, pictures, tmp_path, capsys):
    height, width = pictures[0].shape[:2]
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (width, height))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    code, lines, said = track(toy_map, tmp_path, capsys, f"images={path}", "camera.from_map=true")
    assert code == 0, said
    assert [line["timestamp"] for line in lines] == pytest.approx([i / 10 for i in range(FRAMES)])


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError("The disk is gone.")])
def test_poses_are_kept_however_tracking_ends(
    toy_map, pictures, tmp_path, capsys, monkeypatch, error
):
    names = [f"{i}.000.png" for i in range(FRAMES)]
    images = folder(tmp_path / "frames", pictures, names)
    run_queries = verb.run_queries

    def ended(*arguments):
        for number, outcome in enumerate(run_queries(*arguments)):
            if number == 3:
                raise error
            yield outcome

    monkeypatch.setattr(verb, "run_queries", ended)
    code, lines, _ = track(toy_map, tmp_path, capsys, f"images={images}", "camera.focal=130")
    assert code != 0
    assert [line["name"] for line in lines] == names[:3]
    stamps, _ = read_tum(tmp_path / "out/poses_tum.txt")
    np.testing.assert_allclose(stamps, [0, 1, 2])
    assert len((tmp_path / "out/localizations.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["walk.bag", "walk"])
def test_a_bag_gives_a_bag(toy_map, pictures, tmp_path, capsys, name):
    pytest.importorskip("rosbags")
    from rosbags.highlevel import AnyReader

    path, stamps = write_bag(tmp_path / name, pictures)
    code, lines, said = track(toy_map, tmp_path, capsys, f"images={path}", "camera.focal=130")
    assert code == 0, said
    assert len(lines) == FRAMES
    written = tmp_path / "out" / ("poses.bag" if name.endswith(".bag") else "poses_bag")
    with AnyReader([written]) as reader:
        messages = [
            reader.deserialize(data, c.msgtype)
            for c, _, data in reader.messages()
            if c.topic == "/tf"
        ]
    assert [m.transforms[0].child_frame_id for m in messages] == ["lens"] * FRAMES
    found = [m.transforms[0].header.stamp for m in messages]
    assert [s.sec * 10**9 + s.nanosec for s in found] == stamps  # to the nanosecond


def write_bag(path, pictures):
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import Writer as Writer2
    from rosbags.typesys import Stores, get_typestore

    one, kind = path.suffix == ".bag", "sensor_msgs/msg/CompressedImage"
    store = get_typestore(Stores.ROS1_NOETIC if one else Stores.ROS2_HUMBLE)
    stamps = [1_700_000_000_000_000_001 + i * 33_333_333 for i in range(FRAMES)]
    with Writer1(path) if one else Writer2(path, version=9) as writer:
        topic = writer.add_connection("/camera/image/compressed", kind, typestore=store)
        for number, (stamp, picture) in enumerate(zip(stamps, pictures, strict=True)):
            time = store.types["builtin_interfaces/msg/Time"](
                sec=stamp // 10**9, nanosec=stamp % 10**9
            )
            more = {"seq": number} if one else {}
            header = store.types["std_msgs/msg/Header"](stamp=time, frame_id="lens", **more)
            data = cv2.imencode(".png", picture)[1].ravel()
            message = store.types[kind](header=header, format="png", data=data)
            serialize = store.serialize_ros1 if one else store.serialize_cdr
            writer.write(topic, stamp + 5, serialize(message, kind))
    return path, stamps


def test_mistakes_are_one_line(toy_map, pictures, tmp_path, capsys):
    images = folder(tmp_path / "frames", pictures, [f"img_{i}.png" for i in range(FRAMES)])
    for options, words in (
        ((), "tells no time"),
        (("fps=0",), "fps must be positive"),
        (("fps=30", "times=name"), "either times or fps"),
        (("times=exif",), "no time of capture"),
        (("times=nowhere.txt",), "nowhere.txt"),
        (("fps=30", "bag=x.bag"), "frames of a bag only"),
        (("fps=30", "tracker.intervall=3"), "intervall"),
        (("fps=30", "tracker.interval=0"), "tracker.interval"),
    ):
        code, _, said = track(
            toy_map, tmp_path, capsys, f"images={images}", "camera.focal=130", *options
        )
        assert code == 2
        assert words in said
        assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("1305031102.175304.png", 1305031102.175304),
        ("rgb/1403636579763555584.png", 1403636579.763555584),
        ("cam0-1403636579763555.jpg", 1403636579.763555),
        ("1403636579763.jpg", 1403636579.763),
        ("frame_000123.jpg", None),
        ("kitchen.jpg", None),
    ],
)
def test_times_in_names(name, seconds):
    found = time_in_name(name)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


def test_lists_of_times(tmp_path, pictures):
    images = folder(tmp_path / "frames", pictures, ["b.png", "a.png", "c.png"])
    listed = tmp_path / "times.txt"
    listed.write_text("# name, time\nb.png, 2.5\n1.5 frames/a.png\nc.png\t0.5\n")
    found = timed(ImageFolder(images, CameraConfig(focal=130.0)), str(listed), None)
    assert [(f.name, f.timestamp) for f in found.frames] == [
        ("c.png", 0.5), ("a.png", 1.5), ("b.png", 2.5),
    ]  # fmt: skip
    assert len({f.sequence for f in found.frames}) == 1
    np.testing.assert_array_equal(found[1].image[..., ::-1], pictures[1])
    listed.write_text("b.png 1\na.png 1\nc.png 2\n")
    with pytest.raises(DataError, match="same time"):
        timed(ImageFolder(images, CameraConfig(focal=130.0)), str(listed), None)
    listed.write_text("b.png 1\n")
    with pytest.raises(DataError, match=r"no time of a\.png"):
        timed(ImageFolder(images, CameraConfig(focal=130.0)), str(listed), None)
    listed.write_text("b.png one two\n")
    with pytest.raises(DataError, match="line 1"):
        read_times(listed)
    with pytest.raises(ConfigError, match="tells no time"):
        timed(ImageFolder(images, CameraConfig(focal=130.0)), None, None)

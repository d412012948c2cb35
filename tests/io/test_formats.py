"""Round trips of every format, and readings of hand-written files and of other projects' readers."""

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent))
from formats import (
    PINHOLES,
    assert_same_frames,
    assert_same_projection,
    cameras,
    poses,
    scenes,
    write_header,
)
from tum import read_tum

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.colmap import ColmapDataset
from reloc_core.datasets.config import AceConfig, ColmapConfig, TransformsConfig
from reloc_core.datasets.transforms import TransformsDataset
from reloc_core.errors import DataError, InputError
from reloc_core.geometry import inverse, project
from reloc_core.io.ace import write_ace
from reloc_core.io.colmap import find_models, read_model, read_points, write_model
from reloc_core.io.kapture import read_kapture, write_kapture
from reloc_core.io.nvm import read_nvm
from reloc_core.io.poselists import (
    NamedPose,
    read_pose_list,
    read_query_list,
    write_pose_list,
    write_submission,
)
from reloc_core.io.poses import write_tum
from reloc_core.io.transforms import write_transforms
from reloc_core.types import Camera, Frame

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CAMERA = Camera("PINHOLE", 64, 48, (60.0, 61.0, 30.0, 25.0))


@pytest.fixture
def frame():
    return Frame("a.png", CAMERA, np.eye(4))


# ------------------------------------------------------------------------------------- round trips


@FEW
@given(scenes(folder="part_"), st.booleans())
def test_colmap_round_trip(frames, text):
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, frames, text)
        model = read_model(find_models(Path(folder))[0])
    found = [
        Frame(*row) for row in zip(model.names, model.cameras, model.world_from_cam, strict=True)
    ]
    assert_same_frames(found, sorted(frames, key=lambda f: f.name))


@pytest.mark.parametrize("text", [False, True])
def test_the_largest_of_several_colmap_models_is_read(tmp_path, text):
    """The mapper starts anew where images do not connect; its first model is often a failure."""
    for number, count in enumerate((1, 3, 2)):
        names = [f"{number}{i}.png" for i in range(count)]
        frames = [Frame(name, CAMERA, np.eye(4)) for name in names]
        folder = tmp_path / "sparse" / str(number)
        folder.mkdir(parents=True)
        write_model(folder, frames, text)
        for name in names:
            (tmp_path / "images").mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / "images" / name), np.zeros((48, 64, 3), np.uint8))
    assert [folder.name for folder in find_models(tmp_path)] == ["1", "2", "0"]
    dataset = ColmapDataset(ColmapConfig(str(tmp_path), holdout=0))
    assert [frame.name for frame in dataset.frames] == ["10.png", "11.png", "12.png"]
    assert "sparse/1 has 3 images and is read, none of the others (2)" in dataset.notes[0]
    chosen = ColmapDataset(ColmapConfig(str(tmp_path), model="sparse/0", holdout=0))
    assert [frame.name for frame in chosen.frames] == ["00.png"]


@FEW
@given(scenes(timed=True))
def test_transforms_round_trip(frames):
    representable = [
        f for f in frames if f.camera.model != "FULL_OPENCV" or not any(f.camera.params[9:])
    ]
    if not representable:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for f in representable:
            write_header(root / f.name, f.camera)
        write_transforms(root / "transforms.json", representable)
        found = TransformsDataset(TransformsConfig(folder, split="all")).frames
    expected = sorted(representable, key=lambda f: f.name)
    assert_same_frames(found, expected)
    assert [(f.timestamp, f.sequence) for f in found] == [
        (f.timestamp, f.sequence) for f in expected
    ]


@FEW
@given(st.lists(st.tuples(cameras(PINHOLES), poses()), min_size=1, max_size=4))
def test_ace_round_trip(content):
    frames = [
        Frame(f"seq-02-frame-{i:06d}.color.png", camera, pose, i / 30, "seq-02")
        for i, (camera, pose) in enumerate(content)
    ]
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "train"
        split.mkdir()
        write_ace(split, frames)
        for f in frames:
            write_header(split / "rgb" / f.name, f.camera)
        found = AceDataset(AceConfig(folder)).frames
    assert_same_frames(found, frames)
    assert [(f.timestamp, f.sequence) for f in found] == [(f.timestamp, f.sequence) for f in frames]


@FEW
@given(scenes(timed=True, unposed=True))
def test_kapture_round_trip(frames):
    with tempfile.TemporaryDirectory() as folder:
        unit = write_kapture(folder, frames)
        found = read_kapture(folder, unit).frames
    assert unit == "ns"
    assert_same_frames(found, frames)
    for a, b in zip(found, frames, strict=True):
        assert a.sequence == b.sequence
        assert a.timestamp == pytest.approx(b.timestamp, abs=1e-9)


@FEW
@given(st.lists(poses(), min_size=1, max_size=6))
def test_tum_round_trip(world_from_cam):
    stamps = [1305031102.175304 + 0.033 * i for i in range(len(world_from_cam))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.txt"
        write_tum(path, stamps, np.array(world_from_cam))
        found_stamps, found = read_tum(path)
    np.testing.assert_allclose(found_stamps, stamps, atol=1e-6)
    np.testing.assert_allclose(found, world_from_cam, atol=1e-9)


@FEW
@given(st.lists(poses(), min_size=1, max_size=6), st.one_of(st.none(), st.floats(1, 5000)))
def test_pose_list_round_trip(world_from_cam, focal):
    entries = [NamedPose(f"seq-01/{i}.color.png", p, focal) for i, p in enumerate(world_from_cam)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        write_pose_list(path, entries)
        found = read_pose_list(path)
    for a, b in zip(found, entries, strict=True):
        assert (a.name, a.focal) == (b.name, b.focal)
        np.testing.assert_allclose(a.world_from_cam, b.world_from_cam, atol=1e-9)


# ---------------------------------------------------------------------------------- other readers


@FEW
@given(scenes(folder="part_"), st.booleans())
def test_pycolmap_reads_what_we_write_and_agrees_on_pixels(frames, text):
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, frames, text)
        model = pycolmap.Reconstruction(folder)
    by_name = {image.name: image for image in model.images.values()}
    for f in frames:
        image = by_name[f.name]
        point_cam = np.array([[0.1, -0.2, 2.0]])
        point = (f.world_from_cam[:3, :3] @ point_cam[0]) + f.world_from_cam[:3, 3]
        # COLMAP's pixel is ours plus half a pixel.
        np.testing.assert_allclose(
            image.project_point(point), project(f.camera, point_cam)[0][0] + 0.5, atol=1e-5
        )


def test_we_read_what_pycolmap_synthesizes(tmp_path):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 2, 2, 3
    options.num_points3D = 30
    options.camera_params = [700.0, 320.0, 240.0, 0.01]
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_width, options.camera_height = 640, 480
    truth = pycolmap.synthesize_dataset(options)
    for write in (truth.write_binary, truth.write_text):
        write(str(tmp_path))
        model = read_model(tmp_path)
        assert len(model.names) == truth.num_images()
        for image in truth.images.values():
            i = model.names.index(image.name)
            expected = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
            np.testing.assert_allclose(inverse(model.world_from_cam[i]), expected, atol=1e-9)
            assert model.cameras[i].params == (700.0, 319.5, 239.5, 0.01)
        points, colors = read_points(tmp_path)
        assert points.shape == colors.shape == (30, 3)
        for file in tmp_path.iterdir():
            file.unlink()


def test_evo_reads_trajectories(tmp_path):
    file_interface = pytest.importorskip("evo.tools.file_interface")
    truth = np.tile(np.eye(4), (5, 1, 1))
    truth[:, :3, :3] = Rotation.random(5, random_state=0).as_matrix()
    truth[:, :3, 3] = np.random.default_rng(0).normal(0, 30, (5, 3))
    write_tum(tmp_path / "t.txt", [0.1 * i for i in range(5)], truth)
    trajectory = file_interface.read_tum_trajectory_file(tmp_path / "t.txt")
    np.testing.assert_allclose(trajectory.poses_se3, truth, atol=1e-9)


@FEW
@given(scenes(timed=True, unposed=True))
def test_kapture_reads_what_we_write(frames):
    csv = pytest.importorskip("kapture.io.csv")
    with tempfile.TemporaryDirectory() as folder:
        write_kapture(folder, frames)
        data = csv.kapture_from_dir(folder)
        csv.kapture_to_dir(folder, data)
        again = read_kapture(folder, "ns").frames
    names = {name: (stamp, device) for stamp, device, name in _flatten(data.records_camera)}
    assert set(names) == {f.name for f in frames}
    for f in frames:
        stamp, device = names[f.name]
        if f.world_from_cam is not None:
            pose = data.trajectories[stamp, device]
            expected = inverse(f.world_from_cam)
            np.testing.assert_allclose(np.ravel(pose.t_raw), expected[:3, 3], atol=1e-8)
        sensor = data.sensors[device]
        assert sensor.camera_type.name == f.camera.model
        assert float(sensor.camera_params[2]) == pytest.approx(f.camera.fx)
    assert_same_frames(sorted(again, key=lambda f: f.name), sorted(frames, key=lambda f: f.name))


def _flatten(records):
    return [(s, d, name) for s, devices in records.items() for d, name in devices.items()]


# ------------------------------------------------------------------------------ hand-written files


def test_pose_list_is_world_to_camera(tmp_path):
    # A camera at (1, 2, 3) that looks along the world's +x; z_cam = x_world, x_cam = -y_world.
    rotation = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]])
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    t = -rotation @ [1, 2, 3]
    path = tmp_path / "list.txt"
    path.write_text(f"seq-03/frame-000844.color.png {w} {x} {y} {z} {t[0]} {t[1]} {t[2]} 526.22\n")
    (entry,) = read_pose_list(path)
    assert (entry.name, entry.focal) == ("seq-03/frame-000844.color.png", 526.22)
    np.testing.assert_allclose(entry.world_from_cam[:3, 3], [1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(entry.world_from_cam[:3, 2], [1, 0, 0], atol=1e-12)


def test_nvm_cameras(tmp_path):
    path = tmp_path / "r.nvm"
    path.write_text(
        "NVM_V3 \n\n2\nseq1/frame00001.jpg 1670.5 0.5 0.5 0.5 0.5 10 20 30 -0.01 0 \n"
        "db/a b.jpg\t900 1 0 0 0 1 2 3 0.02 0\n\n1\n0 0 0 255 255 255 0\n"
    )
    first, second = read_nvm(path)
    assert (first.name, first.focal, first.radial) == ("seq1/frame00001.jpg", 1670.5, -0.01)
    np.testing.assert_allclose(first.world_from_cam[:3, 3], [10, 20, 30])
    expected = Rotation.from_quat([0.5, 0.5, 0.5, 0.5]).as_matrix().T
    np.testing.assert_allclose(first.world_from_cam[:3, :3], expected, atol=1e-12)
    assert second.name == "db/a b.jpg"
    path.write_text("NVM_V3\n\n3\nx.jpg 1 1 0 0 0 0 0 0 0 0\n")
    with pytest.raises(DataError, match="after 1 cameras"):
        read_nvm(path)
    path.write_text("ply\n")
    with pytest.raises(DataError, match="no NVM file"):
        read_nvm(path)


def test_kapture_of_the_specification(tmp_path):
    sensors = tmp_path / "sensors"
    sensors.mkdir()
    (sensors / "sensors.txt").write_text(
        "# kapture format: 1.1\n# sensor_device_id, name, sensor_type, [sensor_params]+\n"
        "cam01, Hero7, camera, SIMPLE_RADIAL, 800, 600, 600, 400, 300, -0.035\n"
        "cam02, , camera, SIMPLE_PINHOLE, 800, 600, 500, 400, 300\ngps1, , gnss, EPSG:4326\n"
    )
    # cam02 sits 1 m to the right of the rig's origin: rig to sensor moves points by -1.
    (sensors / "rigs.txt").write_text(
        "# kapture format: 1.1\nrig, cam01, 1,0,0,0, 0,0,0\nrig, cam02, 1,0,0,0, -1,0,0\n"
    )
    (sensors / "records_camera.txt").write_text(
        "0, cam01, a/1.jpg\n0, cam02, b/1.jpg\n33000000, cam01, a/2.jpg\n"
    )
    (sensors / "trajectories.txt").write_text(
        "0, rig, 1, 0, 0, 0, -5, 0, 0\n33000000, cam01, , , , , , , \n"
    )
    one, two, three = read_kapture(tmp_path, "ns").frames
    np.testing.assert_allclose(one.world_from_cam[:3, 3], [5, 0, 0])
    np.testing.assert_allclose(two.world_from_cam[:3, 3], [6, 0, 0])
    assert three.world_from_cam is None
    assert three.timestamp == pytest.approx(0.033)
    assert one.camera == Camera("SIMPLE_RADIAL", 800, 600, (600, 399.5, 299.5, -0.035))
    assert read_kapture(tmp_path).frames[2].timestamp is None


def test_query_list(tmp_path):
    path = tmp_path / "q.txt"
    path.write_text(
        "query/day/nexus4/IMG_1.jpg SIMPLE_RADIAL 1200 1600 1469.2 600.0 800.0 -0.0353019\n"
    )
    assert read_query_list(path) == {
        "query/day/nexus4/IMG_1.jpg": (
            "SIMPLE_RADIAL",
            1200,
            1600,
            (1469.2, 600.0, 800.0, -0.0353019),
        )
    }
    path.write_text("a.jpg PINHOLE 10\n")
    with pytest.raises(DataError, match="line 1"):
        read_query_list(path)


def test_submission_has_bare_names_and_eight_columns(tmp_path):
    path = tmp_path / "s.txt"
    pose = np.eye(4)
    pose[:3, 3] = [1, 2, 3]
    write_submission(path, [NamedPose("query/day/x.jpg", pose, 500.0)])
    words = path.read_text().split()
    assert words[0] == "x.jpg"
    np.testing.assert_allclose([float(v) for v in words[1:]], [1, 0, 0, 0, -1, -2, -3])
    with pytest.raises(InputError, match=r"x\.jpg"):
        write_submission(path, [NamedPose("a/x.jpg", pose), NamedPose("b/x.jpg", pose)])


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no poses"),
        ("a 1 0 0 0 0 0\n", "line 1: expected 8 or 9 columns"),
        ("a 1 0 0 x 0 0 0\n", "no number"),
        ("a 0 0 0 0 0 0 0\n", "no rotation"),
        ("a 1 0 0 0 nan 0 0\n", "not finite"),
        ("a 1 0 0 0 0 0 0\na 1 0 0 0 0 0 0\n", "two lines for a"),
    ],
)
def test_bad_pose_lists(tmp_path, text, match):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match=match):
        read_pose_list(tmp_path / "l.txt")


def test_pose_lists_refuse_what_they_cannot_represent(tmp_path):
    path = tmp_path / "l.txt"
    for entries, match in (
        ([NamedPose("a b", np.eye(4))], "name 'a b'"),
        ([NamedPose("a", np.eye(4)), NamedPose("a", np.eye(4))], "Two images"),
        ([NamedPose("a", np.eye(4), 1.0), NamedPose("b", np.eye(4))], "focal length for every"),
        ([NamedPose("a", np.full((4, 4), np.nan))], "world_from_cam"),
    ):
        with pytest.raises(InputError, match=match):
            write_pose_list(path, entries)
        assert not path.exists()


def test_colmap_refusals(tmp_path, frame):
    with pytest.raises(InputError, match=r"a\.png has no world_from_cam"):
        write_model(tmp_path, [Frame("a.png", CAMERA)])
    with pytest.raises(InputError, match="two images of one name"):
        write_model(tmp_path, [frame, frame])
    with pytest.raises(InputError, match="blanks in the name 'a b"):
        write_model(tmp_path, [Frame("a b.png", CAMERA, np.eye(4))], text=True)
    with pytest.raises(DataError, match="holds no COLMAP model"):
        find_models(tmp_path)
    write_model(tmp_path, [frame])
    whole = (tmp_path / "images.bin").read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path / "images.bin").write_bytes(whole[:end])
        with pytest.raises(DataError, match="truncated|damaged"):
            read_model(tmp_path)
    (tmp_path / "images.bin").unlink()
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 9 a.png\n\n")
    (tmp_path / "cameras.txt").write_text("9 FOV 10 10 1 1 1 1 1\n")
    with pytest.raises(DataError, match="camera model FOV is not supported"):
        read_model(tmp_path)
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 10 10 1 1 1 1\n")
    with pytest.raises(DataError, match="camera 9"):
        read_model(tmp_path)


def test_transforms_refusals(tmp_path, frame):
    full = Camera("FULL_OPENCV", 64, 48, (60, 60, 31, 23, 0, 0, 0, 0, 0, 0.1, 0, 0))
    path = tmp_path / "transforms.json"
    for frames, match in (
        ([Frame("a.png", full, np.eye(4))], "k4, k5, k6"),
        ([Frame("a.png", CAMERA)], "no world_from_cam"),
        ([frame, frame], "one name"),
    ):
        with pytest.raises(InputError, match=match):
            write_transforms(path, frames)
        assert not path.exists()


def test_ace_refusals(tmp_path):
    lens = Camera("SIMPLE_RADIAL", 64, 48, (60, 31.5, 23.5, 0.1))
    pose = np.eye(4)
    for i, (frames, match) in enumerate(
        (
            ([Frame("a.png", lens, pose)], "distortion"),
            ([Frame("a/b.png", CAMERA, pose)], "folders in the name"),
            ([Frame("a.png", CAMERA, pose, timestamp=1.0)], "timestamp"),
            ([Frame("a.png", CAMERA, pose, sequence="s")], "sequence"),
            ([Frame("a.png", CAMERA, pose), Frame("b.png", CAMERA)], "world_from_cam"),
            ([Frame("a.png", CAMERA, pose), Frame("a.jpg", CAMERA, pose)], "collide"),
        )
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        with pytest.raises(InputError, match=match):
            write_ace(folder, frames)


def test_kapture_refusals(tmp_path):
    pose = np.eye(4)
    for frames, match in (
        ([Frame("a,b.png", CAMERA, pose)], "name 'a,b.png'"),
        ([Frame("a.png", CAMERA, pose, 1.0, " s")], "sequence"),
        (
            [Frame("a.png", CAMERA, pose, 1.0), Frame("b.png", CAMERA, pose)],
            "timestamp of only some",
        ),
        ([Frame("a.png", CAMERA, pose, 1.0), Frame("b.png", CAMERA, pose, 1.0)], "one timestamp"),
    ):
        with pytest.raises(InputError, match=match):
            write_kapture(tmp_path, frames)
        assert not (tmp_path / "sensors" / "sensors.txt").exists()
    with pytest.raises(DataError, match="no kapture folder"):
        read_kapture(tmp_path)


def test_calibration_matrix_only_where_needed():
    from reloc_core.io.ace import calibration_text

    assert calibration_text(Camera.pinhole(525.505, 640, 480)) == "525.505\n"
    assert len(calibration_text(CAMERA).split()) == 9
    assert_same_projection(CAMERA, CAMERA)

"""Natural order, pairing by order only where it is certain, sequences, splits without overlap."""

import json

import cv2
import numpy as np
import pytest

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.colmap import ColmapDataset
from reloc_core.datasets.config import (
    AceConfig,
    CameraConfig,
    ColmapConfig,
    KaptureConfig,
    TransformsConfig,
)
from reloc_core.datasets.images import ImageFolder
from reloc_core.datasets.kapture import KaptureDataset
from reloc_core.datasets.transforms import TransformsDataset
from reloc_core.errors import ConfigError, DataError
from reloc_core.io.colmap import write_model
from reloc_core.io.files import natural_key
from reloc_core.io.kapture import write_kapture
from reloc_core.io.poses import write_pose
from reloc_core.io.transforms import write_transforms
from reloc_core.types import Camera, Frame

PIL = pytest.importorskip("PIL.Image")
CAMERA = Camera("PINHOLE", 32, 24, (30.0, 30.0, 15.5, 11.5))
COUNT = 12


def pose(i):
    found = np.eye(4)
    found[0, 3] = i
    return found


def write_images(folder, names, size=(32, 24), taken=None):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        exif = PIL.Exif()
        if taken is not None:
            exif[0x8769] = {0x9003: taken[i], 0xA405: 36}
        PIL.new("RGB", size, (i, i, i)).save(folder / name, exif=exif)


def frames_of(names):
    return [Frame(name, CAMERA, pose(i)) for i, name in enumerate(names)]


def test_natural_key():
    names = ["b", "a10", "a2", "a02", "a", "a1b10", "a1b9", "é3", "٣", "1" * 5000, "2"]
    assert sorted(names, key=natural_key) == [
        "2", "1" * 5000, "a", "a1b9", "a1b10", "a02", "a2", "a10", "b", "é3", "٣",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "file", "paired"),
    [
        ("img_{:03d}.png", "pose_{:03d}.txt", True),
        ("{}.png", "{}.txt", True),  # the same names
        ("img{}.png", "p{}.txt", False),
        ("img_{}.png", "pose_{:06d}.txt", False),
        ("{:06d}.png", "pose{}.txt", False),
    ],
)
def test_poses_belong_to_their_images(tmp_path, image, file, paired):
    split = tmp_path / "train"
    (split / "poses").mkdir(parents=True)
    write_images(split / "rgb", [image.format(i) for i in range(1, COUNT + 1)])
    for i in range(1, COUNT + 1):
        write_pose(split / "poses" / file.format(i), pose(i))
    (split / "calibration.txt").write_text("30")
    config = AceConfig(root=str(tmp_path))
    if not paired:
        with pytest.raises(DataError, match="the order of .* is unclear: as text, .*10"):
            AceDataset(config)
        return
    found = {f.name: f.world_from_cam[0, 3] for f in AceDataset(config).frames}
    assert found == {image.format(i): i for i in range(1, COUNT + 1)}
    assert list(found) == [image.format(i) for i in range(1, COUNT + 1)]


def test_numbers_that_contradict_the_order(tmp_path):
    split = tmp_path / "train"
    (split / "poses").mkdir(parents=True)
    write_images(split / "rgb", ["a_3.png", "b_2.png", "c_1.png"])
    for i in (1, 2, 3):
        write_pose(split / "poses" / f"pose_{i}.txt", pose(i))
    (split / "calibration.txt").write_text("30")
    with pytest.raises(DataError, match=r"a_3\.png the file pose_1\.txt, which has another number"):
        AceDataset(AceConfig(root=str(tmp_path)))


def test_every_reader_has_natural_order(tmp_path):
    names = [f"f{i}.png" for i in range(1, COUNT + 1)]
    write_images(tmp_path / "images", names)
    write_model(tmp_path, frames_of(names))
    write_transforms(tmp_path / "transforms.json", frames_of(names), [f"images/{n}" for n in names])
    everything = "all"
    found = [
        ColmapDataset(ColmapConfig(root=str(tmp_path), split=everything)),
        TransformsDataset(TransformsConfig(root=str(tmp_path), split=everything)),
        ImageFolder(tmp_path / "images", CameraConfig(focal=30)),
        ImageFolder(f"{tmp_path}/images/*.png", CameraConfig(focal=30)),
    ]
    for dataset in found:
        assert [f.name.removeprefix("images/") for f in dataset.frames] == names


def test_lists_of_transforms_json_are_the_splits(tmp_path):
    names = [f"{i}.png" for i in range(8)]
    write_images(tmp_path, names)
    write_transforms(tmp_path / "transforms.json", frames_of(names))
    content = json.loads((tmp_path / "transforms.json").read_text())
    content.update(
        train_filenames=["./0.png", "1.png"],
        val_filenames=["2.png"],
        test_filenames=["3.png", "gone.png"],
    )

    def split(name, **change):
        (tmp_path / "transforms.json").write_text(json.dumps({**content, **change}))
        dataset = TransformsDataset(TransformsConfig(root=str(tmp_path), split=name))
        return [f.name for f in dataset.frames], " ".join(dataset.notes)

    assert split("train")[0] == ["0.png", "1.png"]
    assert split("val")[0] == ["2.png"]
    found, notes = split("test")
    assert found == ["3.png"]
    assert "1 names of test_filenames have no frame" in notes
    assert split("test", test_filenames=[])[0] == ["2.png"]
    assert len(split("all")[0]) == 8
    with pytest.raises(DataError, match="train_filenames"):
        split("train", train_filenames=[])
    content["frames"][0]["mask_path"] = "m.png"
    assert "1 images have a mask (mask_path), which is not used" in split("train")[1]


def test_an_image_twice_is_refused(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    write_transforms(tmp_path / "transforms.json", frames_of(["a.png", "b.png"]))
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"].append({**content["frames"][0], "file_path": "./a.png"})
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    for split in ("train", "test", "all"):
        with pytest.raises(DataError, match=r"two frames for the image .*a\.png"):
            TransformsDataset(TransformsConfig(root=str(tmp_path), split=split))


@pytest.mark.parametrize("fisheye", [1, True])
def test_is_fisheye(tmp_path, fisheye):
    write_images(tmp_path, ["a.png"])
    write_transforms(tmp_path / "transforms.json", frames_of(["a.png"]))
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][0].update(is_fisheye=fisheye, camera_model="", k1=0.1, k2=0, k3=0, k4=0)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    config = TransformsConfig(root=str(tmp_path), split="all")
    camera = TransformsDataset(config).frames[0].camera
    assert camera.model == "OPENCV_FISHEYE"
    assert camera.distortion[0] == 0.1
    content["frames"][0].update(is_fisheye="no")
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is_fisheye"):
        TransformsDataset(config)


def test_colmap_text_of_other_programs(tmp_path):
    names = ["a b.png", "c.png"]
    write_images(tmp_path / "images", names)
    lines = [f"{i + 1}  1 0 0 0\t{-i} 0 0 1 {name}\n\n" for i, name in enumerate(names)]
    (tmp_path / "images.txt").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    (tmp_path / "cameras.txt").write_bytes(
        b"\xef\xbb\xbf1 PINHOLE 32 24 30 30 16 12\n7 THIN_PRISM_FISHEYE 9 9 1 1 1 1 0 0 0 0 0 0 0 0\n"
    )
    dataset = ColmapDataset(ColmapConfig(root=str(tmp_path), split="all"))
    assert {f.name: f.world_from_cam[0, 3] for f in dataset.frames} == {"a b.png": 0, "c.png": 1}
    assert dataset.frames[0].camera.params == (30, 30, 15.5, 11.5)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_colmap_images_of_another_size(tmp_path, factor):
    names = ["a.png", "b.png"]
    write_images(tmp_path / "images", names, (int(32 * factor), int(24 * factor)))
    write_model(tmp_path, frames_of(names))
    config = ColmapConfig(root=str(tmp_path), split="all")
    dataset = ColmapDataset(config)
    camera = dataset.frames[0].camera
    assert camera.fx == pytest.approx(30 * factor)
    assert camera.cx == pytest.approx(16 * factor - 0.5)
    assert "2 images are of another size than their cameras: scaled intrinsics" in dataset.notes
    assert dataset[1].image.shape[1] == 32 * factor
    write_images(tmp_path / "images", names, (24, 32))
    with pytest.raises(DataError, match="24x32, the camera is for 32x24"):
        ColmapDataset(config)


def kapture(root, names):
    write_images(root / "sensors" / "records_data", names)
    write_kapture(root, frames_of(names))


def test_kapture_does_not_measure_on_what_it_mapped(tmp_path):
    names = [f"{i}.png" for i in range(16)]
    kapture(tmp_path / "place", names)
    splits = {
        split: {
            f.name
            for f in KaptureDataset(KaptureConfig(root=str(tmp_path / "place"), split=split)).frames
        }
        for split in ("train", "test", "all")
    }
    assert splits["test"] == {"0.png", "8.png"}
    assert not splits["train"] & splits["test"]
    assert splits["train"] | splits["test"] == splits["all"] == set(names)
    kapture(tmp_path / "parted/mapping", names)
    kapture(tmp_path / "parted/query", [f"q{i}.png" for i in range(3)])
    parted = KaptureDataset(KaptureConfig(root=str(tmp_path / "parted"), split="all"))
    assert [f.name for f in parted.frames] == [*names, "q0.png", "q1.png", "q2.png"]
    assert parted[17].image.shape == parted[0].image.shape
    kapture(tmp_path / "mapping", names)
    assert len(KaptureDataset(KaptureConfig(root=str(tmp_path / "mapping"))).frames) == 16
    with pytest.raises(DataError, match="another split"):
        KaptureDataset(KaptureConfig(root=str(tmp_path / "mapping"), split="test"))


@pytest.mark.parametrize(
    ("file", "columns", "message"),
    [
        ("records_camera.txt", (1, 0, 2), "order|no camera"),
        ("trajectories.txt", (1, 0, *range(2, 9)), "order|no device"),
        ("trajectories.txt", (0, 1, 6, 7, 8, 2, 3, 4, 5), "unit quaternion"),
    ],
)
def test_kapture_with_swapped_columns(tmp_path, file, columns, message):
    kapture(tmp_path, [f"{i}.png" for i in range(4)])
    path = tmp_path / "sensors" / file
    head, body = [], []
    for line in path.read_text().splitlines():
        words = line.split(", ")
        (head if line.startswith("#") else body).append(
            line if line.startswith("#") else ", ".join(words[i] for i in columns)
        )
    path.write_text("\n".join([*head, *body]))
    with pytest.raises(DataError, match=message):
        KaptureDataset(KaptureConfig(root=str(tmp_path), split="all"))


def test_poses_that_belong_to_no_image(tmp_path):
    kapture(tmp_path, ["a.png", "b.png"])
    path = tmp_path / "sensors" / "trajectories.txt"
    path.write_text(path.read_text().replace("0, cam", "70, cam").replace("1, cam", "71, cam"))
    with pytest.raises(DataError, match="None of the 2 poses"):
        KaptureDataset(KaptureConfig(root=str(tmp_path), split="all"))


def test_sequences(tmp_path):
    names = ["x/2.png", "x/10.png", "y/1.png", "y/3.png"]
    taken = [
        "2020:01:01 10:00:30",
        "2020:01:01 10:00:00",
        "2020:01:01 10:00:40",
        "2020:01:01 12:00:00",
    ]
    jpegs = [n.replace("png", "jpg") for n in names]
    write_images(tmp_path / "images", jpegs, taken=taken)
    write_model(tmp_path, frames_of(jpegs))

    def found(kind):
        dataset = ColmapDataset(ColmapConfig(root=str(tmp_path), split="all", sequence=kind))
        for index, frame in enumerate(dataset.frames):
            assert dataset.image_paths[index].as_posix().endswith(frame.name)
        return [(f.name[:-4], f.sequence, f.timestamp) for f in dataset.frames]

    plain = [n[:-4] for n in names]
    assert [s for _, s, _ in found("")] == [None] * 4
    assert found("order") == [(n, tmp_path.name, None) for n in plain]
    assert found("name") == [(n, n[:2], None) for n in plain]
    by_time = found("exif")
    assert [n for n, _, _ in by_time] == ["x/10", "x/2", "y/1", "y/3"]
    assert [s[-2:] for _, s, _ in by_time] == ["-0", "-0", "-0", "-1"]
    assert np.diff([t for _, _, t in by_time]) == pytest.approx([30, 10, 7160])
    with pytest.raises(ConfigError, match=r"dataset\.sequence must be"):
        found("time")
    write_images(tmp_path / "images", jpegs)
    with pytest.raises(DataError, match="no time of capture"):
        found("exif")


def test_orientation_is_read_by_every_dataset(tmp_path):
    names = ["a.jpg"]
    exif = PIL.Exif()
    exif[0x0112] = 6
    for folder in ("images", "sensors/records_data"):
        (tmp_path / folder).mkdir(parents=True)
        PIL.new("RGB", (32, 24)).save(tmp_path / folder / "a.jpg", exif=exif)
    write_model(tmp_path, frames_of(names))
    write_transforms(tmp_path / "transforms.json", frames_of(names), ["images/a.jpg"])
    write_kapture(tmp_path, frames_of(names))
    for dataset in (
        ColmapDataset(ColmapConfig(root=str(tmp_path), split="all")),
        TransformsDataset(TransformsConfig(root=str(tmp_path), split="all")),
        KaptureDataset(KaptureConfig(root=str(tmp_path), split="all")),
        ImageFolder(tmp_path / "images", CameraConfig(focal=30)),
    ):
        assert dataset.frames[0].orientation == dataset[0].orientation == 6
        assert dataset[0].image.shape == (24, 32, 3)
        assert cv2.countNonZero(dataset[0].image[..., 0]) == 0

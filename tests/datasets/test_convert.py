"""Conversion between layouts: pixels, splits, refusals, and nothing half-made."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from formats import assert_same_frames
from tum import read_tum

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.base import FileDataset
from reloc_core.datasets.colmap import ColmapDataset
from reloc_core.datasets.config import (
    AceConfig,
    ColmapConfig,
    KaptureConfig,
    SyntheticConfig,
    TransformsConfig,
)
from reloc_core.datasets.convert import convert
from reloc_core.datasets.kapture import KaptureDataset
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.datasets.transforms import TransformsDataset
from reloc_core.datasets.undistort import Undistorter, pinhole_of
from reloc_core.errors import ConfigError, DataError, InputError, RelocError
from reloc_core.geometry import project
from reloc_core.io.poselists import read_pose_list
from reloc_core.types import Camera, Frame


@pytest.fixture
def both(tmp_path, ace_folder):
    """A scene with two splits of numbered video frames with depth."""
    ace_folder(tmp_path / "scene" / "train", count=6)
    ace_folder(tmp_path / "scene" / "test", count=3, stem="seq-02-frame-{:06d}")
    root = str(tmp_path / "scene")
    return {split: AceDataset(AceConfig(root, split)) for split in ("train", "test")}


READERS = {
    "ace": lambda root, split: AceDataset(AceConfig(root, split)),
    "transforms": lambda root, split: TransformsDataset(
        TransformsConfig(root, split, unit="metre")
    ),
    "colmap": lambda root, split: ColmapDataset(ColmapConfig(root, split)),
    "kapture": lambda root, split: KaptureDataset(KaptureConfig(root, split, time_unit="ns")),
}


@pytest.mark.parametrize("images", ["copy", "hardlink", "symlink"])
@pytest.mark.parametrize("to", sorted(READERS))
def test_splits_pixels_and_metadata_survive(both, tmp_path, to, images):
    out = tmp_path / "out"
    seen = []
    drop = {"colmap": ("timestamp", "sequence", "depth"), "kapture": ("depth",)}.get(to, ())
    convert(both, to, out, drop=drop, images=images, advance=lambda: seen.append(1))
    assert len(seen) == 9
    for split, source in both.items():
        found = READERS[to](str(out), split)
        assert_same_frames(found.frames, source.frames)
        for i in range(len(source)):
            np.testing.assert_array_equal(found[i].image, source[i].image)
            if not drop:
                np.testing.assert_array_equal(found[i].depth, source[i].depth)
        if to != "colmap":
            assert [f.sequence for f in found.frames] == [f.sequence for f in source.frames]
            stamps = [f.timestamp for f in found.frames]
            assert stamps == pytest.approx([f.timestamp for f in source.frames], abs=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "scene"]


def test_rendered_images_and_depth_become_files(tmp_path):
    config = SyntheticConfig(width=64, height=48, train_frames=3, test_frames=2)
    source = SyntheticDataset(config)
    convert({"train": source}, "ace", tmp_path / "out", ("timestamp", "sequence"), True)
    found = AceDataset(AceConfig(str(tmp_path / "out")))
    for i in range(3):
        np.testing.assert_array_equal(found[i].image, source[i].image)
        np.testing.assert_allclose(found[i].depth, source[i].depth, atol=0.0006)


def test_poses_only_layouts(both, tmp_path):
    convert({"train": both["train"]}, "tum", tmp_path / "tum")
    stamps, poses = read_tum(tmp_path / "tum" / "train.txt")
    np.testing.assert_allclose(stamps, np.arange(6) / 30, atol=1e-9)
    expected = [f.world_from_cam for f in both["train"].frames]
    np.testing.assert_allclose(poses, expected, atol=1e-9)
    convert({"test": both["test"]}, "poses", tmp_path / "poses")
    entries = read_pose_list(tmp_path / "poses" / "test.txt")
    assert [e.focal for e in entries] == [525.5] * 3
    convert({"test": both["test"]}, "kfnet", tmp_path / "kfnet")
    listed = (tmp_path / "kfnet" / "test" / "image_list.txt").read_text().splitlines()
    assert all(Path(line).is_file() for line in listed)
    assert len(listed) == 3


def make_dataset(tmp_path, names, camera=None, unit="metre", **fields):
    camera = camera or Camera.pinhole(40.0, 32, 24)
    files = []
    for i, name in enumerate(names):
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((camera.height, camera.width, 3), 20 * i, np.uint8))
        files.append(file)
    frames = [Frame(name, camera, np.eye(4), **fields) for name in names]
    return FileDataset("made", frames, files, unit=unit)


def test_refusals_name_the_field_and_leave_nothing(both, tmp_path):
    lens = Camera("OPENCV", 32, 24, (40, 40, 15.5, 11.5, 0.1, 0, 0, 0))
    cases = [
        (both["train"], "colmap", "the depth of"),
        (both["train"], "kapture", "the depth of"),
        (make_dataset(tmp_path, ["a/b.png"]), "ace", "folders in the name"),
        (make_dataset(tmp_path, ["a.png"], unit="scene unit"), "ace", "the unit of"),
        (make_dataset(tmp_path, ["a.png"], lens), "ace", "distortion"),
        (make_dataset(tmp_path, ["a.png"], lens), "poses", r"camera OPENCV"),
        (make_dataset(tmp_path, ["a.png"], timestamp=1.0), "colmap", "the timestamp of"),
        (make_dataset(tmp_path, ["a.png", "b.png"], timestamp=1.0), "tum", "do not increase"),
        (make_dataset(tmp_path, ["a.png"]), "tum", "has no timestamp"),
    ]
    before = sorted(p.name for p in tmp_path.iterdir())
    for dataset, to, match in cases:
        with pytest.raises(InputError, match=match):
            convert({"train": dataset}, to, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_flattened_names_and_collisions(tmp_path):
    dataset = make_dataset(tmp_path, ["a/1.png", "b/1.png"])
    convert({"train": dataset}, "ace", tmp_path / "out", flatten=True)
    found = AceDataset(AceConfig(str(tmp_path / "out")))
    assert [f.name for f in found.frames] == ["a-1.png", "b-1.png"]
    twice = make_dataset(tmp_path, ["a/1.png", "a-1.png"])
    with pytest.raises(InputError, match="same name"):
        convert({"train": twice}, "ace", tmp_path / "other", flatten=True)
    outside = make_dataset(tmp_path, ["../x.png"])
    with pytest.raises(InputError, match="leaves the dataset"):
        convert({"train": outside}, "colmap", tmp_path / "other")


def test_bad_options_and_existing_output(both, tmp_path):
    for options, match in (
        ({"to": "acee"}, "Did you mean 'ace'"),
        ({"to": "ace", "drop": ["depht"]}, "Did you mean 'depth'"),
        ({"to": "ace", "images": "move"}, "images must be"),
    ):
        with pytest.raises(ConfigError, match=match):
            convert(both, output=tmp_path / "out", **options)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists"):
        convert(both, "ace", tmp_path / "out")


def test_a_missing_image_or_a_full_disk_leaves_no_dataset(both, tmp_path, monkeypatch):
    both["train"].image_paths[3].unlink()
    with pytest.raises(DataError, match="does not exist"):
        convert(both, "ace", tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(RelocError, match="disk is full"):
        convert({"test": both["test"]}, "ace", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene"]


# ------------------------------------------------------------------------- undistortion and splits


@pytest.mark.parametrize(
    "camera",
    [
        Camera("OPENCV", 120, 90, (100, 102, 58, 46, -0.2, 0.05, 0.002, -0.001)),
        Camera("OPENCV_FISHEYE", 120, 90, (90, 91, 60, 44, 0.02, -0.01, 0.001, 0)),
        Camera("SIMPLE_RADIAL", 120, 90, (100, 59.5, 44.5, 0.1)),
    ],
)
def test_undistorted_pixels_show_the_same_rays(camera):
    # An image whose colour is a smooth function of the viewing direction.
    y, x = np.mgrid[0 : camera.height, 0 : camera.width].astype(float)
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    if camera.model == "OPENCV_FISHEYE":
        flat = cv2.fisheye.undistortPoints(
            np.stack([x, y], -1).reshape(-1, 1, 2), matrix, np.array(camera.distortion)
        )
    else:
        flat = cv2.undistortPoints(
            np.stack([x, y], -1).reshape(-1, 1, 2),
            matrix,
            np.array([*camera.distortion, 0, 0, 0, 0][:4]),
        )
    rays = flat.reshape(camera.height, camera.width, 2)

    def colour(directions):
        return 127 + 100 * np.sin(2 * directions[..., :1] + directions[..., 1:]) * np.ones(3)

    image, depth = Undistorter()(
        camera, np.rint(colour(rays)).astype(np.uint8), rays[..., 0].astype(np.float32)
    )
    pinhole = pinhole_of(camera)
    expected = colour(np.stack([(x - pinhole.cx) / pinhole.fx, (y - pinhole.cy) / pinhole.fy], -1))
    inner = (slice(20, -20), slice(20, -20))
    assert np.abs(image.astype(float) - expected)[inner].max() < 2.5
    assert np.abs(depth - (x - pinhole.cx) / pinhole.fx)[inner].max() < 1.0 / pinhole.fx


def test_undistort_on_read_keeps_pinholes_and_gives_pinhole_cameras(tmp_path):
    lens = Camera("OPENCV", 32, 24, (40, 40, 15.5, 11.5, 0.1, 0, 0, 0))
    source = make_dataset(tmp_path, ["a.png"], lens)
    convert({"all": source}, "colmap", tmp_path / "out")
    read = ColmapDataset(ColmapConfig(str(tmp_path / "out"), "all", undistort=True))
    assert read.undistorts
    assert read.frames[0].camera.is_pinhole
    assert read[0].image.shape == (24, 32, 3)
    # The centre of the image does not move.
    point = np.array([0.0, 0.0, 1.0])
    np.testing.assert_allclose(project(read.frames[0].camera, point)[0], [15.5, 11.5])
    convert({"train": read}, "ace", tmp_path / "ace", drop=["unit"])
    assert AceDataset(AceConfig(str(tmp_path / "ace"))).frames[0].name == "a.png"


def test_colmap_splits(tmp_path):
    names = [f"{i:02d}.png" for i in range(10)]
    convert({"all": make_dataset(tmp_path, names)}, "colmap", tmp_path / "out")
    root = str(tmp_path / "out")

    def listed(split, **options):
        return [f.name for f in ColmapDataset(ColmapConfig(root, split, **options)).frames]

    assert listed("test", holdout=4) == ["00.png", "04.png", "08.png"]
    assert listed("train", holdout=4) == [n for i, n in enumerate(names) if i % 4]
    assert listed("train", holdout=0) == listed("test", holdout=0) == names
    (tmp_path / "out" / "mine.txt").write_text("03.png\n05.png\nstranger.png\n")
    assert listed("test", test_list="mine.txt") == ["03.png", "05.png"]
    assert len(listed("train", test_list="mine.txt")) == 8
    (tmp_path / "out" / "mine.txt").write_text("stranger.png\n")
    with pytest.raises(DataError, match="names no image"):
        listed("test", test_list="mine.txt")
    (tmp_path / "out" / "images" / "05.png").unlink()
    with pytest.raises(DataError, match=r"1 of 10 images .* 05\.png|05\.png"):
        listed("all")
    with pytest.raises(ConfigError, match="split"):
        listed("val")

import time
import tracemalloc

import numpy as np
import pytest

from reloc_core.datasets.ace import AceDataset, stem
from reloc_core.datasets.config import AceConfig
from reloc_core.errors import ConfigError, DataError


def load(ace, **options):
    return AceDataset(AceConfig(root=str(ace.path.parent), **options))


def test_reads_what_was_written(ace):
    dataset = load(ace)
    assert dataset.name == "scene/train"
    assert len(dataset) == 6
    assert dataset.has_depth
    assert dataset.notes == ()
    for i, query in enumerate(dataset):
        assert query.name == f"seq-01-frame-{i:06d}.color.png"
        np.testing.assert_allclose(query.world_from_cam, ace.poses[i], atol=1e-9)
        assert (query.image == 10 * i).all()
        np.testing.assert_allclose(query.depth, 1 + i / 1000, rtol=1e-6)
        assert query.sequence == "seq-01"
        assert query.timestamp == pytest.approx(i / 30)
        assert query.camera.params == (525.5, 15.5, 11.5)  # centre of 32x24 in centre convention


def test_a_matrix_calibration_loses_half_a_pixel(ace):
    for path in (ace.path / "calibration").iterdir():
        path.write_text("500 0 16.5\n0 510 12.25\n0 0 1\n")
    camera = load(ace).frames[0].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (500, 510, 16.0, 11.75)


@pytest.mark.parametrize("place", ["calibration/all.txt", "calibration.txt", "../calibration.txt"])
def test_one_calibration_for_all(ace, place):
    for path in (ace.path / "calibration").iterdir():
        path.unlink()
    if not place.startswith("calibration/"):
        (ace.path / "calibration").rmdir()
    (ace.path / place).write_text("300")
    assert {f.camera.fx for f in load(ace).frames} == {300}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seq-01-frame-000123.color.jpg", "seq-01-frame-000123"),
        ("seq-01-frame-000123.pose.txt", "seq-01-frame-000123"),
        ("img.0001.png", "img.0001"),
        ("a.txt", "a"),
    ],
)
def test_stem(name, expected):
    assert stem(name) == expected


def test_pairing_by_name_beats_sorted_order(ace):
    """Files that sort differently in the two folders must still be paired by name."""
    for folder, role in (("rgb", "color.png"), ("poses", "pose.txt")):
        path = ace.path / folder
        (path / f"{ace.stems[0]}.{role}").rename(
            path / f"zz.{role}" if folder == "rgb" else path / "zz.txt"
        )
    for folder in ("calibration", "depth"):
        first = ace.file(folder, 0)
        first.rename(first.with_name("zz" + "".join(first.suffixes)))
    dataset = load(ace)
    np.testing.assert_allclose(dataset.frames[-1].world_from_cam, ace.poses[0], atol=1e-9)
    assert (dataset[5].image == 0).all()


def test_pairing_by_sorted_order_when_names_differ(ace):
    for i in range(6):
        ace.file("poses", i).rename(ace.path / "poses" / f"{i:03d}.txt")
    dataset = load(ace)
    np.testing.assert_allclose(dataset.frames[3].world_from_cam, ace.poses[3], atol=1e-9)
    assert any("sorted order" in note for note in dataset.notes)


def test_names_that_agree_only_in_part_are_refused(ace):
    ace.file("poses", 2).rename(ace.path / "poses" / "other.txt")
    with pytest.raises(DataError, match=r"seq-01-frame-000002.* has no partner"):
        load(ace)


@pytest.mark.parametrize("folder", ["rgb", "poses", "calibration", "depth"])
def test_a_missing_file_is_named(ace, folder):
    ace.file(folder, 3).unlink()
    with pytest.raises(DataError, match=r"holds (5|6) .*holds (5|6) .*000003"):
        load(ace)


def test_stray_files_are_ignored(ace):
    for name in ("Thumbs.db", ".DS_Store", "._seq-01-frame-000000.color.png"):
        for folder in ("rgb", "poses", "calibration", "depth"):
            (ace.path / folder / name).touch()
    assert load(ace).notes == ()
    (ace.path / "rgb" / "notes.md").touch()
    dataset = load(ace)
    assert len(dataset) == 6
    assert "notes.md" in dataset.notes[0]


@pytest.mark.parametrize("word", ["INF", "nan", "-1.#IND"])
def test_lost_poses_are_skipped_with_a_count(ace, word):
    for i in (1, 4):
        ace.file("poses", i).write_text(f"{word} " * 16)
    dataset = load(ace)
    assert [f.name[-14:-10] for f in dataset.frames] == ["0000", "0002", "0003", "0005"]
    assert any("skipped 2 of 6" in note for note in dataset.notes)
    np.testing.assert_allclose(dataset[1].world_from_cam, ace.poses[2], atol=1e-9)
    assert (dataset[1].image == 20).all()
    np.testing.assert_allclose(dataset[1].depth, 1.002, rtol=1e-6)


def test_only_lost_poses_is_an_error(ace):
    for i in range(6):
        ace.file("poses", i).write_text("nan " * 16)
    with pytest.raises(DataError, match="None of the 6 poses is finite"):
        load(ace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m * [[2], [2], [2], [1]], "no rotation"),
        (lambda m: m @ np.diag([1, 1, -1, 1]), "reflection"),
        (lambda m: m.T + 0 * m, "last row"),
        (lambda m: m * 0, "no rotation"),
    ],
)
def test_a_matrix_that_is_no_pose_is_named(ace, change, message):
    np.savetxt(ace.file("poses", 2), change(ace.poses[2]))
    with pytest.raises(DataError, match=rf"000002\.pose\.txt.*{message}"):
        load(ace)


def test_rounded_rotations_are_made_exact(ace):
    for i, pose in enumerate(ace.poses):
        np.savetxt(ace.file("poses", i), pose, fmt="%.3f")
    for frame, pose in zip(load(ace).frames, ace.poses, strict=True):
        rotation = frame.world_from_cam[:3, :3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(rotation, pose[:3, :3], atol=2e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "positive"),
        ("-525", "positive"),
        ("nan", "finite"),
        ("525 320", "2 numbers"),
        ("five", "'five'"),
        ("1 2 3 4 5 6 7 8 9", "matrix"),
    ],
)
def test_bad_calibration(ace, text, message):
    ace.file("calibration", 1).write_text(text)
    with pytest.raises(DataError, match=rf"000001\.calibration\.txt.*{message}"):
        load(ace)


def test_missing_folders(ace, tmp_path):
    with pytest.raises(DataError, match="gone does not exist"):
        AceDataset(AceConfig(root=str(tmp_path / "gone")))
    with pytest.raises(
        DataError, match=r"no split 'test'; it has train/ only.*dataset\.split=train"
    ):
        load(ace, split="test")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "images").mkdir()
    with pytest.raises(DataError, match="It holds images"):
        AceDataset(AceConfig(root=str(tmp_path / "other")))
    for path in (ace.path / "rgb").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds no images"):
        load(ace)


def test_a_folder_may_be_one_split_itself(ace):
    dataset = AceDataset(AceConfig(root=str(ace.path), split="test"))
    assert (dataset.name, len(dataset)) == ("train", 6)
    assert any("dataset.split=test is ignored" in note for note in dataset.notes)


def test_unposed_queries(ace):
    for path in (ace.path / "poses").iterdir():
        path.unlink()
    (ace.path / "poses").rmdir()
    dataset = load(ace)
    assert all(f.world_from_cam is None for f in dataset.frames)
    assert any("no poses" in note for note in dataset.notes)


def test_other_pose_folders(ace):
    (ace.path / "poses").rename(ace.path / "poses_slam")
    with pytest.raises(DataError, match="Did you mean 'poses_slam'"):
        load(ace)
    assert len(load(ace, poses="poses_slam")) == 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"frames": "0:2"}, [0, 1]),
        ({"frames": "-2:"}, [4, 5]),
        ({"frames": "1:6:2"}, [1, 3, 5]),
        ({"frame_step": 4}, [0, 4]),
        ({"max_frames": 3}, [0, 2, 4]),
        ({"frames": "1:", "frame_step": 2, "max_frames": 2}, [1, 3]),
    ],
)
def test_selection(ace, options, expected):
    dataset = load(ace, **options)
    assert [int(f.name[-16:-10]) for f in dataset.frames] == expected
    assert [int(q.image[0, 0, 0]) for q in dataset] == [10 * i for i in expected]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames": "abc"}, ConfigError, "0:200"),
        ({"frames": "5"}, ConfigError, "0:200"),
        ({"frames": "100:"}, DataError, "none of the 6"),
        ({"frame_step": 0}, ConfigError, "frame_step"),
        ({"max_frames": 0}, ConfigError, "max_frames"),
        ({"depth": "yes"}, ConfigError, "Known: auto, none"),
    ],
)
def test_bad_options(ace, options, error, message):
    with pytest.raises(error, match=message):
        load(ace, **options)


def test_depth_can_be_left_out_and_must_fit(ace, ace_folder, tmp_path):
    assert load(ace, depth="none")[0].depth is None
    other = ace_folder(tmp_path / "b" / "train", size=(16, 12))
    other.file("depth", 0).replace(ace.file("depth", 0))
    with pytest.raises(DataError, match="registered"):
        load(ace)[0]


def test_a_damaged_image_is_named_when_read(ace):
    path = ace.file("rgb", 2)
    path.write_bytes(path.read_bytes()[:-20])
    dataset = load(ace)
    assert dataset[1].image.shape == (24, 32, 3)
    with pytest.raises(DataError, match=r"000002\.color\.png.*truncated"):
        dataset[2]


def test_plain_names_are_no_sequence(ace_folder, tmp_path):
    ace = ace_folder(tmp_path / "s" / "train", stem="IMG_{}", depth=False)
    dataset = load(ace)
    assert {(f.sequence, f.timestamp) for f in dataset.frames} == {(None, None)}
    assert not dataset.has_depth


def test_ten_thousand_images_load_fast(ace_folder, tmp_path):
    """Less than 5 s and 500 MB are required; images are hard links of one file."""
    import os

    ace = ace_folder(tmp_path / "s" / "train", count=1, depth=False)
    for i in range(1, 10_000):
        for folder, role in (
            ("rgb", "color.png"),
            ("poses", "pose.txt"),
            ("calibration", "calibration.txt"),
        ):
            os.link(
                ace.path / folder / f"{ace.stems[0]}.{role}",
                ace.path / folder / f"seq-01-frame-{i:06d}.{role}",
            )
    begin = time.process_time()
    assert len(load(ace)) == 10_000
    assert time.process_time() - begin < 5
    tracemalloc.start()
    dataset = load(ace)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(dataset) == 10_000
    assert peak < 100e6


def test_without_depth_no_depth_map_is_read(ace):
    dataset = load(ace)
    ace.file("depth", 0).write_bytes(b"damaged")
    bare = dataset.without_depth()
    assert bare[0].depth is None
    assert not bare.has_depth
    assert bare.frames == dataset.frames
    assert dataset.has_depth
    with pytest.raises(DataError):
        dataset[0]

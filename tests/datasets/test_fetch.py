"""`reloc data fetch` end to end against a local server with archives in the original layouts."""

import io
import json
import math
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import benchmark_archives as archives
from fetch_server import FileServer

from reloc_core.cli.main import main
from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.benchmarks import BENCHMARKS, FetchOptions, fetch
from reloc_core.datasets.benchmarks.sevenscenes import RGB_FROM_DEPTH, register_depth
from reloc_core.datasets.config import AceConfig
from reloc_core.errors import ConfigError, DataError, RelocError
from reloc_core.io.download import Policy

QUICK = Policy(attempts=2, delay=0.0, timeout=5.0)


@pytest.fixture
def server():
    server = FileServer()
    yield server
    server.close()


@pytest.fixture
def run(server, tmp_path):
    def run(name, scene, **options):
        options = FetchOptions(**{"partial": True, **options})
        return fetch(BENCHMARKS[name], scene, tmp_path / "data", options, server.url, QUICK)

    return run


def visible(root):
    return (
        sorted(p.name for p in root.iterdir() if not p.name.startswith("."))
        if root.is_dir()
        else []
    )


def read(folder, split):
    return AceDataset(AceConfig(str(folder), split))


def test_7scenes_with_the_original_poses(server, run, tmp_path):
    content, poses, _ = archives.sevenscenes()
    server.add("7scenes/heads.zip", content, break_after=[len(content) // 3, 1000])
    folder = run("7scenes", "heads")
    assert folder == tmp_path / "data" / "7scenes_heads"
    train, test = read(folder, "train"), read(folder, "test")
    assert [f.name for f in train.frames] == [f"seq-02-frame-{i:06d}.color.png" for i in range(3)]
    assert {f.sequence for f in test.frames} == {"seq-01"}
    for i, frame in enumerate(train.frames):
        assert frame.camera.params == (525.0, 319.5, 239.5)
        # The colour camera sees a point where the depth camera's calibration puts it.
        point = np.array([0.3, -0.2, 2.0, 1.0])
        world = poses[2, i] @ point
        np.testing.assert_allclose(
            np.linalg.inv(frame.world_from_cam) @ world, RGB_FROM_DEPTH @ point, atol=1e-5
        )
    assert not train.has_depth
    assert train[0].image.shape == (480, 640, 3)
    source = json.loads((folder / "source.json").read_text())
    assert source["frames"] == {"train": 3, "test": 3}
    assert source["sources"][0].startswith("http://download.microsoft.com/")
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".downloads", "7scenes_heads"]


def test_7scenes_with_sfm_poses_and_registered_depth(server, run):
    content, _, depth = archives.sevenscenes()
    server.add("7scenes/heads.zip", content)
    truth = {}
    for split, sequence in (("train", 2), ("test", 1)):
        names = [f"seq-{sequence:02d}/frame-{i:06d}.color.png" for i in range(3)]
        truth[split] = [archives.random_pose(500 + sequence + i) for i in range(3)]
        server.add(
            f"pgt/pgt/sfm/7scenes/heads_{split}.txt",
            archives.pgt_list(names, truth[split], 527.745),
        )
    folder = run("7scenes", "heads", poses="sfm", depth="registered")
    assert folder.name == "pgt_7scenes_heads"
    for split in ("train", "test"):
        dataset = read(folder, split)
        for frame, pose in zip(dataset.frames, truth[split], strict=True):
            np.testing.assert_allclose(frame.world_from_cam, pose, atol=1e-9)
            assert frame.camera.fx == 527.745
    found = read(folder, "train")[0].depth
    metres = np.where(depth == 65535, 0, depth / 1000).astype(np.float32)
    np.testing.assert_allclose(found, register_depth(metres, 527.745), atol=0.0006)
    assert 1.98 < found[250, 300] < 2.02


def test_depth_registration_against_a_loop():
    rng = np.random.default_rng(0)
    depth = np.zeros((480, 640), np.float32)
    rows, columns = rng.integers(0, 480, 400), rng.integers(0, 640, 400)
    depth[rows, columns] = rng.uniform(0.5, 4, 400)
    expected = np.zeros((480, 640))
    for v, u in zip(*np.nonzero(depth), strict=True):
        z = float(depth[v, u])
        x, y, z, _ = RGB_FROM_DEPTH @ [(u - 320) * z / 585, (v - 240) * z / 585, z, 1]
        i, j = round(y / z * 525 + 240), round(x / z * 525 + 320)
        if 0 <= i < 480 and 0 <= j < 640 and (expected[i, j] == 0 or z < expected[i, j]):
            expected[i, j] = z
    np.testing.assert_allclose(register_depth(depth, 525.0), expected, atol=1e-6)


def test_12scenes(server, run):
    content, poses = archives.twelvescenes()
    server.add("12scenes/apt1.zip", content)
    folder = run("12scenes", "apt1_living")
    assert folder.name == "12scenes_apt1_living"
    test, train = read(folder, "test"), read(folder, "train")
    assert [f.name for f in test.frames] == ["frame-000000.color.jpg", "frame-000001.color.jpg"]
    # Frame 3 was lost by the tracker.
    assert [f.name for f in train.frames] == ["frame-000002.color.jpg", "frame-000004.color.jpg"]
    np.testing.assert_allclose(test.frames[1].world_from_cam, poses["living", 1], atol=1e-6)
    assert train.frames[0].camera.fx == pytest.approx(1155.915)
    assert (train.frames[0].camera.width, train.frames[0].camera.height) == (1296, 968)


@pytest.mark.parametrize(("focal", "expected"), [("published", 1155.915), ("pgt", 1167.8)])
def test_12scenes_with_sfm_poses(server, run, focal, expected):
    content, _ = archives.twelvescenes()
    server.add("12scenes/apt1.zip", content)
    new = {i: archives.random_pose(700 + i) for i in range(5)}
    for split, chosen in (("test", [0]), ("train", [2, 3, 4])):
        names = [f"data/frame-{i:06d}.color.jpg" for i in chosen]
        content = archives.pgt_list(names, [new[i] for i in chosen], 1167.8)
        server.add(f"pgt/pgt/sfm/12scenes/apt1_kitchen_{split}.txt", content)
    folder = run("12scenes", "apt1_kitchen", poses="sfm", focal=focal)
    assert folder.name == "pgt_12scenes_apt1_kitchen"
    train = read(folder, "train")
    assert [f.name[6:12] for f in train.frames] == ["000002", "000003", "000004"]
    np.testing.assert_allclose(train.frames[1].world_from_cam, new[3], atol=1e-9)
    assert train.frames[0].camera.fx == pytest.approx(expected)
    assert len(read(folder, "test")) == 1


def test_cambridge(server, run):
    content, poses, names = archives.cambridge()
    server.add("cambridge/ShopFacade.zip", content)
    folder = run("cambridge", "ShopFacade")
    assert folder.name == "Cambridge_ShopFacade"
    train, test = read(folder, "train"), read(folder, "test")
    assert [f.name for f in train.frames] == sorted(n.replace("/", "_") for n in names[:3])
    assert len(test) == 2
    for frame in (*train.frames, *test.frames):
        name = frame.name.replace("_", "/")
        np.testing.assert_allclose(frame.world_from_cam, poses[name], atol=1e-8)
        assert (frame.camera.width, frame.camera.height) == (854, 480)
        focal = (1600 + list(poses).index(name)) * 854 / 1920
        assert frame.camera.fx == pytest.approx(focal)
    assert not (folder / ".work").exists()


def test_aachen(server, run):
    files, poses = archives.aachen()
    for path, content in files.items():
        server.add(path, content)
    folder = run("aachen", "aachen")
    train, test = read(folder, "train"), read(folder, "test")
    assert len(train) == 3
    for frame in train.frames:
        pose = poses[frame.name.replace("_", "/")]
        np.testing.assert_allclose(frame.world_from_cam, pose, atol=1e-8)
        assert frame.camera.fx == pytest.approx(1000 * 640 / 1600)
        assert frame.camera.height == 480
    day, night = test.frames
    assert (day.name, night.name) == ("query_day_milestone_q1.jpg", "query_night_nexus5x_q2.jpg")
    assert day.world_from_cam is None
    # Portrait: the width is 480, and the focal length follows it.
    assert (day.camera.width, day.camera.height) == (480, 640)
    assert day.camera.fx == pytest.approx(1400.5 * 480 / 1200)
    assert night.camera.fx == pytest.approx(1300 * 640 / 1600)


@pytest.mark.parametrize("prefix", ["wayspots_", "", "data/wayspots/"])
def test_wayspots(server, run, prefix):
    server.add("wayspots/wayspots.tar.gz", archives.wayspots(prefix=prefix))
    folder = run("wayspots", "map")
    assert folder.name == "wayspots_map"
    assert (len(read(folder, "train")), len(read(folder, "test"))) == (3, 2)
    assert read(folder, "test").frames[0].camera.fx == 60.5
    with pytest.raises(DataError, match="0 folders of the scene lawn"):
        run("wayspots", "lawn")


# ------------------------------------------------------------------------------- what goes wrong


def test_wrong_frame_counts_are_refused(server, run, tmp_path):
    server.add("7scenes/heads.zip", archives.sevenscenes()[0])
    with pytest.raises(
        DataError, match="3 instead of 1000 train frames and 3 instead of 1000 test"
    ):
        run("7scenes", "heads", partial=False)
    assert visible(tmp_path / "data") == []


def test_truncated_damaged_and_hostile_archives_leave_no_dataset(server, run, tmp_path):
    whole = archives.sevenscenes()[0]
    inner = archives.zip_bytes(
        [("../../../evil.txt", b"evil"), ("seq-02/frame-000000.color.png", b"")]
    )
    split = [("heads/TrainSplit.txt", "sequence2\n"), ("heads/TestSplit.txt", "sequence1\n")]
    cases = {
        "truncated": (whole[: len(whole) // 2], "truncated|damaged"),
        "damaged": (whole[:3000] + bytes(500) + whole[3500:], "damaged|truncated"),
        "html": (b"<html>Sorry, moved.</html>", "no zip or tar"),
        "traversal": (archives.zip_bytes([("../evil.txt", b"evil")]), "leaves the target"),
        "traversal within": (
            archives.zip_bytes([*split, ("heads/seq-02.zip", inner)]),
            "leaves the target",
        ),
        "missing sequence": (archives.zip_bytes(split), "no sequence seq-02"),
        "bad split": (archives.zip_bytes([("heads/TrainSplit.txt", "all\n")]), "'sequenceN'"),
        "nothing": (archives.zip_bytes([]), "does not exist|truncated"),
    }
    for case, (content, match) in cases.items():
        server.add("7scenes/heads.zip", content)
        with pytest.raises(RelocError, match=match):
            run("7scenes", "heads")
        root = tmp_path / "data"
        assert [p.name for p in root.iterdir()] == [".downloads"], case
        assert not list(tmp_path.rglob("evil.txt"))
        (root / ".downloads/7scenes/heads.zip").unlink()


def test_missing_poses_and_images_are_refused(server, run, tmp_path):
    content, _, names = archives.cambridge()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = [(n, file.read(n)) for n in file.namelist() if not n.endswith(names[0])]
    server.add("cambridge/ShopFacade.zip", archives.zip_bytes(entries))
    with pytest.raises(DataError, match=r"frame00000\.png does not exist"):
        run("cambridge", "ShopFacade")
    server.add("7scenes/heads.zip", archives.sevenscenes()[0])
    for split, sequence in (("train", 2), ("test", 1)):
        text = archives.pgt_list([f"seq-{sequence:02d}/frame-000000.color.png"], [np.eye(4)], 500)
        server.add(f"pgt/pgt/sfm/7scenes/heads_{split}.txt", text)
    with pytest.raises(DataError, match="no pose of seq-02/frame-000001"):
        run("7scenes", "heads", poses="sfm")
    assert visible(tmp_path / "data") == []


def test_a_full_disk_leaves_no_dataset_and_resumes(server, run, tmp_path, monkeypatch):
    server.add("7scenes/heads.zip", archives.sevenscenes()[0])
    usage = namedtuple("usage", "total used free")
    calls = []

    def small(path):
        calls.append(path)
        return usage(10**12, 0, 10**12 if len(calls) == 1 else 1000)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", small)
        with pytest.raises(RelocError, match=r"Unpacking heads\.zip needs"):
            run("7scenes", "heads")
    assert [p.name for p in (tmp_path / "data").iterdir()] == [".downloads"]
    original, count = Path.write_text, []

    def full(self, *args, **kwargs):
        count.append(self)
        if len(count) == 4:
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RelocError, match="disk is full"):
            run("7scenes", "heads")
    assert [p.name for p in (tmp_path / "data").iterdir()] == [".downloads"]
    run("7scenes", "heads")
    assert visible(tmp_path / "data") == ["7scenes_heads"]
    assert len(server.files["7scenes/heads.zip"].requests) == 1


def test_a_scene_that_is_there_is_not_touched(server, run):
    server.add("7scenes/heads.zip", archives.sevenscenes()[0])
    folder = run("7scenes", "heads")
    (folder / "mine.txt").write_text("keep")
    run("7scenes", "heads")
    assert (folder / "mine.txt").exists()


def test_options_that_a_dataset_does_not_have(run):
    for name, scene, options, match in (
        ("cambridge", "ShopFacade", {"poses": "sfm"}, "cambridge has no poses=sfm"),
        ("7scenes", "heads", {"poses": "slam"}, "known: dslam, sfm, original"),
        (
            "7scenes",
            "heads",
            {"poses": "original", "depth": "registered"},
            "poses=original are of the depth camera",
        ),
        ("12scenes", "apt1_living", {"focal": "pgt"}, "belongs to poses=sfm"),
    ):
        with pytest.raises(ConfigError, match=match):
            run(name, scene, **options)


def test_command_line(server, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.add("7scenes/heads.zip", archives.sevenscenes()[0])
    arguments = ["data", "fetch", "7scenes", "scenes=heads", "partial=true", f"mirror={server.url}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "non-commercial" in error
    assert "--accept-license" in error
    assert not (tmp_path / "data").exists()
    assert main([*arguments, "--accept-license"]) == 0
    assert "dataset.root=data/7scenes_heads" in capsys.readouterr().err
    assert visible(tmp_path / "data") == ["7scenes_heads"]
    for wrong, match in (
        (["data", "fetch", "7scene"], "Did you mean '7scenes'"),
        (["data", "fetch", "7scenes", "scenes=head"], "Did you mean 'heads'"),
        (["data", "fetch", "7scenes", "pose=sfm"], "Did you mean 'poses'"),
        (
            [
                "data",
                "fetch",
                "7scenes",
                "scenes=heads",
                "mirror=/nowhere",
                "root=r",
                "--accept-license",
            ],
            "no file",
        ),
    ):
        assert main(wrong) == 2
        assert match in capsys.readouterr().err
    assert main(["data", "fetch"]) == 0
    assert "wayspots" in capsys.readouterr().out


def test_a_folder_can_be_the_mirror(tmp_path, capsys):
    mirror = tmp_path / "mirror" / "wayspots"
    mirror.mkdir(parents=True)
    (mirror / "wayspots.tar.gz").write_bytes(archives.wayspots())
    code = main(
        ["data", "fetch", "wayspots", "scenes=bears,map", f"mirror={tmp_path / 'mirror'}",
         f"root={tmp_path / 'data'}", "--accept-license"]
    )  # fmt: skip
    assert code == 0
    assert visible(tmp_path / "data") == ["wayspots_bears", "wayspots_map"]


def test_catalogue_is_complete():
    assert {len(b.scenes) for b in BENCHMARKS.values()} == {1, 5, 7, 10, 12}
    total = {"train": 0, "test": 0}
    for scene in BENCHMARKS["7scenes"].scenes:
        for split, count in BENCHMARKS["7scenes"].expected(scene, FetchOptions()).items():
            total[split] += count
    assert total == {"train": 26000, "test": 17000}
    calibration = RGB_FROM_DEPTH[:3, :3]
    np.testing.assert_allclose(calibration @ calibration.T, np.eye(3), atol=1e-12)
    assert math.isclose(np.linalg.norm(RGB_FROM_DEPTH[:3, 3]), 0.0256, abs_tol=1e-4)

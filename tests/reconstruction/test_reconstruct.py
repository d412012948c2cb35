"""Reconstructions of renderings, whose poses and intrinsics are known."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from reconstruction_tools import error

from reloc_core.datasets.colmap import ColmapDataset
from reloc_core.datasets.config import CameraConfig, ColmapConfig
from reloc_core.errors import DataError
from reloc_core.reconstruction import ReconstructOptions, ScaleOptions, reconstruct
from reloc_core.runs import Reporter

QUICK = {"features": 1200, "threads": 1}


class Listener(Reporter):
    def __init__(self):
        super().__init__(quiet=True)
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def dataset(root):
    return ColmapDataset(ColmapConfig(root=str(root), holdout=0))


def poses(root):
    return {frame.name: frame.world_from_cam for frame in dataset(root).frames}


@pytest.fixture(scope="module")
def first(room, tmp_path_factory):
    """A workspace of the first ten photos, in metres by a measured distance."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "photos").mkdir()
    names = room.names[:10]
    for name in names:
        shutil.copy(room.folder / name, folder / "photos" / name)
    between = np.linalg.norm(room.poses[names[0]][:3, 3] - room.poses[names[6]][:3, 3])
    options = ReconstructOptions(
        str(folder / "photos"), str(folder / "place"), **QUICK,
        scale=ScaleOptions(distance=[names[0], names[6], float(between)]),
    )  # fmt: skip
    return folder / "place", reconstruct(options, Listener())


def test_poses_are_those_of_the_renderings(first, room):
    place, content = first
    found = poses(place)
    assert sorted(found) == room.names[:10]
    off, angle, scale, rotation = error(found, room.poses)
    assert off < 0.02  # metres, in a room of some metres
    assert angle < 1
    assert scale == pytest.approx(1, abs=0.01)  # the measured distance
    up = rotation @ [0, 0, 1]
    assert np.degrees(np.arccos(up @ UP)) < 5  # as the cameras were held
    assert content["registered"] == 10


UP = np.array([0.0, 0.0, 1.0])


def test_the_workspace_is_a_dataset_that_knows_its_unit(first, room):
    place, content = first
    data = dataset(place)
    assert data.unit == content["unit"] == "metre"
    assert len(data.model_points()) == content["points"] > 100
    np.testing.assert_array_equal(data[0].image, room.images[data.frames[0].name])
    assert data.frames[0].camera.fx == pytest.approx(room.camera.fx, rel=0.03)


def test_the_page_names_images(first, room):
    page = (first[0] / "report.html").read_text("utf-8")
    assert room.names[0] in page
    assert "10<small> of 10" in page
    assert "<svg" in page


def test_images_are_added_and_the_rest_stays(first, room, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(first[0], place)
    before = poses(place)
    more = tmp_path / "more"
    more.mkdir()
    for name in room.names[10:14]:
        shutil.copy(room.folder / name, more / name)
    shutil.copy(room.folder / room.names[0], more / room.names[0])
    listener = Listener()
    content = reconstruct(ReconstructOptions(str(more), str(place), add=True, **QUICK), listener)
    after = poses(place)
    assert sorted(after) == room.names[:14]
    for name, pose in before.items():
        np.testing.assert_allclose(after[name], pose, atol=1e-9)
    off, angle, scale, _ = error(after, room.poses)
    assert off < 0.03
    assert angle < 1.2
    assert scale == pytest.approx(1, abs=0.01)
    assert content["unit"] == "metre"
    assert len(content["images"]) == 14
    assert any("1 images are there already" in note for note in listener.notes)


def images_in(database):
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as file:
            return dict(file.execute("SELECT name, image_id FROM images"))
    except sqlite3.Error:
        return {}


def test_a_killed_run_goes_on(room, tmp_path):
    photos, place = tmp_path / "photos", tmp_path / "place"
    photos.mkdir()
    for name in room.names[:7]:
        shutil.copy(room.folder / name, photos / name)
    command = [
        sys.executable, "-m", "reloc_core.cli", "data", "reconstruct", f"images={photos}",
        f"output={place}", "features=1200", "threads=1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    database = tmp_path / ".place.work" / "database.db"
    deadline = time.monotonic() + 60
    while len(images_in(database)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = images_in(database)
    assert len(left) >= 2
    assert not place.exists()
    listener = Listener()
    reconstruct(ReconstructOptions(str(photos), str(place), **QUICK), listener)
    assert any("interrupted" in note for note in listener.notes)
    finished = images_in(place / "database.db")
    assert len(finished) == 7
    assert left.items() <= finished.items()  # not found a second time
    assert not (tmp_path / ".place.work").exists()


def test_photos_that_come_after_a_failure_are_used(room, tmp_path):
    photos, place = tmp_path / "photos", tmp_path / "place"
    photos.mkdir()
    noise = np.random.default_rng(0)
    for number in range(3):
        small = noise.integers(0, 255, (24, 32), np.uint8)
        cv2.imwrite(str(photos / f"noise{number}.png"), cv2.resize(small, (320, 240)))
    options = ReconstructOptions(str(photos), str(place), **QUICK)
    with pytest.raises(DataError, match="make no model") as failed:
        reconstruct(options, Listener())
    kept = tmp_path / ".place.work"
    assert kept.is_dir()
    assert f"are kept in {kept} for the next try" in str(failed.value)
    for name in room.names[:6]:
        shutil.copy(room.folder / name, photos / name)
    content = reconstruct(options, Listener())
    assert not kept.exists()
    assert len(content["images"]) == 9
    assert content["registered"] == 6


@pytest.mark.parametrize("given", [True, False])
def test_all_at_once(room, tmp_path, given):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in room.names[:8]:
        shutil.copy(room.folder / name, photos / name)
    # Told wrong on purpose: what is given is not to be refined.
    params = [room.camera.fx * 1.02, room.camera.fy * 1.02, room.camera.cx, room.camera.cy]
    config = CameraConfig(model="PINHOLE", params=params) if given else CameraConfig()
    options = ReconstructOptions(
        str(photos), str(tmp_path / "place"), mapper="global", camera=config, **QUICK
    )
    assert reconstruct(options, Listener())["registered"] == 8
    camera = dataset(tmp_path / "place").frames[0].camera
    if given:
        np.testing.assert_allclose(camera.params, params)
    else:
        assert camera.fx == pytest.approx(room.camera.fx, rel=0.05)
    off, angle, *_ = error(poses(tmp_path / "place"), room.poses)
    assert off < 0.04
    assert angle < 2


@pytest.fixture(scope="module")
def video(walk, tmp_path_factory):
    """The walk at 30 frames a second, standing still for a while and with a blurred stretch."""
    path = tmp_path_factory.mktemp("video") / "my walk.avi"
    images = list(walk.images.values())
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (width, height))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 98)
    shown = [images[0]] * 8 + images
    for number, image in enumerate(shown):
        if number == 20:
            image = cv2.GaussianBlur(image, None, 6)
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return path


def test_video(video, walk, tmp_path):
    options = ReconstructOptions(str(video), str(tmp_path / "place"), motion=0.12, **QUICK)
    content = reconstruct(options, Listener())
    names = [image["name"] for image in content["images"]]
    numbers = [int(name[-10:-4]) for name in names]
    assert names[0] == f"my_walk_{numbers[0]:06d}.jpg"
    assert 5 <= len(numbers) < 28
    assert sum(number < 8 for number in numbers) <= 1  # it stands still
    assert 20 not in numbers  # blurred
    assert content["registered"] >= len(numbers) - 1
    times = [image["timestamp"] for image in content["images"]]
    np.testing.assert_allclose(times, np.array(numbers) / 30, atol=1e-3)
    truth = {
        name: walk.poses[walk.names[max(n - 8, 0)]] for name, n in zip(names, numbers, strict=True)
    }
    off, angle, *_ = error(poses(tmp_path / "place"), truth)
    assert off < 0.03
    assert angle < 1


def test_a_video_that_ends_early_gives_what_it_has(video, tmp_path):
    content = video.read_bytes()
    short = tmp_path / "short.avi"
    short.write_bytes(content[: int(0.75 * len(content))])
    listener = Listener()
    reconstruct(
        ReconstructOptions(str(short), str(tmp_path / "place"), motion=0.12, **QUICK), listener
    )
    assert any("frames it announces: it may be truncated" in note for note in listener.notes)


def test_photos_of_two_places(room, tmp_path):
    photos, others = tmp_path / "photos", room.names[14:]
    photos.mkdir()
    for name in [*room.names[:7], *others]:
        shutil.copy(room.folder / name, photos / name)
    content = reconstruct(
        ReconstructOptions(str(photos), str(tmp_path / "place"), **QUICK), Listener()
    )
    assert content["registered"] == 7
    assert set(poses(tmp_path / "place")) == set(room.names[:7])
    away = {image["name"]: image["reason"] for image in content["images"] if image["reason"]}
    assert set(away) == set(others)
    assert content["other_models"] == [5]
    assert any("largest model of 7 images" in note for note in content["notes"])
    assert all("another model of 5 images" in reason for reason in away.values())


def test_somebody_else_writes_it(room, tmp_path):
    from reloc_core.locks import FileLock

    lock = FileLock(tmp_path / ".place.lock")
    program = (
        "from reloc_core.reconstruction import ReconstructOptions, reconstruct; "
        f"reconstruct(ReconstructOptions({str(room.folder)!r}, {str(tmp_path / 'place')!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    lock.release()
    assert "is being written by process" in done.stderr


def test_what_is_no_reconstruction_gets_no_images(room, tmp_path):
    with pytest.raises(DataError, match="no reconstruction that images can be added to"):
        reconstruct(ReconstructOptions(str(room.folder), str(tmp_path), add=True), Listener())

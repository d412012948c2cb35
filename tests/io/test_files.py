import errno
import os

import numpy as np
import pytest

from reloc_core.errors import DataError, RelocError
from reloc_core.io.files import atomic_write, list_files, read_text, write_atomically
from reloc_core.io.poses import PoseRecord, read_pose_log, write_pose_log
from reloc_core.types import Camera, Frame


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "result.txt"
    write_atomically(path, "old")

    def interrupted():
        with atomic_write(path) as file:
            file.write("new")
            file.write(str(1 / 0))

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_text_and_bytes(tmp_path):
    write_atomically(tmp_path / "a", "grüße")
    write_atomically(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == "grüße".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RelocError, match=r"disk is full.*out\.txt"):
        write_atomically(tmp_path / "out.txt", "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_says_so(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(
        tempfile, "mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "t"))
    )
    with pytest.raises(RelocError, match="disk is full"):
        write_atomically(tmp_path / "out.txt", "x" * 100_000)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "x.txt", "x")


def test_junk_is_not_listed(tmp_path):
    for name in ("b.jpg", "a.jpg", "Thumbs.db", ".DS_Store", "._a.jpg", "desktop.ini"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert list_files(tmp_path) == ["a.jpg", "b.jpg"]


def test_unreadable_text(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="no text"):
        read_text(tmp_path / "binary")
    with pytest.raises(DataError, match="does not exist"):
        read_text(tmp_path / "missing")


def test_names_of_any_kind(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / os.fsdecode(b"b\xff.jpg")).touch()  # as archives in another encoding leave them
    names = list_files(tmp_path)
    assert names == ["a.jpg", os.fsdecode(b"b\xff.jpg")]
    assert Frame(names[1], Camera.pinhole(50, 64, 48)).name == r"b\xff.jpg"
    assert Frame("größe 日本", Camera.pinhole(50, 64, 48)).name == "größe 日本"
    write_atomically(tmp_path / "list", f"{names[1]}\n")
    assert read_text(tmp_path / "list") == "b\\udcff.jpg\n"


@pytest.mark.parametrize("name", ["a b.jpg", "#1.jpg", "new\nline.jpg"])
def test_pose_logs_keep_names(tmp_path, name):
    pose_log = tmp_path / "poses.txt"
    write_pose_log(pose_log, [PoseRecord(name, np.eye(4), 0.0, 0.0, 3)])
    assert [record.name for record in read_pose_log(pose_log)] == [name]

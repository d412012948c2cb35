"""Mistakes of users: one or two lines that say what to do, exit code 2, nothing left behind."""

import shutil

import cv2
import pytest

from reloc_core.cli.main import main


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run `reloc data reconstruct`, expect a user error, return its message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RELOC_DEBUG", raising=False)

    def run(images, *more):
        before = sorted(tmp_path.rglob("*"))
        code = main(["data", "reconstruct", f"images={images}", "output=place", "threads=1", *more])
        err = capsys.readouterr().err
        assert code == 2, err
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        message = err[err.index("reloc: error:") :]
        assert len(message.strip().splitlines()) <= 3, message
        return message

    return run


@pytest.fixture
def photos(room, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in room.names[:3]:
        shutil.copy(room.folder / name, folder / name)
    return folder


def test_nothing_there(refused, tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "does not exist" in refused(tmp_path / "nowhere.mp4")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path / "empty")


def test_several_videos(refused, tmp_path):
    (tmp_path / "vids").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "vids" / name).write_bytes(b"video")
    for images in (tmp_path / "vids", tmp_path / "vids" / "*.mp4"):
        message = refused(images)
        assert "names 2 videos, no images" in message
        assert f"images={tmp_path}/vids/a.mp4, and add the others with add=true" in message


def test_two_photos(refused, photos):
    sorted(photos.iterdir())[0].unlink()
    assert "at least 3 different images" in refused(photos)


def test_duplicates(refused, photos):
    file = sorted(photos.iterdir())[0]
    image = cv2.imread(str(file))
    for other in sorted(photos.iterdir())[1:]:
        other.unlink()
    for number in range(4):
        cv2.imwrite(
            str(photos / f"copy{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90 + number]
        )
    assert "duplicate of copy0.jpg" in refused(photos)


def test_damaged_files(refused, photos):
    for file in photos.iterdir():
        file.write_bytes(file.read_bytes()[:500])
    assert "cannot be read" in refused(photos)


def test_all_blurred(refused, photos):
    for file in photos.iterdir():
        cv2.imwrite(str(file), cv2.GaussianBlur(cv2.imread(str(file)), None, 9))
    assert "are blurred" in refused(photos)


@pytest.mark.parametrize("light", [0.03, 0])
def test_all_dark(refused, photos, light):
    for file in photos.iterdir():
        cv2.imwrite(str(file), (cv2.imread(str(file)) * light).astype("uint8"))
    assert "All 3 images" in (message := refused(photos))
    assert "are dark" in message


def test_a_video_that_cannot_be_opened(refused, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 1000)
    message = refused(tmp_path / "broken.mp4")
    assert "broken.mp4 cannot be opened" in message
    assert "was cut off" in message


def test_a_video_of_one_picture(refused, photos, tmp_path):
    image = cv2.imread(str(next(photos.iterdir())))
    path = tmp_path / "still.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, image.shape[1::-1])
    for _ in range(20):
        writer.write(image)
    writer.release()
    assert "its key frames are 1" in refused(path)


def test_bags(refused, tmp_path):
    pytest.importorskip("rosbags")
    (tmp_path / "broken.bag").write_bytes(b"no bag" * 1000)
    assert "cannot be read as a bag" in refused(tmp_path / "broken.bag")
    assert "does not exist" in refused(tmp_path / "nowhere.bag")


def test_the_output_exists(refused, photos, tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "mine.txt").write_text("mine")
    assert "add=true" in refused(photos)
    assert (tmp_path / "place" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("pairs=exhaustiv", "Did you mean 'exhaustive'"),
        ("motion=0", "share of the image width"),
        ("scale.distance=[a.jpg,b.jpg]", r"scale.distance=[a.jpg,b.jpg,1.25]"),
        ("scale.marker=-1", "side in metres"),
        ("most=1", "at least 3"),
        ("camera.params=[1,2]", "No camera model has 2"),
    ],
)
def test_options(refused, photos, option, text):
    assert text in refused(photos, option)


def test_two_scales(refused, photos):
    assert "choose one" in refused(photos, "scale.gps=true", "scale.marker=0.1")

"""`reloc localize` on videos and on folders that are videos."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.stream import VideoStream, is_stream
from reloc_core.errors import ConfigError, DataError
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline, Stage

FRAMES = 12


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video whose frames are grey levels."""
    path = tmp_path_factory.mktemp("video") / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 48))
    for i in range(FRAMES):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def test_frames_come_in_order_with_their_time(video):
    queries = list(VideoStream(video, CameraConfig(focal=50.0), step=3))
    assert [round(float(q.image.mean()) / 20) for q in queries] == [0, 3, 6, 9]
    np.testing.assert_allclose([q.timestamp for q in queries], [0, 0.15, 0.3, 0.45])
    assert len({q.sequence for q in queries}) == 1
    assert len({q.name for q in queries}) == 4
    assert queries[0].camera.fx == 50.0
    assert len(VideoStream(video, CameraConfig(focal=50.0), step=5, limit=2)) == 2


def matroska(path, images, milliseconds):
    """Write a video of JPEGs whose frames come when the list says."""

    def element(kind, *content):
        payload = b"".join(content)
        return bytes.fromhex(kind) + (1 << 56 | len(payload)).to_bytes(8, "big") + payload

    def number(kind, value):
        return element(kind, value.to_bytes(4, "big"))

    header = element(
        "1A45DFA3", number("4286", 1), number("42F7", 1), number("42F2", 4), number("42F3", 8),
        element("4282", b"matroska"), number("4287", 2), number("4285", 2),
    )  # fmt: skip
    info = element("1549A966", number("2AD7B1", 1_000_000))
    height, width = images[0].shape[:2]
    track = element(
        "AE", number("D7", 1), number("73C5", 1), number("83", 1), element("86", b"V_MJPEG"),
        element("E0", number("B0", width), number("BA", height)),
    )  # fmt: skip
    clusters = [
        element(
            "1F43B675", number("E7", time),
            element("A3", b"\x81\0\0\x80", cv2.imencode(".jpg", image)[1].tobytes()),
        )
        for image, time in zip(images, milliseconds, strict=True)
    ]  # fmt: skip
    tracks = element("1654AE6B", track)
    path.write_bytes(header + element("18538067", info, tracks, *clusters))


def test_frames_of_a_variable_rate_have_the_times_of_the_file(tmp_path):
    # A phone's: 30 Hz in the light, 15 Hz in the dark, and a pause.
    times = [0, 33, 67, 133, 200, 267, 1267, 1300]
    images = [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(len(times))]
    path = tmp_path / "phone.mkv"
    matroska(path, images, times)
    queries = list(VideoStream(path, CameraConfig(focal=50.0)))
    assert [round(float(q.image.mean()) / 20) for q in queries] == list(range(len(times)))
    np.testing.assert_allclose([q.timestamp for q in queries], np.array(times) / 1000, atol=1e-6)
    thinned = list(VideoStream(path, CameraConfig(focal=50.0), step=3))
    np.testing.assert_allclose([q.timestamp for q in thinned], [0, 0.133, 1.267], atol=1e-6)


def test_a_truncated_video_is_noted(video, tmp_path):
    short = tmp_path / "short.avi"
    short.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    try:
        stream = VideoStream(short, CameraConfig(focal=50.0))
        count = len(list(stream))
    except DataError:
        return  # the decoder refuses it altogether, which is as good
    assert count < FRAMES
    assert not stream.notes or "truncated" in stream.notes[0]


@pytest.mark.parametrize(
    ("source", "camera", "error", "message"),
    [
        ("nowhere.mp4", {"focal": 5.0}, DataError, "does not exist"),
        ("camera:front", {"focal": 5.0}, ConfigError, "camera:0"),
        ("camera:99", {"focal": 5.0}, DataError, "cannot be opened"),
        ("walk.mp4", {}, ConfigError, "camera.focal"),
    ],
)
def test_bad_sources(source, camera, error, message):
    assert is_stream(source)
    with pytest.raises(error, match=message):
        VideoStream(source, CameraConfig(**camera))


def test_a_file_that_is_no_video(tmp_path):
    (tmp_path / "x.mp4").write_text("not a video")
    with pytest.raises(DataError, match=r"cannot be opened|gave no frame"):
        list(VideoStream(tmp_path / "x.mp4", CameraConfig(focal=5.0)))


def test_localize_a_video(toy_plugin, ace_scene, video, tmp_path, capsys):
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    code = main(["localize", f"map_dir={tmp_path}/map", f"images={video}", "camera.focal=50",
                 "frame_step=2", "max_frames=5", f"output_dir={tmp_path}/out"])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["name"] for line in lines] == [f"walk.avi#{i:06d}" for i in (0, 2, 4, 6, 8)]
    stored = (tmp_path / "out/localizations.jsonl").read_text().splitlines()
    assert [json.loads(line)["world_from_cam"] for line in stored] == [
        line["world_from_cam"] for line in lines
    ]
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["status"], result["queries"], result["localized"]) == ("ok", 5, 5)


def test_batches_of_a_video_are_localized_together(
    toy_plugin, ace_scene, video, tmp_path, capsys, monkeypatch
):
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    localize, sizes = Pipeline.localize_batch, []

    def counted(self, queries):
        sizes.append(len(queries))
        return localize(self, queries)

    monkeypatch.setattr(Pipeline, "localize_batch", counted)
    assert main(["localize", f"map_dir={tmp_path}/map", f"images={video}", "camera.focal=50",
                 "batch=5", f"output_dir={tmp_path}/out"]) == 0  # fmt: skip
    assert sizes == [5, 5, 2]
    evaluate = ["evaluate", f"map_dir={tmp_path}/map", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*evaluate, "video=true", "batch=2", f"output_dir={tmp_path}/shown"]) == 2
    assert "leave batch out" in capsys.readouterr().err
    assert not (tmp_path / "shown").exists()


@pytest.mark.parametrize("verb", ["localize", "track"])
def test_the_map_is_opened_once(verb, toy_plugin, ace_scene, video, tmp_path, capsys, monkeypatch):
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    opened, open_map = [], Map.open.__func__
    monkeypatch.setattr(
        Map, "open", classmethod(lambda cls, path: opened.append(path) or open_map(cls, path))
    )
    code = main([verb, f"map_dir={tmp_path}/map", f"images={ace_scene}/test/rgb",
                 "camera.from_map=true", *(["fps=10"] if verb == "track" else []),
                 f"output_dir={tmp_path}/out"])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert opened == [f"{tmp_path}/map"]


@pytest.mark.parametrize("verb", ["localize", "track"])
def test_a_video_is_refused_at_its_start_where_a_stage_needs_depth(
    verb, toy_plugin, ace_scene, video, tmp_path, capsys, monkeypatch
):
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    monkeypatch.setattr(Stage, "of", lambda component: Stage(component.name, ("depth",)))
    assert main([verb, f"map_dir={tmp_path}/map", f"images={video}", "camera.focal=50",
                 f"output_dir={tmp_path}/out"]) == 2  # fmt: skip
    assert "'toy' needs depth images; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_can_be_a_video(toy_plugin, ace_scene, tmp_path, capsys, monkeypatch):
    from toy import ToyEstimator

    starts = []
    monkeypatch.setattr(ToyEstimator, "start_sequence", lambda self: starts.append(1))
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    starts.clear()  # of the calibration
    common = ["localize", f"map_dir={tmp_path}/map", f"images={ace_scene}/test/rgb",
              "camera.focal=130", "report=false", f"output_dir={tmp_path}/out"]  # fmt: skip
    assert main(common) == 0
    assert len(starts) == 4
    assert main([*common, "video=true", "max_frames=3"]) == 0
    assert len(starts) == 5
    assert len((tmp_path / "out/localizations.jsonl").read_text().splitlines()) == 3
    assert main([*common, "frame_step=0"]) == 2
    assert "frame_step" in capsys.readouterr().err


def test_results_arrive_while_it_runs(ace_scene, tmp_path):
    """A reader gets the first line before the last image is localized."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from reloc_core.cli import localize\n"
        "from reloc_core.engine import Outcome\n"
        "from reloc_core import Camera, Frame, Localization\n"
        "frame = Frame('a', Camera.pinhole(9, 9, 9))\n"
        "localize.show(Outcome(frame, None, None, Localization.failure('x'))); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, "."], stdout=subprocess.PIPE, text=True)
    try:
        assert json.loads(child.stdout.readline())["name"] == "a"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()

"""`reloc view`: recordings of maps, datasets, images, videos and results, read back."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.types import ScenePoints

rr = pytest.importorskip("rerun")
chunk = pytest.importorskip("rerun.chunk")
recording_module = pytest.importorskip("reloc_core.viewing.recording")


def read(path):
    """Rows of every column by entity and component, of the recording and not of its blueprint."""
    found = {}
    for piece in chunk.RrdReader(str(path)).stream():
        batch = piece.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            rows = found.setdefault(piece.entity_path, {}).setdefault(name, [])
            if str(column.type).startswith(("timestamp", "duration")):
                column = column.cast("int64")  # nanoseconds, which Python's types do not hold
            rows += column.to_pylist()
    return found


def values(rows, part):
    """All values of the component whose name contains `part`."""
    (name,) = [key for key in rows if part in key]
    return [row for row in rows[name] if row is not None]


@pytest.fixture(scope="module")
def room_map(tmp_path_factory, ace_scene, toy_plugin_of_module):
    path = tmp_path_factory.mktemp("maps") / "room"
    arguments = ["estimator=toy", "dataset=ace", f"dataset.root={ace_scene}", f"map_dir={path}"]
    assert main(["train", *arguments, f"output_dir={path.parent}/train"]) == 0
    return path


def test_a_dataset_is_localized_and_recorded(room_map, ace_scene, tmp_path, capsys, observer):
    file = tmp_path / "new folder" / "view.rrd"
    code = main(["view", f"map_dir={room_map}", "dataset=ace", f"dataset.root={ace_scene}",
                 "dataset.split=test", f"output={file}"])  # fmt: skip
    assert code == 0
    kinds = [event[0] for event in observer.events]
    assert kinds == ["started", *["query"] * 4, "finished"]
    assert observer.events[-1][1:] == (
        "view", {"status": "ok", "verb": "view", "queries": 4, "localized": 4}
    )  # fmt: skip
    assert "rerun" in capsys.readouterr().err
    found = read(file)
    for entity in ("/world/map/cameras", "/world/estimate", "/world/truth", "/world/path/truth",
                   "/query/image", "/world/estimate/picture", "/plots/position_error"):  # fmt: skip
        assert entity in found, entity
    # Oracle: the pose files of the dataset.
    poses = [np.loadtxt(p) for p in sorted((ace_scene / "test/poses").glob("*.txt"))]
    shown = np.array(values(found["/world/truth"], "Transform3D:translation")).reshape(-1, 3)
    np.testing.assert_allclose(shown, [pose[:3, 3] for pose in poses], atol=1e-6)
    # Columns of the matrix lie one after the other.
    turned = np.array(values(found["/world/truth"], "Transform3D:mat3x3")).reshape(-1, 3, 3)
    np.testing.assert_allclose(turned.swapaxes(1, 2), [p[:3, :3] for p in poses], atol=1e-6)
    data = bytes(values(found["/query/image"], "EncodedImage:blob")[0][0])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (120, 160, 3)
    frames = sorted(f for rows in found.values() for f in rows.get("frame", []))
    assert (frames[0], frames[-1]) == (0, 3)


def test_steps_and_limits(room_map, ace_scene, tmp_path):
    file = tmp_path / "view.rrd"
    arguments = ["dataset=ace", f"dataset.root={ace_scene}", "frame_step=2", "max_frames=3"]
    assert main(["view", f"map_dir={room_map}", *arguments, f"output={file}"]) == 0
    assert len(values(read(file)["/world/truth"], "Transform3D:translation")) == 3


def test_images_and_videos(room_map, ace_scene, tmp_path):
    images = sorted((ace_scene / "test/rgb").iterdir())
    video = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (160, 120))
    for image in images:
        writer.write(cv2.imread(str(image)))
    writer.release()
    for source in (video, ace_scene / "test/rgb"):
        file = tmp_path / f"{source.stem}.rrd"
        code = main(["view", f"map_dir={room_map}", f"images={source}", "camera.focal=120",
                     f"output={file}"])  # fmt: skip
        assert code == 0
        found = read(file)
        assert len(values(found["/query/image"], "EncodedImage:blob")) == len(images)
        assert "/plots/position_error" not in found  # no ground truth
    seconds = np.array(read(tmp_path / "walk.rrd")["/query/image"]["time"], float) / 1e9
    np.testing.assert_allclose(seconds, [0, 0.1, 0.2, 0.3], atol=1e-6)


def test_results_are_shown_as_they_are(room_map, ace_scene, tmp_path):
    out, data = tmp_path / "out", ["dataset=ace", f"dataset.root={ace_scene}"]
    code = main(["evaluate", f"map_dir={room_map}", *data, "dataset.split=test", "report=false",
                 f"output_dir={out}"])  # fmt: skip
    assert code == 0
    assert main(["view", f"results={out}", f"output={tmp_path}/a.rrd"]) == 0
    found = read(tmp_path / "a.rrd")
    assert "/query/image" not in found
    assert len(values(found["/plots/position_error"], "Scalars")) == 4
    code = main(["view", f"results={out}", f"map_dir={room_map}", *data, "dataset.split=test",
                 f"output={tmp_path}/b.rrd"])  # fmt: skip
    assert code == 0
    found = read(tmp_path / "b.rrd")
    assert {"/query/image", "/world/map/cameras"} <= set(found)


def test_unreadable_images_are_not_localized(room_map, ace_scene, tmp_path):
    import shutil

    scene = tmp_path / "scene"
    shutil.copytree(ace_scene / "test", scene / "test")
    first = min((scene / "test/rgb").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    file = tmp_path / "view.rrd"
    code = main(["view", f"map_dir={room_map}", "dataset=ace", f"dataset.root={scene}",
                 "dataset.split=test", f"output={file}"])  # fmt: skip
    assert code == 0
    (text,) = values(read(file)["/log"], "TextLog:text")
    assert "unreadable" in text[0]


def test_points_ellipsoids_and_inliers(tmp_path):
    from reloc_core import Camera, Correspondences, Localization, Query, Status
    from reloc_core.evaluation import query_result
    from reloc_core.geometry import so3_exp
    from reloc_core.viewing.recording import SceneRecording

    rng = np.random.default_rng(0)
    camera = Camera.pinhole(100.0, 160, 120)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = so3_exp(np.array([0.1, 0.2, 0.3])), [1, 2, 3]
    # Oracle: a camera that looks along z sees (0, 0, 2) in its centre.
    centre = pose[:3, :3] @ [0, 0, 2] + pose[:3, 3]
    evidence = Correspondences(
        points2d=np.array([[camera.cx, camera.cy], [10.0, 20.0]]),
        points3d=np.stack([centre, centre]),
        kind="sparse",
    )
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    covariance = np.diag([1e-6] * 3 + [0.0] * 3)
    covariance[3:, 3:] = axes @ np.diag([0.01, 0.02, 0.03]) ** 2 @ axes.T
    found = Localization(Status.LOCALIZED, world_from_cam=pose, covariance=covariance,
                         inliers=np.array([True, False]), num_inliers=1)  # fmt: skip
    image = np.full((120, 160, 3), (10, 20, 30), np.uint8)
    query = Query("q", camera, image=image)
    file = tmp_path / "view.rrd"
    recording = SceneRecording(file, magnify=2.0)
    recording.show_map(ScenePoints(rng.standard_normal((7, 3))), [pose, np.eye(4)])
    recording.show(0, query_result(query, found), query, evidence, found)
    recording.close()
    rows = read(file)
    assert np.shape(values(rows["/world/map/points"], "Points3D:positions")) == (1, 7, 3)
    half = values(rows["/world/estimate/covariance"], "half_sizes")[0][0]
    np.testing.assert_allclose(half, 2 * 7.815**0.5 * np.array([0.01, 0.02, 0.03]), rtol=1e-4)
    np.testing.assert_allclose(values(rows["/world/seen"], "positions")[0], [centre], atol=1e-5)
    assert values(rows["/world/seen"], "colors") == [[0x0A141EFF]]
    # Corners of pixels are whole numbers there.
    points = values(rows["/query/points"], "positions")[0]
    np.testing.assert_allclose(points, [[camera.cx + 0.5, camera.cy + 0.5]], atol=1e-4)


def test_map_projections_keep_their_millimetres(tmp_path):
    """A kilometre grid lies a million metres from zero, where single precision has decimetres."""
    from reloc_core import Camera, Localization, Query, Status
    from reloc_core.evaluation import query_result
    from reloc_core.viewing.recording import SceneRecording

    pose = np.eye(4)
    pose[:3, 3] = [512_345.678, 5_401_234.567, 231.25]
    points = pose[:3, 3] + np.array([[1.001, 2.002, 3.003], [-4.0, 5.0, 6.0]])
    colors = np.array([[255, 0, 0], [0, 128, 1]], np.uint8)
    query = Query("q", Camera.pinhole(100.0, 160, 120), image=np.zeros((120, 160, 3), np.uint8))
    found = Localization(Status.LOCALIZED, world_from_cam=pose)
    file = tmp_path / "view.rrd"
    recording = SceneRecording(file, unit="scene unit")
    recording.show_map(ScenePoints(points, colors), [pose])
    recording.show(0, query_result(query, found), query, None, found)
    recording.close()
    rows = read(file)
    (text,) = values(rows["/origin"], "TextDocument:text")
    origin = np.array([float(v) for v in text[0].rstrip(".").split("relative to ")[1].split(", ")])
    shown = np.array(values(rows["/world/estimate"], "Transform3D:translation")).ravel()
    np.testing.assert_allclose(shown + origin, pose[:3, 3], atol=1e-4)
    drawn = np.array(values(rows["/world/map/points"], "Points3D:positions"))[0]
    np.testing.assert_allclose(drawn + origin, points, atol=1e-4)
    # Red, green, blue and opacity, a byte each.
    assert values(rows["/world/map/points"], "Points3D:colors") == [[0xFF0000FF, 0x008001FF]]


def test_titles_name_the_unit():
    from reloc_core.viewing.recording import plots

    assert "position error (m)" in plots("metre")
    assert "standard deviation (scene unit)" in plots("scene unit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to show"),
        (["map_dir=MAP", "output=view.html"], "end in .rrd"),
        (["map_dir=MAP", "output=a.rrd", "connect=rerun+http://x"], "not both"),
        (["map_dir=MAP", "images=x", "results=y"], "either results"),
        (["map_dir=MAP", "images=x", "dataset=synthetic", "output=a.rrd"], "not both"),
        (["map_dir=MAP", "output=a.rrd", "magnify=0"], "magnify must be positive"),
        (["map_dir=MAP", "output=a.rrd", "frame_step=0"], "at least 1"),
        (["map_dir=nowhere", "output=a.rrd"], "nowhere"),
        (["results=nowhere", "output=a.rrd"], "reloc evaluate"),
        (["map_dir=MAP", "outptu=a.rrd"], "Did you mean 'output'"),
    ],
)
def test_bad_options(arguments, message, room_map, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["view", *(a.replace("=MAP", f"={room_map}") for a in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_display_it_says_what_to_do(room_map, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["view", f"map_dir={room_map}"]) == 2
    assert "output=view.rrd" in capsys.readouterr().err


def test_without_rerun_it_says_how_to_get_it(room_map, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    monkeypatch.delitem(sys.modules, "reloc_core.viewing.recording", raising=False)
    assert main(["view", f"map_dir={room_map}", f"output={tmp_path}/a.rrd"]) == 2
    assert "pip install 'reloc[view]'" in capsys.readouterr().err


def test_rerun_itself_accepts_the_file(room_map, tmp_path):
    file = tmp_path / "view.rrd"
    assert main(["view", f"map_dir={room_map}", f"output={file}"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "verify", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_curves_are_titled_in_the_unit_of_the_map(room_map, tmp_path, monkeypatch):
    elsewhere = tmp_path / "map"
    shutil.copytree(room_map, elsewhere)
    stored = (elsewhere / "map.yaml").read_text()
    assert "unit: metre" in stored
    (elsewhere / "map.yaml").write_text(stored.replace("unit: metre", "unit: scene unit"))
    seen = []
    real = recording_module.blueprint
    monkeypatch.setattr(recording_module, "blueprint", lambda unit: seen.append(unit) or real(unit))
    for path in (room_map, elsewhere):
        assert main(["view", f"map_dir={path}", f"output={tmp_path}/{path.name}.rrd"]) == 0
    assert seen == ["metre", "scene unit"]

import json
import math

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reloc_core.datasets.config import TransformsConfig
from reloc_core.datasets.transforms import TransformsDataset
from reloc_core.errors import ConfigError, DataError


@pytest.fixture
def scene(tmp_path):
    """Ten images and the content of transforms.json; `save` writes it."""
    (tmp_path / "images").mkdir()
    frames = []
    for i in range(10):
        cv2.imwrite(str(tmp_path / "images" / f"{i:02d}.png"), np.full((30, 40, 3), i, np.uint8))
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.random(random_state=i).as_matrix()
        matrix[:3, 3] = i, 2 * i, -i
        frames.append({"file_path": f"images/{i:02d}.png", "transform_matrix": matrix.tolist()})
    content = {
        "fl_x": 50.0,
        "fl_y": 51.0,
        "cx": 21.0,
        "cy": 14.0,
        "w": 40,
        "h": 30,
        "frames": frames,
    }

    def save(name="transforms.json", **options):
        (tmp_path / name).write_text(json.dumps(content))
        return TransformsDataset(TransformsConfig(root=str(tmp_path), **options))

    return content, save, tmp_path


def test_axes_and_pixel_convention(scene):
    content, save, _ = scene
    dataset = save(split="all")
    assert dataset.unit == "scene unit"
    for i, query in enumerate(dataset):
        given = np.array(content["frames"][i]["transform_matrix"])
        # OpenGL looks along -z with y up: forward, down and right must come out of the columns.
        np.testing.assert_allclose(query.world_from_cam[:3, 2], -given[:3, 2], atol=1e-12)
        np.testing.assert_allclose(query.world_from_cam[:3, 1], -given[:3, 1], atol=1e-12)
        np.testing.assert_allclose(query.world_from_cam[:3, 0], given[:3, 0], atol=1e-12)
        np.testing.assert_allclose(query.world_from_cam[:3, 3], given[:3, 3])
        assert query.camera.params == (50, 51, 20.5, 13.5)
        assert (query.image == i).all()


def test_metric_depth_is_not_lifted_into_an_arbitrary_unit(scene):
    content, save, root = scene
    for i, frame in enumerate(content["frames"]):
        frame["depth_file_path"] = f"images/{i:02d}.depth.png"
        cv2.imwrite(str(root / frame["depth_file_path"]), np.full((30, 40), 1500, np.uint16))
    metric = save(split="all", unit="metre")
    assert metric.has_depth
    assert metric[0].depth.max() == pytest.approx(1.5)
    implied = save(split="all")  # by the format, depth is in the poses' unit
    assert (implied.unit, implied[0].depth.max()) == ("metre", pytest.approx(1.5))
    assert any("taken as metres" in note for note in implied.notes)
    assert save(split="all", depth="none").unit == "scene unit"
    loose = save(split="all", unit="scene unit")
    assert not loose.has_depth
    assert loose[0].depth is None
    assert any("depth is left out" in note for note in loose.notes)


def test_holdout_splits_are_disjoint_and_complete(scene):
    _, save, _ = scene
    names = {s: [f.name for f in save(split=s, holdout=4).frames] for s in ("train", "test", "all")}
    assert names["test"] == [f"images/{i:02d}.png" for i in (0, 4, 8)]
    assert sorted(names["train"] + names["test"]) == names["all"]
    assert len(save(split="train", holdout=0)) == len(save(split="test", holdout=0)) == 10


def test_files_per_split(scene):
    content, save, path = scene
    save("transforms_train.json")
    content["frames"] = content["frames"][:3]
    dataset = save("transforms_test.json", split="test")
    assert len(dataset) == 3
    assert len(TransformsDataset(TransformsConfig(root=str(path)))) == 10


@pytest.mark.parametrize(
    ("values", "model", "params"),
    [
        ({"k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4}, "OPENCV", (0.1, 0.2, 0.3, 0.4)),
        ({"k1": 0.1, "k3": 0.5}, "FULL_OPENCV", (0.1, 0, 0, 0, 0.5, 0, 0, 0)),
        (
            {"k1": 0.1, "k2": 0.2, "k3": 0.3, "k4": 0.4, "camera_model": "OPENCV_FISHEYE"},
            "OPENCV_FISHEYE",
            (0.1, 0.2, 0.3, 0.4),
        ),
        ({"k1": 0.1, "is_fisheye": True}, "OPENCV_FISHEYE", (0.1, 0, 0, 0)),
        ({}, "PINHOLE", ()),
    ],
)
def test_distortion(scene, values, model, params):
    content, save, _ = scene
    content.update(values)
    camera = save().frames[0].camera
    assert (camera.model, camera.distortion) == (model, params)


def test_field_of_view_and_intrinsics_per_frame(scene):
    content, save, _ = scene
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del content[key]
    content["camera_angle_x"] = 2 * math.atan(0.5)  # 40 px wide: focal length 40
    content["frames"][3]["fl_x"] = 77
    frames = save(split="all").frames
    assert frames[0].camera.params == pytest.approx((40, 40, 19.5, 14.5))
    assert frames[3].camera.params == pytest.approx((77, 77, 19.5, 14.5))


def test_downscaled_images_scale_the_intrinsics(scene):
    content, save, _ = scene
    content.update(w=80, h=60, fl_x=100, fl_y=102, cx=42, cy=28)
    dataset = save(split="all")
    assert dataset.frames[0].camera.params == pytest.approx((50, 51, 20.5, 13.5))
    assert any("scaled" in note for note in dataset.notes)
    content.update(w=60, h=80)
    with pytest.raises(DataError, match="another shape"):
        save()


def test_names_without_ending(scene):
    content, save, _ = scene
    for frame in content["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    assert save(split="all")[7].image[0, 0, 0] == 7


def test_missing_images_are_counted(scene):
    _, save, path = scene
    for i in (2, 5):
        (path / "images" / f"{i:02d}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 10 images .* first: images/02\.png"):
        save()


def test_lost_poses_are_skipped(scene):
    content, save, _ = scene
    content["frames"][1]["transform_matrix"] = np.full((4, 4), np.nan).tolist()
    dataset = save(split="all")
    assert len(dataset) == 9
    assert any("skipped 1 of 10" in note for note in dataset.notes)
    assert (dataset[1].image == 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(frames=[]), "no frames"),
        (lambda c: c["frames"][2].pop("transform_matrix"), "frame 2 has no 'transform_matrix'"),
        (lambda c: c["frames"][0].update(transform_matrix=[[1, 2], [3, 4]]), "4x4"),
        (
            lambda c: c["frames"][0].update(transform_matrix=np.diag([2, 2, 2, 1]).tolist()),
            "rotation",
        ),
        (lambda c: c.update(fl_x=0), "positive"),
        (lambda c: c.update(fl_x="wide"), "'fl_x' is no number"),
        (lambda c: c.pop("fl_x"), "camera_angle_x"),
        (lambda c: c.update(k4=0.1), "k4"),
        (lambda c: c.update(camera_model="EQUIRECTANGULAR"), "EQUIRECTANGULAR"),
    ],
)
def test_bad_content(scene, change, message):
    content, save, _ = scene
    change(content)
    with pytest.raises(DataError, match=message):
        save(split="all")


def test_bad_files_and_options(scene):
    _, save, path = scene
    with pytest.raises(DataError, match=r"neither transforms\.json.*it holds images"):
        TransformsDataset(TransformsConfig(root=str(path)))
    (path / "transforms.json").write_text("{")
    with pytest.raises(DataError, match="no valid JSON"):
        TransformsDataset(TransformsConfig(root=str(path)))
    with pytest.raises(ConfigError, match="split"):
        save(split="tset")
    with pytest.raises(ConfigError, match="unit"):
        save(unit="inch")
    with pytest.raises(ConfigError, match="holdout"):
        save(holdout=-1)
    assert save(unit="metre").unit == "metre"

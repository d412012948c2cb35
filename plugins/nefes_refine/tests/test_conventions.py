"""Perfect predictions in the convention of the official DFNets decode to the true pose; scene constants."""

import numpy as np
import pytest
import torch
from nefes_refine.config import NefesConfig, SceneConfig, ViewConfig
from nefes_refine.estimator import NefesEstimator
from nefes_refine.field.constants import scene_constants
from nefes_refine.field.scene import Scene, measure_scene
from nefes_refine.field.training import enlarged
from nefes_refine.field.views import make_view
from nefes_refine.published.dfnet import DFNet, DFNetFeatures
from nefes_refine.published.recipe import image_steps, with_focal

from reloc_core.errors import ConfigError
from reloc_core.geometry import rotation_angle_deg, rotation_from_quaternion, so3_exp
from reloc_core.interfaces import Runtime
from reloc_core.mapping.views import pixel_rays
from reloc_core.types import Camera, Query

MIRROR = np.diag([1.0, -1.0, -1.0, 1.0])
# 7-Scenes, redkitchen, original poses: average pose as published.
KITCHEN = np.array(
    [
        [0.939792368, 0.172081622, -0.295259583, 0.106821576],
        [-0.155319464, 0.98465996, 0.079502368, -0.475905329],
        [0.304411186, -0.0288561585, 0.952103541, 0.977119283],
        [0, 0, 0, 1],
    ]
)


def points_around(centers):
    rng = np.random.default_rng(0)
    return centers.mean(0) + rng.uniform(-2, 2, (100, 3))


def pose(rotation, position):
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, position
    return result


class Perfect(DFNet):
    """Says what an official network trained to perfection would say."""

    answer = np.eye(4)

    def raw_poses(self, images):
        return torch.from_numpy(self.answer[:3]).float()[None]


@pytest.mark.parametrize(
    ("name", "to_frame"),
    [
        (
            "7scenes_dslam/redkitchen",
            lambda p, average: MIRROR @ np.linalg.inv(average) @ p @ MIRROR,
        ),
        ("7scenes_sfm/redkitchen", lambda p, average: np.linalg.inv(average) @ p @ MIRROR),
        ("cambridge/OldHospital", lambda p, average: MIRROR @ np.linalg.inv(average) @ p @ MIRROR),
    ],
)
def test_perfect_official_regressors_have_no_error(name, to_frame):
    average = scene_constants(name).average
    if name == "7scenes_dslam/redkitchen":
        np.testing.assert_allclose(average, KITCHEN, atol=0)
    rng = np.random.default_rng(1)
    poses = np.stack(
        [pose(so3_exp(rng.normal(0, 0.7, 3)), rng.normal(0, 1.5, 3)) for _ in range(6)]
    )
    centers = poses[:, :3, 3]
    scene = measure_scene(centers, points_around(centers), SceneConfig(constants=name))
    network = Perfect()
    network.scene = Scene.from_metadata(scene.metadata())  # as a map brings it back
    for truth in poses:
        network.answer = to_frame(truth, average)

        class view:
            image = np.zeros((64, 64, 3), np.uint8)

        found = network.locate(view, torch.zeros(0))
        assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 2e-5
        assert rotation_angle_deg(found[:3, :3], truth[:3, :3]) < 1e-4
        np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-14)
        target = scene.centred(torch.from_numpy(truth)).numpy()
        np.testing.assert_allclose(target, to_frame(truth, average)[:3], atol=1e-8)


def test_official_weights_localize_through_the_whole_estimator(
    tmp_path, make_wall, start_run, monkeypatch
):
    """From a checkpoint file and the scene's name to a map, and from there to poses without error."""
    wall, average = make_wall(12), scene_constants("7scenes_dslam/redkitchen").average
    checkpoint = DFNet()
    torch.save(checkpoint.state_dict(), tmp_path / "checkpoint-kitchen.pt")
    config = NefesConfig()
    config.features, config.regressor.name, config.field.name = "dfnet", "dfnet", "mlp"
    config.view.resolution, config.view.stride = 48, 4
    config.field.coarse_samples, config.field.samples = 4, 4
    training = config.training
    training.colour_steps, training.feature_steps, training.fusion_steps = 1, 1, 1
    training.rays, training.images_per_step, training.patches, training.patch_size = 32, 4, 1, 8
    config.scene.constants = "7scenes_dslam/redkitchen"
    config.regressor.weights = str(tmp_path / "checkpoint-kitchen.pt")
    run = start_run(tmp_path / "map", config, wall)
    NefesEstimator(config).fit(wall, run)
    loaded = NefesEstimator(config)
    loaded.load(run.map.finish(), Runtime(threads=1))
    for number in (0, 7):
        truth = wall[number].world_from_cam
        answer = MIRROR @ np.linalg.inv(average) @ truth @ MIRROR
        monkeypatch.setattr(
            DFNet, "raw_poses", lambda self, images, a=answer: torch.from_numpy(a[:3]).float()[None]
        )
        found = loaded.estimate(wall[number].without_ground_truth()).world_from_cam
        assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 1e-5
        assert rotation_angle_deg(found[:3, :3], truth[:3, :3]) < 1e-4


@pytest.mark.parametrize(
    ("name", "centred", "centre", "rotation"),
    [
        (
            "cambridge/ShopFacade",
            "0.51095843 0.04328448 0.85851490 12.96459293 -0.04544818 0.99869496 -0.02330285 0.08009553 "
            "-0.85840309 -0.02711116 0.51225877 -1.69224679",
            (-0.15781564, -10.41314905, 1.83207428),
            None,
        ),
        (
            "7scenes_sfm/heads",
            "0.97307677 0.08658132 0.21360076 -0.12934327 0.18217376 -0.85664316 -0.48267505 -0.20715869 "
            "0.14118899 0.50859233 -0.84935241 0.32147045",
            None,
            (0.974109, 0.125261, 0.187835, -0.011764),
        ),
    ],
)  # fmt: skip
def test_published_predictions_come_back_to_the_data_set(name, centred, centre, rotation):
    """First test images of the published result files, by the names of their scenes."""
    centers = np.zeros((1, 3))
    scene = measure_scene(centers, points_around(centers), SceneConfig(constants=name))
    rows = torch.tensor([float(v) for v in centred.split()], dtype=torch.float64).view(3, 4)
    found = scene.from_centred(rows[None])[0].numpy()
    if centre is not None:
        np.testing.assert_allclose(found[:, 3], centre, atol=1e-6)
    else:
        expected = rotation_from_quaternion(np.array(rotation)).T
        np.testing.assert_allclose(found[:, :3], expected, atol=3e-6)


# scene: near, far, scale, second scale, shift along z, images of a pass over the field's and regressor's.
SCENES = {
    "chess": (0, 2, 0.5, 1, 1), "fire": (0, 3, 1, 1, 1), "heads": (0, 2.5, 1, 1, 1),
    "office": (0, 2, 0.5, 1, 0.5), "pumpkin": (0, 2.5, 0.5, 1, 1), "redkitchen": (0, 2, 0.5, 1, 0.5),
    "stairs": (0, 4, 1, 1, 0), "KingsCollege": (0, 10, 0.3027, 0.2, 0),
    "OldHospital": (0, 10, 0.3027, 0.2, 5), "ShopFacade": (0, 20, 0.3027, 0.32, 2.5),
    "StMarysChurch": (0, 10, 0.3027, 0.2, 0), "GreatCourt": (0, 10, 0.3027, 0.2, 0),
}  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
def test_scene_constants(scene):
    indoor = scene[0].islower()
    for group in ("7scenes_sfm", "7scenes_dslam") if indoor else ("cambridge",):
        known = scene_constants(f"{group}/{scene}")
        setup = known.setup
        assert (setup.near, setup.far, setup.pose_scale, setup.pose_scale2) == SCENES[scene][:4]
        assert setup.move_all_cam_vec == (0, 0, SCENES[scene][4])
        rotation = known.average[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-8)
        assert np.linalg.det(rotation) > 0
        assert known.sfm == (group == "7scenes_sfm")
        expected = ((1 if scene == "heads" else 2), 5) if indoor else (1, 2)
        config = NefesConfig(scene=SceneConfig(constants=f"{group}/{scene}"))
        assert image_steps(config) == expected
        config.training.frame_step = 3
        assert image_steps(config) == (3, expected[1])


@pytest.mark.parametrize(
    ("name", "width", "focal"),
    [("7scenes_sfm/chess", 640, 526.22 / 2), ("7scenes_dslam/heads", 640, 585 / 2),
     ("cambridge/ShopFacade", 854, 372.0)],
)  # fmt: skip
def test_the_published_grid(name, width, focal):
    """Oracle: the published rays in the field's frame, and PyTorch's resampling of whole images."""
    config = NefesConfig(features="dfnet", scene=SceneConfig(constants=name))
    config.view = ViewConfig(240, 4, "published")
    config = with_focal(config)
    assert config.view.focal == pytest.approx(focal)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (480, width, 3), dtype=np.uint8)
    query = Query("q", Camera.pinhole(700.0, width, 480), image=pixels)
    view = make_view(query, config.view)
    w, h = width // 2 // 4, 60
    assert (view.cells.width, view.cells.height) == (w, h)
    assert view.image.shape == (240, width // 2, 3)
    # Published: d = R ((i - w/2)/f, -(j - h/2)/f, -1), o = s2 (s t + v), (R, t) in the centred frame.
    known = scene_constants(name)
    truth = pose(so3_exp(np.array([0.3, -0.8, 0.2])), [0.4, 0.1, -0.6])
    mirror = np.eye(4) if known.sfm else MIRROR
    centred = mirror @ np.linalg.inv(known.average) @ truth @ MIRROR
    j, i = np.mgrid[:h, :w]
    rays = np.stack([(i - w / 2) / (focal / 4), -(j - h / 2) / (focal / 4), -np.ones((h, w))], -1)
    setup = known.setup
    origin = setup.pose_scale * centred[:3, 3] + setup.move_all_cam_vec
    scene = measure_scene(np.zeros((1, 3)), points_around(np.zeros((1, 3))), config.scene)
    directions = torch.from_numpy(pixel_rays(view.cells).reshape(-1, 3))
    found = scene.rays(torch.from_numpy(truth), directions)
    np.testing.assert_allclose(found[1], rays.reshape(-1, 3) @ centred[:3, :3].T, atol=1e-6)
    np.testing.assert_allclose(found[0][0], setup.pose_scale2 * origin, atol=1e-6)
    image = torch.from_numpy(view.image).permute(2, 0, 1)[None] / 255
    small = torch.nn.functional.interpolate(image, (h, w), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(view.colours(), small[0].permute(1, 2, 0), atol=1e-4)


def test_features_and_renderings_of_the_published_grid():
    torch.manual_seed(0)
    network = DFNet().eval()
    image = np.random.default_rng(0).integers(0, 255, (48, 87, 3), dtype=np.uint8)
    features = DFNetFeatures(network, 4, "published")
    detailed = features.detailed(image)
    assert detailed.shape == (128, 48, 87)
    aligned = torch.nn.functional.interpolate(
        detailed[None], (12, 21), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(features(image), aligned[0])
    torch.testing.assert_close(features(image)[:, -1, -1], detailed[:, -1, -1])
    maps = torch.rand(1, 2, 12, 21)
    stretched = torch.nn.functional.interpolate(maps, (48, 87), mode="bicubic", align_corners=False)
    assert torch.equal(enlarged(maps, (48, 87), "published"), stretched)


def test_unknown_scenes_are_refused():
    with pytest.raises(ConfigError, match="7scenes_sfm/chess"):
        scene_constants("7scenes_sfm/ches")

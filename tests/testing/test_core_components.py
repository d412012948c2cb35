"""The core's own solvers and datasets pass the suites that third parties are held to."""

import json

import cv2
import numpy as np
import pytest

from reloc_core.testing import (
    DatasetConformance,
    EstimatorConformance,
    RefinerConformance,
    SolverConformance,
    write_ace,
)


class TestPnp(SolverConformance):
    component = "pnp"


class TestDsac(SolverConformance):
    component = "dsac"
    tolerance = 1e-3


class TestPrior(SolverConformance):
    component = "prior"


class TestSynthetic(DatasetConformance):
    component = "synthetic"
    options = {"width": 160, "height": 120, "train_frames": 40}  # noqa: RUF012


class TestAce(DatasetConformance):
    component = "ace"
    max_reprojection_px = 1.5

    def write(self, folder, scene):
        write_ace(scene, folder / "train")
        return {"root": str(folder)}


class TestTransforms(DatasetConformance):
    component = "transforms"

    def write(self, folder, scene):
        (folder / "images").mkdir(parents=True)
        frames = []
        for i, query in enumerate(scene):
            cv2.imwrite(str(folder / "images" / f"{i:03d}.png"), query.image[..., ::-1])
            pose = query.world_from_cam @ np.diag([1.0, -1.0, -1.0, 1.0])
            frames.append({"file_path": f"images/{i:03d}.png", "transform_matrix": pose.tolist()})
        camera = scene.frames[0].camera
        content = {
            "fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx + 0.5, "cy": camera.cy + 0.5,
            "w": camera.width, "h": camera.height, "frames": frames,
        }  # fmt: skip
        (folder / "transforms.json").write_text(json.dumps(content))
        return {"root": str(folder), "holdout": 0}


@pytest.mark.usefixtures("toy_plugin_of_class")
class TestToy(EstimatorConformance):
    component = "toy"
    train_frames = 30
    max_median_cm = 150.0
    max_median_deg = 60.0
    test_its_plugin_is_light = None  # it is no installed plugin


@pytest.mark.usefixtures("toy_plugin_of_class")
class TestToyRefinerThatDoesNothing(RefinerConformance):
    component = "toy_push"
    map_from = "toy"
    train_frames = 10
    max_share = 1.001
    test_its_plugin_is_light = None


def test_suites_catch_covariances_that_are_not_honest():
    """Scaled by 5000 or 1e-8, or with rotation and translation swapped."""
    import numpy as np

    from reloc_core.geometry import so3_exp
    from reloc_core.testing.common import check_honest_covariances
    from reloc_core.types import Localization, Status

    rng = np.random.default_rng(0)
    std = np.array([0.002] * 3 + [0.01] * 3)
    covariance = np.diag(std**2)
    poses, found = [], {"honest": [], "modest": [], "sure": [], "swapped": []}
    swap = np.roll(np.arange(6), 3)
    for _ in range(30):
        xi = rng.normal(0, std)
        truth = np.eye(4)
        truth[:3, :3], truth[:3, 3] = so3_exp(xi[:3]), xi[3:]
        poses.append(truth)
        kinds = (covariance, 5000 * covariance, 1e-8 * covariance, covariance[np.ix_(swap, swap)])
        for kind, given in zip(found, kinds, strict=True):
            found[kind].append(Localization(Status.LOCALIZED, world_from_cam=np.eye(4), covariance=given,
                                            score=0.9, num_inliers=9))  # fmt: skip
    check_honest_covariances(found.pop("honest"), poses, 20.0, 5.0)
    for kind, localizations in found.items():
        with pytest.raises(AssertionError, match="squared errors|rotation against"):
            check_honest_covariances(localizations, poses, 20.0, 5.0)
        assert kind


def test_suites_catch_images_that_are_paired_with_others(toy_scene_of_pairs):
    from reloc_core.testing.dataset import DatasetConformance

    right, shifted, swapped = toy_scene_of_pairs
    suite = DatasetConformance()
    suite.test_every_image_has_its_own_pose_and_depth(right)
    for wrong in (shifted, swapped):
        with pytest.raises(AssertionError, match="paired"):
            suite.test_every_image_has_its_own_pose_and_depth(wrong)


@pytest.fixture(scope="module")
def toy_scene_of_pairs():
    """Eight images of the room as they are, shifted by one, and swapped in pairs."""
    from dataclasses import replace

    from reloc_core.datasets.subset import Subset
    from reloc_core.testing.tools import room

    scene = Subset(room("train", 90), range(8))

    class Paired(type(scene)):
        def __init__(self, order):
            super().__init__(room("train", 90), range(8))
            self.order = order

        def __getitem__(self, index):
            return replace(scene[index], image=scene[self.order[index]].image)

    orders = ([0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 0], [1, 0, 3, 2, 5, 4, 7, 6])
    return tuple(Paired(order) for order in orders)

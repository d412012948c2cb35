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

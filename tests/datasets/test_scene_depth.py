"""The scene's depth from points, depth maps and matches, and errors measured by it."""

import json
import math

import cv2
import numpy as np
import pytest
from rich.console import Console

from reloc_core.datasets.base import FileDataset
from reloc_core.datasets.check import check_dataset
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.scene_depth import scene_depth
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.errors import InputError
from reloc_core.evaluation import relative_metrics, summary_table
from reloc_core.evaluation.report import ReportInfo, render_report
from reloc_core.evaluation.results import query_result, result_content
from reloc_core.geometry import lift, transform
from reloc_core.interfaces import Dataset
from reloc_core.types import Frame, Localization, Status


class Without(Dataset):
    """Frames without depth, in another unit of length."""

    def __init__(self, dataset, scale=1.0, pose=None):
        self.dataset, self.scale, self.pose = dataset, scale, pose

    name, unit = "scaled", "scene unit"

    def _scaled(self, index, frame):
        pose = frame.world_from_cam.copy()
        if self.pose is not None:
            pose = self.pose(index)
        pose[:3, 3] *= self.scale
        return pose

    @property
    def frames(self):
        return [
            Frame(f.name, f.camera, self._scaled(i, f), sequence=f.sequence)
            for i, f in enumerate(self.dataset.frames)
        ]

    def __getitem__(self, index):
        query = self.dataset[index]
        return type(query)(
            query.name, query.camera, self.frames[index].world_from_cam, sequence=query.sequence,
            image=query.image,
        )  # fmt: skip


@pytest.fixture(scope="module")
def room():
    return SyntheticDataset(SyntheticConfig(width=320, height=240, train_frames=60))


@pytest.fixture(scope="module")
def true_depth(room):
    maps = [room[i].depth for i in range(0, 60, 6)]
    return float(np.median(np.concatenate([m[m > 0] for m in maps])))


def test_depth_maps(room, true_depth):
    assert scene_depth(room) == pytest.approx(true_depth, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 37.0])
def test_matches(room, true_depth, scale):
    # Key points lie where there is texture, so only about as deep as the pixels do.
    assert scene_depth(Without(room, scale)) == pytest.approx(scale * true_depth, rel=0.3)
    assert scene_depth(Without(room, scale), matching=False) is None


def test_points_of_a_model(room, true_depth, tmp_path):
    cloud = []
    for i in range(0, 60, 6):
        query = room[i]
        y, x = np.mgrid[5:240:20, 5:320:20]
        pixels = np.stack([x.ravel(), y.ravel()], 1).astype(float)
        depth = query.depth[y.ravel(), x.ravel()].astype(float)
        cloud.append(transform(query.world_from_cam, lift(query.camera, pixels, depth)))

    class Model(FileDataset):
        def model_points(self):
            return np.concatenate(cloud)

    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), room[i].image)
    frames = [room.frames[i] for i in range(0, 60, 6)]
    dataset = Model("model", frames, [tmp_path / "0.png"] * len(frames), unit="scene unit")
    # Points behind furniture count too: no more is known of what a camera sees.
    assert scene_depth(dataset) == pytest.approx(true_depth, rel=0.3)


def test_relative_metrics():
    inf, nan = math.inf, math.nan
    found = relative_metrics([0.02, 0.2, inf, nan], [0.05, 3, inf, nan], depth=20.0)
    assert found.median_translation == pytest.approx(0.01)
    assert found.p90_translation == inf
    assert found.recall == {
        "0.1%_0.1deg": 0.0, "0.5%_0.5deg": pytest.approx(1 / 3), "1%_1deg": pytest.approx(1 / 3),
        "5%_5deg": pytest.approx(2 / 3),
    }  # fmt: skip
    assert found.as_dict()["median_translation_percent"] == 1.0
    assert found.as_dict()["p90_translation_percent"] is None
    assert math.isnan(relative_metrics([nan], [nan], 1.0).recall["1%_1deg"])
    for depth in (0.0, -1.0, nan, inf):
        with pytest.raises(InputError, match="depth must be positive"):
            relative_metrics([1.0], [1.0], depth)


def results(dataset, errors):
    found = []
    for frame, error in zip(dataset.frames, errors, strict=False):
        pose = frame.world_from_cam.copy()
        pose[0, 3] += error
        found.append(query_result(frame, Localization(Status.LOCALIZED, world_from_cam=pose)))
    return found


def test_results_and_report_in_percent_of_the_depth(room):
    dataset = Without(room, 100.0)
    found = results(dataset, [0.5, 0.5, 30.0])
    content = json.loads(json.dumps(result_content(found, dataset, 250.0)["metrics"]["relative"]))
    assert content["median_translation_percent"] == pytest.approx(0.2)
    assert content["scene_depth"] == 250
    assert result_content(found, dataset)["metrics"]["relative"] is None
    console = Console(record=True, width=120)
    console.print(summary_table(found, unit="scene unit", depth=250.0))
    text = console.export_text()
    assert "0.200 %" in text
    assert "within 1 % of the depth, 1°" in text
    assert "units" in text
    page = render_report(found, ReportInfo("room", "toy", unit="scene unit", depth=250.0))
    assert "1 % of the depth, 1°" in page
    for unit, depth in (("metre", 250.0), ("scene unit", None)):
        assert "of the depth" not in render_report(
            found, ReportInfo("room", "toy", unit=unit, depth=depth)
        )


def test_check_prints_the_depth(room, true_depth):
    report = check_dataset(Without(room, 10.0), None, None)
    scale = next(f for f in report.findings if f.check == "scale")
    depth = float(scale.message.split("scene at ")[1].split()[0])
    assert depth == pytest.approx(10 * true_depth, rel=0.3)


def test_check_refuses_poses_of_other_images(room):
    order = np.random.default_rng(0).permutation(60)
    shuffled = Without(room, pose=lambda i: room.frames[order[i]].world_from_cam.copy())
    report = check_dataset(shuffled, None, None)
    assert report.level == "error"
    assert any("do not belong to the images" in f.message for f in report.findings)


def test_check_of_one_test_photo(room):
    class One(Without):
        @property
        def frames(self):
            return super().frames[:1]

    report = check_dataset(Without(room), One(room), None)
    assert [f.message for f in report.findings if f.check == "poses" and f.level != "ok"] == []

"""Every method maps and localizes images whose lens distorts, each with its own intrinsics."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from matrix import SIZES, methods

from reloc_core.cli.main import main
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.io.transforms import write_transforms
from reloc_core.registry import default_registry
from reloc_core.types import Camera

# The compact networks of kfnet_temporal learn no room from 30 images; its other measurement sees the
# same lenses through the same code. The gradient steps of nefes_refine take 10 s a query; its alignment renders
# the same field through the same lenses.
INSTEAD = {
    "kfnet_temporal/compact": "kfnet_temporal/memory", "nefes_refine/compact": "nefes_refine/align",
}  # fmt: skip
METHODS = [
    (INSTEAD.get(experiment, experiment), component.name) for experiment, component in methods([])
]
MORE = {
    "kfnet_temporal": ("++estimator.measurement.options.exclusion=3",
                       "++estimator.measurement.options.iterations=40"),
    # What a head of so few steps regresses is wrong, and a calibration refuses it.
    "scr_glace": ("calibration.enabled=false",),
}  # fmt: skip
MINUTES = ("scr_glace", "nefes_regressor")  # even of tiny size
# What a method of tiny size must reach, in cm; regressors of poses only must give poses.
BOUNDS = {"landmarks": 4.0, "gsplat_loc": 5.0, "kfnet_temporal": 15.0}


def lens(camera, index):
    """A pincushion lens, whose rays lie inside the pinhole's view; focal lengths differ."""
    focal = camera.fx * (1.02 + 0.01 * (index % 4))
    center = (camera.cx + index % 3, camera.cy - index % 2)
    params = (focal, focal * 1.01, *center, 0.18, -0.02, 0.003, -0.002)
    return Camera("OPENCV", camera.width, camera.height, params)


def seen_through(camera, query):
    """Image and depth of a rendered pinhole view as the lens shows it; OpenCV undistorts the pixels."""
    x, y = np.meshgrid(np.arange(camera.width, dtype=float), np.arange(camera.height, dtype=float))
    pixels = np.stack([x, y], -1).reshape(-1, 1, 2)
    rays = cv2.undistortPoints(pixels, camera.matrix, np.array(camera.distortion)).reshape(
        (*x.shape, 2)
    )
    pinhole = query.camera
    where = (rays * [pinhole.fx, pinhole.fy] + [pinhole.cx, pinhole.cy]).astype(np.float32)
    image = cv2.remap(query.image, where[..., 0], where[..., 1], cv2.INTER_LINEAR)
    depth = cv2.remap(query.depth, where[..., 0], where[..., 1], cv2.INTER_NEAREST)
    return image, depth


@pytest.fixture(scope="module")
def distorted_room(tmp_path_factory):
    """The embedded room through changing lenses, and the same files with the lenses forgotten."""
    root = tmp_path_factory.mktemp("lenses")
    for split, count in (("train", 30), ("test", 6)):
        room = SyntheticDataset(
            SyntheticConfig(split=split, width=320, height=240, train_frames=30, test_frames=6)
        )
        frames, images, depths = [], [], []
        for i in range(count):
            query = room[i]
            camera = lens(query.camera, i)
            image, depth = seen_through(camera, query)
            images.append(f"images/{split}_{i:04d}.png")
            depths.append(f"depth/{split}_{i:04d}.png")
            for name in ("images", "depth"):
                (root / name).mkdir(exist_ok=True)
            cv2.imwrite(str(root / images[-1]), image[..., ::-1])
            cv2.imwrite(str(root / depths[-1]), np.rint(1000 * depth).astype(np.uint16))
            frames.append(replace(room.frames[i], camera=camera))
        write_transforms(root / f"transforms_{split}.json", frames, images, depths)
        (root / "forgotten").mkdir(exist_ok=True)
        flat = [replace(f, camera=Camera("PINHOLE", 320, 240, f.camera.params[:4])) for f in frames]
        up = [f"../{name}" for name in images]
        write_transforms(
            root / "forgotten" / f"transforms_{split}.json", flat, up, [f"../{d}" for d in depths]
        )
    return root


def median_cm(folder):
    return 100 * json.loads((folder / "result.json").read_text())["metrics"]["median_translation_m"]


@pytest.mark.parametrize(
    ("experiment", "name"),
    [pytest.param(*m, marks=[pytest.mark.long] * (m[1] in MINUTES)) for m in METHODS],
)
def test_distorted_images_with_intrinsics_of_their_own(
    experiment, name, distorted_room, tmp_path, capsys
):
    def run(verb, *more, root=distorted_room):
        code = main([verb, "dataset=transforms", f"dataset.root={root}", "dataset.unit=metre",
                     "threads=1", *more])  # fmt: skip
        assert code == 0, capsys.readouterr().err

    run("train", f"experiment={experiment}", *SIZES["tiny"].get(name, ()), *MORE.get(name, ()),
        f"map_dir={tmp_path / 'map'}", f"output_dir={tmp_path / 'fit'}")  # fmt: skip
    evaluate = (f"map_dir={tmp_path / 'map'}", "dataset.split=test", "report=false")
    run("evaluate", *evaluate, f"output_dir={tmp_path / 'out'}")
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert metrics["queries"] == 6
    if name not in BOUNDS:
        assert metrics["localized"] >= 3
        return
    assert metrics["localized"] == 6
    assert median_cm(tmp_path / "out") < BOUNDS[name]
    if name == "landmarks":
        # Forgetting the lens must cost accuracy, or the scene would prove nothing.
        forgotten = distorted_room / "forgotten"
        run("evaluate", *evaluate, f"output_dir={tmp_path / 'flat'}", root=forgotten)
        assert median_cm(tmp_path / "flat") > 2 * median_cm(tmp_path / "out")


def test_all_estimators_with_a_compact_preset_are_tried():
    tried = {name for _, name in METHODS}
    for component in default_registry().components("estimator"):
        if component.name in tried:
            assert component.name in SIZES["tiny"], "the whole training would take a test's hour"
        elif component.name in SIZES["tiny"]:
            assert component.name == "sfm_matching"

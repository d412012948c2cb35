"""The published schedule: its numbers, and the whole path with the schedule shrunk a hundredfold.

On the synthetic room, and on folders that look like those of the published data sets.
"""

import json
import shutil

import gsplat_loc.mapping.train
import pytest
import yaml
from gsplat_loc.mapping.optimizer import DensityControl, FieldOptimizer

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.config import config_directory, plain
from reloc_core.maps import Map
from reloc_core.testing import room, write_ace

# Method sheet, sections 3.2 to 3.5, 4.1, 4.3 and 5.1; learning rates as published.
PUBLISHED = {
    "image.resolution": 0,
    "init.source": "sfm",
    "init.opacity": 0.1,
    "gaussians.sh_degree": 3,
    "gaussians.sh_interval": 1000,
    "gaussians.max_gaussians": 0,
    "train.iterations": 15_000,
    "train.per_image": 0,
    "train.half_resolution": 0.0,
    "train.lambda_dssim": 0.2,
    "train.lambda_depth": 0.0,
    "train.position_lr_init": 1.6e-4,
    "train.position_lr_final": 1.6e-6,
    "train.position_lr_max_steps": 30_000,
    "train.feature_lr": 2.5e-3,
    "train.opacity_lr": 0.05,
    "train.scaling_lr": 5e-3,
    "train.rotation_lr": 1e-3,
    "densify.interval": 100,
    "densify.start": 500,
    "densify.stop": 15_000,
    "densify.grad_threshold": 2e-4,
    "densify.percent_dense": 0.01,
    "densify.opacity_reset_interval": 3000,
    "densify.min_opacity": 0.005,
    "densify.max_scale": 0.1,
    "densify.scale_pruning_start": 3000,
    "features.mode": "blend",
    "features.learning_rate": 1e-3,
    "match.target": "all",
    "match.keypoints": 1000,
    "match.mutual": False,
    "match.min_similarity": -1.0,
}
SHRUNK = [
    "estimator.gaussians.sh_interval=10", "estimator.train.iterations=150",
    "estimator.train.position_lr_max_steps=300", "estimator.densify.interval=30",
    "estimator.densify.start=5", "estimator.densify.stop=150",
    "estimator.densify.opacity_reset_interval=70", "estimator.densify.scale_pruning_start=30",
    "estimator.features.iterations=25", "estimator.features.images=6",
    "estimator.init.source=depth", "estimator.init.count=1500", "estimator.anchors.images=10",
]  # fmt: skip
ROOM = ["dataset=synthetic", "dataset.width=160", "dataset.height=120", "dataset.train_frames=20",
        "dataset.test_frames=2", "threads=1"]  # fmt: skip


# Preset, number of steps of the warp (sections 1.1 and 12: more outdoors), scenes of the published tables.
INDOOR = ["chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"]
OUTDOOR = ["KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch"]
PRESETS = [
    ("gsplat_loc/paper", 250, None),
    ("paper/gsplat_7scenes_sfm", 250, INDOOR),
    ("paper/gsplat_cambridge", 350, OUTDOOR),
]


@pytest.mark.parametrize(("preset", "warp_iters", "scenes"), PRESETS)
def test_numbers_are_the_published_ones(preset, warp_iters, scenes):
    verb = "train" if scenes is None else "benchmark"
    data = ROOM if scenes is None else ["root=DATA"]
    cfg = plain(compose(verb, [f"experiment={preset}", *data, "map_dir=unused"]))
    for path, expected in PUBLISHED.items():
        value = cfg["estimator"]
        for key in path.split("."):
            value = value[key]
        assert (
            value == pytest.approx(expected) if isinstance(expected, float) else value == expected
        ), path
    assert (cfg["solver"]["threshold"], cfg["solver"]["max_iterations"]) == (8.0, 20_000)
    (refiner,) = cfg["refiners"]
    expected = {"mode": "features+warp", "rounds": 5, "keypoints": 1000, "warp_lr": 1e-3,
                "warp_iters": warp_iters, "warp_safe": False}  # fmt: skip
    assert {key: refiner[key] for key in expected} == expected
    if scenes is not None:
        file = config_directory() / "experiment" / f"{preset}.yaml"
        listed = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]["scene"]
        assert listed.split(",") == scenes


@pytest.fixture
def witnessed(monkeypatch):
    """What the schedule did: rounds as (iteration, before, after), resets, degrees in use."""
    seen = {"rounds": [], "resets": [], "degrees": []}
    round_, reset, draw = (
        DensityControl.round,
        FieldOptimizer.reset_opacity,
        gsplat_loc.mapping.train.draw,
    )

    def spy_round(self, optimizer, iteration):
        before = len(optimizer["means"])
        round_(self, optimizer, iteration)
        seen["rounds"].append((iteration, before, len(optimizer["means"])))

    def spy_reset(self):
        reset(self)
        seen["resets"].append(float(self["opacities"].detach().sigmoid().max()))

    def spy_draw(*arguments):
        seen["degrees"].append(arguments[-1])
        return draw(*arguments)

    monkeypatch.setattr(DensityControl, "round", spy_round)
    monkeypatch.setattr(FieldOptimizer, "reset_opacity", spy_reset)
    monkeypatch.setattr(gsplat_loc.mapping.train, "draw", spy_draw)
    return seen


def test_the_whole_path(witnessed, tmp_path):
    code = main(["train", "experiment=gsplat_loc/paper", *ROOM, *SHRUNK,
                 f"map_dir={tmp_path / 'map'}", f"output_dir={tmp_path / 'fit'}"])  # fmt: skip
    assert code == 0
    rounds = witnessed["rounds"]
    assert [iteration for iteration, _, _ in rounds] == list(range(30, 150, 30))
    assert rounds[-1][2] > rounds[0][1]
    # After a reset to 0.01, what does not recover is removed.
    assert any(after < before for _, before, after in rounds)
    assert witnessed["resets"] == pytest.approx([0.01, 0.01], abs=1e-6)
    assert [witnessed["degrees"].index(d) + 1 for d in range(4)] == [1, 10, 20, 30]
    assert max(witnessed["degrees"]) == 3
    code = main(["evaluate", f"map_dir={tmp_path / 'map'}", *ROOM, "dataset.split=test",
                 f"output_dir={tmp_path / 'out'}", "report=false"])  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["queries"] == 2
    lines = (tmp_path / "out" / "localizations.jsonl").read_text().splitlines()
    assert any("refine.gsplat_loc" in line for line in lines)


# As `reloc data fetch` leaves them: names, image sizes, colour only, the focal length of every image.
PLACES = {
    "paper/gsplat_7scenes_sfm": ("pgt_7scenes_chess", 640, 480, "seq-{:02d}-frame-{:06d}"),
    "paper/gsplat_cambridge": ("Cambridge_KingsCollege", 854, 480, "seq{}_frame{:05d}"),
}
FEW_STEPS = [
    "estimator.train.iterations=2", "estimator.features.iterations=1", "estimator.init.count=800",
    "estimator.init.min_points=50", "estimator.anchors.resolution=240",
    "estimator.anchors.keypoints=500", "estimator.features.resolution=120", "threads=1",
    "report=false",
]  # fmt: skip


def write_place(folder, width, height, stem):
    for split, count in (("train", 10), ("test", 1)):
        write_ace(room(split, 10, width, height, depth=False), folder / "whole" / split)
        for kind, end in (("rgb", "color.png"), ("poses", "pose.txt"),
                          ("calibration", "calibration.txt")):  # fmt: skip
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                source = folder / "whole" / split / kind / f"frame-{number:06d}.{end}"
                source.rename(folder / split / kind / f"{stem.format(1, number)}.{end}")
    shutil.rmtree(folder / "whole")


@pytest.mark.parametrize("preset", PLACES)
def test_presets_train_on_folders_of_their_data_sets(preset, tmp_path):
    """From images and poses alone, with nothing of an SfM model beside them."""
    name, width, height, stem = PLACES[preset]
    write_place(tmp_path / name, width, height, stem)
    code = main(["benchmark", f"experiment={preset}", f"root={tmp_path}", *FEW_STEPS,
                 f"output_dir={tmp_path / 'out'}"])  # fmt: skip
    assert code == 0
    details = Map.open(tmp_path / "out" / "map").info.details
    assert details["start"] == "triangulate"
    assert details["gaussians"] >= 50
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["queries"] == 1

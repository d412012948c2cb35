"""The published preset: its constants, and that its training starts on a folder of the true shape."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.estimator import TemporalEstimator
from kfnet_temporal.filtering.kalman import State
from kfnet_temporal.filtering.process import Motion
from kfnet_temporal.filtering.tracker import Tracker
from kfnet_temporal.published import measurement, scoordnet, training
from kfnet_temporal.published.measurement import ScoordnetEstimator
from kfnet_temporal.published.oflownet import OFlowNet
from kfnet_temporal.published.schedule import STEP_VALUES

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.config import typed_config
from reloc_core.errors import ConfigError
from reloc_core.registry import default_registry
from reloc_core.types import Camera

PRESET = "paper/kfnet_7scenes_dslam"

# As in the public code, by option of the estimator.
TABLE = {
    "measurement.name": "kfnet_scoordnet", "process.name": "oflownet", "process.resolution": 480,
    "process.iterations": 500_000, "process.learning_rate": 1e-4, "process.halve_every": 100_000,
    "process.weight_decay": 1e-4, "process.smooth_weight": 50.0, "process.photometric_weight": 2.0,
    "process.loss_clamp": -1.0, "process.noise": [0.0, 0.0], "process.augment": True,
    "joint.window": 4, "joint.weights": [0.2, 0.2, 0.6], "joint.loss_clamp": -2.0,
    "joint.smooth_weight": 50.0, "joint.fix_process": False, "filter.process_factor": 1.0,
    "filter.fading": 1.0, "filter.threshold": 7.815, "filter.common_gain": 0.0,
    "filter.min_overlap": 0.0, "filter.lost_share": 1.0, "filter.max_gap": 1e9,
}  # fmt: skip
FIRST_STAGE = {
    "resolution": 480,
    "batch": 4,
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "augment": True,
}
THOUSANDS = {"chess": 100, "fire": 30, "heads": 60, "office": 100, "pumpkin": 100, "redkitchen": 100,
             "stairs": 100}  # fmt: skip


def configured(scene):
    cfg = compose("benchmark", [f"experiment={PRESET}", "root=R", f"scene={scene}"])
    component = default_registry().get("estimator", "kfnet_temporal")
    options = {k: v for k, v in cfg.estimator.items() if k != "_target_"}
    return cfg, typed_config(component, options)


def test_constants_are_the_published_ones():
    cfg, config = configured("chess")
    for key, value in TABLE.items():
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value, key
    stage = TemporalEstimator(config).measurement.config
    for key, value in FIRST_STAGE.items():
        assert getattr(stage, key) == value, key
    # Poses are solved per frame; nothing is filtered behind the cells.
    assert list(cfg.refiners) == []


def test_the_filter_never_starts_anew():
    """Nothing found again, every cell contradicts the measurement, for many frames: it goes on (sheet 2.7)."""
    cells = torch.zeros(3, 6, 8)
    variance = torch.full((6, 8), 1e-4)
    tracker = Tracker(configured("chess")[1].filter)
    tracker.start(State(cells, variance), "start")
    motion = Motion(torch.zeros(2, 6, 8), torch.zeros(1, 6, 8), torch.zeros(6, 8))
    for number in range(1, 8):
        step = tracker.step(
            State(cells + 10.0 * number, variance), motion, torch.full((6, 8), 1e-3)
        )
        assert step.event == ""
        assert step.prior is not None
        assert bool(step.rejected[:-1, :-1].all())


@pytest.mark.parametrize("scene", THOUSANDS)
def test_every_scene_has_its_published_steps(scene):
    estimator = TemporalEstimator(configured(scene)[1])
    steps = 1000 * THOUSANDS[scene]
    first, joint = estimator.measurement.config, estimator.config.joint
    assert (first.iterations, first.halve_every) == (5 * steps, steps)
    assert (joint.iterations, joint.halve_every) == (steps, steps)
    # Stage 2 learns from all scenes together.
    assert estimator.config.process.iterations == 500_000
    # The learning rate goes on falling where stage 1 was after four step values.
    assert joint.rate(0) == pytest.approx(first.rate(4 * steps))
    assert joint.rate(steps) == pytest.approx(first.rate(5 * steps))


def test_scenes_are_those_of_the_sweep():
    text = (Path(__file__).parents[3] / "conf" / "experiment" / f"{PRESET}.yaml").read_text()
    assert set(yaml.safe_load(text)["hydra"]["sweeper"]["params"]["scene"].split(",")) == set(
        STEP_VALUES
    )
    with pytest.raises(ConfigError, match="published_scene is 'kitchen'"):
        TemporalEstimator(TemporalConfig(published_scene="kitchen"))


@pytest.fixture
def room(tmp_path, film):
    """What `reloc data fetch 7scenes poses=dslam depth=registered` makes, of a few frames."""
    folder = tmp_path / "data" / "7scenes_fire"
    camera = Camera.pinhole(525.0, 640, 480)
    for split, sequence in (("train", 1), ("test", 3)):
        for part in ("rgb", "poses", "calibration", "depth"):
            (folder / split / part).mkdir(parents=True)
        data = film(5)
        for i in range(5):
            query = data[i]
            stem = f"seq-{sequence:02d}-frame-{i:06d}"
            image = cv2.resize(query.image, (640, 480))[..., ::-1]
            cv2.imwrite(str(folder / split / "rgb" / f"{stem}.color.png"), image)
            np.savetxt(folder / split / "poses" / f"{stem}.pose.txt", query.world_from_cam)
            (folder / split / "calibration" / f"{stem}.calibration.txt").write_text(
                f"{camera.fx}\n"
            )
            depth = cv2.resize(query.depth, (640, 480), interpolation=cv2.INTER_NEAREST)
            millimetres = (1000 * depth).astype(np.uint16)
            cv2.imwrite(str(folder / split / "depth" / f"{stem}.depth.png"), millimetres)
    return tmp_path


def test_the_training_starts_on_a_folder_of_the_true_shape(room, monkeypatch, capsys):
    """All three stages: their first step at full resolution, with the networks' widths cut."""
    layers = [(n, k, max(4, o // 32) if o > 4 else o, s) for n, k, o, s in scoordnet.LAYERS]
    monkeypatch.setattr(scoordnet, "LAYERS", tuple(layers))
    monkeypatch.setattr(OFlowNet.__init__, "__defaults__", (8,))
    taken = {}

    def one_step(
        run, title, checkpoint, stage, count, modules, optimizer, step_loss, rate, max_norm=None
    ):
        loss = step_loss(0)
        loss.backward()
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        taken[stage] = (count, rate(0), float(loss.detach()))
        checkpoint.finish(stage, {})
        return {}

    monkeypatch.setattr(measurement, "train_steps", one_step)
    monkeypatch.setattr(training, "train_steps", one_step)
    monkeypatch.chdir(room)
    shapes = set()
    measure = ScoordnetEstimator.measure
    monkeypatch.setattr(
        ScoordnetEstimator, "measure",
        lambda self, images: shapes.add(tuple(images.shape)) or measure(self, images),
    )  # fmt: skip
    code = main(["benchmark", f"experiment={PRESET}", "scene=fire", "root=data", "map_dir=map",
                 "output_dir=out", "threads=1", "report=false"])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert {stage: values[:2] for stage, values in taken.items()} == {
        "scoordnet": (150_000, 1e-4), "oflow": (500_000, 1e-4), "kfnet": (30_000, 6.25e-6),
    }  # fmt: skip
    # A batch of four images, then windows of four; single images when the test split is localized.
    assert shapes == {(4, 3, 480, 640), (1, 3, 480, 640)}
    assert all(np.isfinite(values[2]) for values in taken.values())

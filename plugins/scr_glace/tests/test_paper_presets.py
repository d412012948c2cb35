"""The published recipes: their constants, and that each starts training on its dataset's true shape."""

import cv2
import numpy as np
import pytest
import torch
from scr_glace.networks import r2former
from scr_glace.networks.encoder import AceEncoder
from scr_glace.networks.r2former import R2Former

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.config import experiments

# Of every published recipe (supplements and training scripts of ACE and GLACE).
COMMON = {
    "encoder.name": "ace", "image.resolution": 480, "augment.rotation_deg": 15, "augment.scale": 1.5,
    "augment.brightness": 0.1, "augment.contrast": 0.1, "buffer.samples_per_image": 1024,
    "loss.type": "dyntanh", "loss.schedule": "circle", "loss.soft_clamp": 50, "loss.soft_clamp_min": 1,
    "loss.hard_clamp": 1000, "loss.depth_min": 0.1, "loss.depth_target": 10, "loss.depth_max": 1000,
    "optimizer.learning_rate_max": 0.005, "optimizer.warmup": 0.3, "optimizer.weight_decay": 0.01,
    "head.homogeneous": True, "points.enabled": False, "global_descriptor.neighbours": 0,
    "optimizer.respect_lr_min": False, "image.portrait_focal_defect": True,
}  # fmt: skip
ACE = {
    "global_descriptor.name": "none", "head.channels": 512, "head.blocks": 1, "head.mlp_ratio": 1,
    "head.decoder_clusters": 1, "buffer.size": 8_000_000, "train.batch_size": 5120,
    "train.iterations": 25_000, "hypotheses": 64,
}  # fmt: skip
GLACE = {
    "global_descriptor.name": "r2former", "global_descriptor.noise_std": 0.1, "head.channels": 768,
    "head.blocks": 1, "head.mlp_ratio": 1, "head.decoder_clusters": 1, "buffer.size": 16_000_000,
    "train.batch_size": 5120, "train.iterations": 30_000, "hypotheses": 64,
}  # fmt: skip
# One GPU's batch and buffer times the GPUs of the recipe, since here both count all processes.
CAMBRIDGE = {
    **GLACE,
    "head.blocks": 2,
    "train.batch_size": 4 * 40_960,
    "buffer.size": 4 * 16_000_000,
}
AACHEN = {
    **GLACE, "head.blocks": 3, "head.mlp_ratio": 2, "head.decoder_clusters": 50,
    "train.batch_size": 8 * 40_960, "buffer.size": 8 * 16_000_000, "train.iterations": 100_000,
    "hypotheses": 3200,
}  # fmt: skip
ROOMS = {
    **GLACE, "head.decoder_clusters": 50, "train.batch_size": 40_960, "train.iterations": 100_000,
}  # fmt: skip
PRESETS = {
    "ace_7scenes_dslam": ACE, "ace_7scenes_sfm": ACE, "ace_12scenes_dslam": ACE,
    "ace_12scenes_sfm": ACE, "ace_cambridge": ACE, "ace_wayspots": ACE,
    "glace_7scenes_dslam": GLACE, "glace_7scenes_sfm": GLACE, "glace_12scenes_dslam": GLACE,
    "glace_12scenes_sfm": GLACE, "glace_cambridge": CAMBRIDGE, "glace_aachen": AACHEN, "glace_rooms": ROOMS,
}  # fmt: skip
# Stored images (width, height) and focal length, as the datasets' set-up writes them.
SHAPES = {
    "7scenes_dslam": ("7scenes_chess", (640, 480), 525.0),
    "7scenes_sfm": ("pgt_7scenes_chess", (640, 480), 525.505),
    "12scenes_dslam": ("12scenes_apt1_kitchen", (1296, 968), 1155.915),
    "12scenes_sfm": ("pgt_12scenes_apt1_kitchen", (1296, 968), 1155.915),
    "cambridge": ("Cambridge_GreatCourt", (854, 480), 741.0),
    "wayspots": ("wayspots_squarebench", (640, 480), 497.0),
    "aachen": ("aachen", (480, 721), 480.0),
    "rooms": ("pgt_7scenes_heads", (640, 480), 525.505),
}


def test_every_preset_is_in_the_table():
    here = {
        n.removeprefix("paper/")
        for n in experiments()
        if n.startswith(("paper/ace", "paper/glace"))
    }
    assert here == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_constants(name):
    cfg = compose("benchmark", [f"experiment=paper/{name}", "root=R"])
    expected = {**COMMON, **PRESETS[name]}
    assert cfg.solver._target_ == "dsac"
    assert cfg.solver.get("hypotheses", 64) == expected.pop("hypotheses")
    for key, value in expected.items():
        node = cfg.estimator
        for part in key.split("."):
            node = node[part]
        assert node == value, key


@pytest.mark.parametrize("name", PRESETS)
def test_the_solver_measures_in_the_image_of_480(name):
    solver = compose("benchmark", [f"experiment=paper/{name}", "root=R"]).solver
    published = {
        "threshold": 10, "alpha": 100, "max_error": 100, "max_tries": 1_000_000, "refine_steps": 100,
    }  # fmt: skip
    assert {k: solver[k] for k in published} == published
    # The sets whose images are stored in another size: 12Scenes, of which the rooms are partly made.
    stored = min(SHAPES[name.partition("_")[2]][1])
    needed = stored != 480 or name == "glace_rooms"
    assert solver.reference_side == (480 if needed else None)


def write_scene(root, size, focal):
    """Images of blurred noise with poses on a line, train (8) and test (1), as ACE's set-up stores them."""
    rng = np.random.default_rng(0)
    width, height = size
    for split, count in (("train", 8), ("test", 1)):
        for folder in ("rgb", "poses", "calibration"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            coarse = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
            image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / split / "rgb" / f"{i:03d}.png"), image)
            pose = np.eye(4)
            pose[0, 3] = 0.1 * i
            np.savetxt(root / split / "poses" / f"{i:03d}.txt", pose)
            (root / split / "calibration" / f"{i:03d}.txt").write_text(f"{focal}\n")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Networks of the published layout with random weights; R2Former's for a quarter of its tokens."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r2former, "_SIZE", (240, 320))
        yield write_weights(folder)


def write_weights(folder):
    torch.manual_seed(0)
    torch.save(AceEncoder().state_dict(), folder / "encoder.pt")
    state = {f"module.backbone.{k}": v for k, v in R2Former().state_dict().items()}
    torch.save({"model_state_dict": state}, folder / "r2former.pth")
    return folder


@pytest.mark.parametrize("name", PRESETS)
def test_training_starts_on_the_true_shape(name, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kind, _, dataset = name.partition("_")
    expected = PRESETS[name]
    folder, size, focal = SHAPES[dataset]
    write_scene(tmp_path / "data" / folder, size, focal)
    arguments = [
        "benchmark", f"experiment=paper/{name}", "root=data", "output_dir=out", "report=false",
        f"estimator.encoder.weights={weights / 'encoder.pt'}", "threads=1",
        # Two visits and two steps; a head as wide as published, on smaller copies of the images.
        "estimator.image.resolution=120", "++calibration.enabled=false",
        "estimator.buffer.size=2048", "estimator.train.batch_size=1024",
        "estimator.train.iterations=2", "estimator.train.precision=fp32",
        "solver.max_tries=16",  # the untrained head's points fit no pose
    ]  # fmt: skip
    if kind == "glace":
        arguments.append(f"estimator.global_descriptor.weights={weights / 'r2former.pth'}")
    if name == "glace_rooms":
        write_scene(tmp_path / "data" / "pgt_7scenes_fire", size, focal)
        (tmp_path / "two.txt").write_text(f"{folder} 0.1 0.1 0.8\npgt_7scenes_fire -0.4 0.2 1.7\n")
        arguments.append("dataset.list_file=two.txt")
    if expected["head.decoder_clusters"] > 1:  # no more centres than camera positions
        arguments.append("estimator.head.decoder_clusters=8")
    code = main(arguments)
    assert code == 0, capsys.readouterr().err
    found = next((tmp_path / "out").rglob("head.safetensors"))
    # Trained as wide and deep as published: fp16 weights of the head's size.
    least = 2 * expected["head.channels"] ** 2 * (4 + 3 * expected["head.blocks"])
    assert found.stat().st_size > least

"""Presets under conf/experiment/paper of the regression methods: constants, and a start of their training.

The folders have the true shapes of the data sets; only sizes of networks and images and numbers of steps are cut.
"""

import json

import cv2
import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.datasets.config import SyntheticConfig

torch = pytest.importorskip("torch")
pytest.importorskip("gnn_relpose")
pytest.importorskip("nefes_refine")

# As published, by option; a scene in brackets where constants depend on it.
_FIELD = {
    "features": "dfnet", "view.resolution": 240, "view.stride": 4, "view.grid": "published", "field.name": "mlp", "field.width": 128,
    "field.coarse_samples": 64, "field.samples": 64, "field.histogram_bins": 10,
    "field.histogram_of_image": True, "field.transient_at_test": True, "training.epochs": True, "training.colour_steps": 601,
    "training.feature_steps": 200, "training.fusion_steps": 401, "training.images_per_step": 4,
    "training.rays": 4 * 1536, "training.patches": 7, "training.patch_size": 16,
    "training.learning_rate": 5e-4, "training.decay": 8.0e-5 / 5e-4, "training.restart_schedule": True,
    "training.feature_weight": 0.04, "training.transient_weight": 0.01, "training.depth_weight": 0,
    "regressor.learning_rate": 1e-4, "regressor.epochs": 2000, "regressor.patience": 50,
    "regressor.stop_patience": 200, "regressor.batch": 4, "regressor.refresh_every": 20,
    "regressor.triplet_margin": 1, "regressor.triplet_weight": 1,
}  # fmt: skip
_INDOOR = {"regressor.translation": 0.2, "regressor.rotation_deg": 10, "regressor.box_margin": 0.2}
_OUTDOOR = {"regressor.translation": 3, "regressor.rotation_deg": 7.5, "regressor.box_margin": 1}
_GRAPH = {
    "height": 256, "graph.neighbours": 7, "graph.dropout": 0.5, "graph.random_start": True,
    "graph.spacing": 0, "network.channels": 2048, "network.dropout": 0.5, "network.test_dropout": True,
    "train.batch_size": 8, "train.decay": 0.1, "train.weight_decay": 5e-4, "train.translation_weight": 0,
}  # fmt: skip
TABLE = {
    "gnn_7scenes_dslam": {
        **_GRAPH, "graph.period": 5, "network.recursions": 3, "network.neighbours": 0,
        "constants": "7scenes/heads", "train.learning_rate": 5e-5, "train.decay_step": 20,
        "train.rotation_weight": -3, "train.color_jitter": 0,
    },
    "gnn_cambridge": {
        **_GRAPH, "graph.period": 3, "network.recursions": 2, "network.neighbours": 4,
        "constants": "cambridge", "train.learning_rate": 1e-4, "train.decay_step": 50,
        "train.rotation_weight": -2, "train.color_jitter": 0.5,
    },
    "nefes_7scenes_dslam": {**_FIELD, **_INDOOR, "scene.constants": "7scenes_dslam/heads"},
    "nefes_7scenes_sfm": {**_FIELD, **_INDOOR, "scene.constants": "7scenes_sfm/heads"},
    "nefes_cambridge": {**_FIELD, **_OUTDOOR, "scene.constants": "cambridge/ShopFacade"},
}  # fmt: skip
# mode, iterations, learning rate, verification
REFINED = {"indoor": ("weights", 50, 1e-5, True), "outdoor": ("weights", 50, 1e-5, False)}


def scene_of(name):
    return "heads" if "7scenes" in name else "ShopFacade"


@pytest.mark.parametrize("name", TABLE)
def test_constants_are_the_published_ones(name):
    cfg = compose("benchmark", [f"experiment=paper/{name}", "root=R", f"scene={scene_of(name)}"])
    for key, value in TABLE[name].items():
        found = cfg.estimator
        for part in key.split("."):
            found = found[part]
        assert found == (pytest.approx(value) if isinstance(value, float) else value), key
    if name.startswith("nefes"):
        refiner = cfg.refiners[0]
        expected = REFINED["outdoor" if "cambridge" in name else "indoor"]
        found = (
            refiner.mode,
            refiner.iterations,
            refiner.learning_rate,
            refiner.get("verify", True),
        )
        assert not found[3] or refiner.verify_ends
        assert found == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A room in the folders that `reloc data fetch` makes: 640x480 sequences, 854x480 photographs."""
    from reloc_core.datasets.synthetic import SyntheticDataset

    root = tmp_path_factory.mktemp("data")
    for names, size, stem in (
        (("original_7scenes_heads", "pgt_7scenes_heads"), (640, 480), "seq-02-frame-{:06d}.color"),
        (("Cambridge_ShopFacade",), (854, 480), "seq1_frame{:05d}"),
    ):
        for split, count in (("train", 10), ("test", 2)):
            config = SyntheticConfig(
                split=split, width=size[0], height=size[1], train_frames=10, test_frames=2
            )
            dataset = SyntheticDataset(config)
            for i in range(count):
                query = dataset[i]
                for name in names:
                    folder = root / name / split
                    for part in ("rgb", "poses", "calibration"):
                        (folder / part).mkdir(parents=True, exist_ok=True)
                    file = stem.format(i)
                    cv2.imwrite(str(folder / "rgb" / f"{file}.png"), query.image[..., ::-1])
                    np.savetxt(folder / "poses" / f"{file}.txt", query.world_from_cam)
                    (folder / "calibration" / f"{file}.txt").write_text(f"{query.camera.fx}\n")
    return root


def weights(folder, name):
    """Files where `reloc weights get` puts them, of untrained networks."""
    if name.startswith("gnn"):
        from gnn_relpose.published.network import PublishedNetwork

        torch.manual_seed(0)
        which = "relpose_gnn_cambridge" if "cambridge" in name else "relpose_gnn"
        file = "_epoch_149" if "cambridge" in name else "__multi_39"
        path = folder / "weights" / which / f"{which}{file}.pth.tar"
        path.parent.mkdir(parents=True)
        torch.save({"model_state_dict": PublishedNetwork(16).state_dict()}, path)
        return ["estimator.network.channels=16", "estimator.height=64", "estimator.train.epochs=1"]
    from nefes_refine.published.dfnet import DFNet, vgg16_layers

    path = folder / "weights" / "vgg16" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({f"features.{k}": v for k, v in vgg16_layers().state_dict().items()}, path)
    if name == "nefes_7scenes_sfm":
        other = folder / "weights/nefes_models/dfnet/DFNet_heads/checkpoint-heads.pt"
        other.parent.mkdir(parents=True)
        torch.save(DFNet().state_dict(), other)
    verify = "false" if "cambridge" in name else "true"
    return [
        "estimator.view.resolution=48", "estimator.field.coarse_samples=4", "estimator.field.samples=4",
        "estimator.training.colour_steps=1", "estimator.training.feature_steps=1",
        "estimator.training.fusion_steps=1", "estimator.training.rays=64", "estimator.training.patches=1",
        "estimator.training.patch_size=8", "estimator.regressor.epochs=1",
        "estimator.regressor.frame_step=1", "estimator.training.frame_step=1",
        f"refiners=[{{name: nefes_refine, mode: weights, iterations: 1, verify: {verify}}}]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    # The same code as of the SfM poses, less the second DFNet.
    [pytest.param(n, marks=[pytest.mark.long] * (n == "nefes_7scenes_dslam")) for n in TABLE],
)
def test_presets_start_their_training(name, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    smaller = weights(tmp_path, name)
    code = main(
        ["benchmark", f"experiment=paper/{name}", f"scene={scene_of(name)}", f"root={folders}",
         "output_dir=out", "report=false", "threads=1", *smaller]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "ok"
    assert result["metrics"]["queries"] == 2
    assert (tmp_path / "out" / "map" / "map.yaml").is_file()
    if name.startswith("gnn"):  # and not only the scene indexed by the released network
        assert '"step"' in (tmp_path / "out" / "log.jsonl").read_text()


def test_the_second_dfnet_of_sfm_poses_is_asked_for(folders, tmp_path, monkeypatch, capsys):
    """Its features are those of the original poses, so nothing may stand in for it silently."""
    pytest.importorskip("nefes_refine")
    monkeypatch.chdir(tmp_path)
    smaller = weights(tmp_path, "nefes_7scenes_sfm")
    other = tmp_path / "weights/nefes_models/dfnet/DFNet_heads/checkpoint-heads.pt"
    other.unlink()
    code = main(
        ["benchmark", "experiment=paper/nefes_7scenes_sfm", "scene=heads", f"root={folders}",
         "output_dir=out", "report=false", "threads=1", *smaller]
    )  # fmt: skip
    assert code == 2
    assert "DFNet_heads/checkpoint-heads.pt" in capsys.readouterr().err

"""`reloc weights import`: from files as NeFeS writes them to a map that localizes in its convention."""

import numpy as np
import pytest
import torch
from nefes_refine.config import NefesConfig, RefineConfig
from nefes_refine.estimator import NefesEstimator
from nefes_refine.field.constants import scene_constants
from nefes_refine.field.scene import Scene
from nefes_refine.plugin import reloc_register_components
from nefes_refine.published.dfnet import DFNet
from nefes_refine.published.importing import import_weights
from nefes_refine.published.mlp_field import PaperField
from nefes_refine.refine.refiner import NefesRefiner
from nefes_refine.target import Target

from reloc_core.errors import ConfigError
from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Runtime
from reloc_core.registry import Registry

MIRROR = np.diag([1.0, -1.0, -1.0, 1.0])
NAME = "7scenes_dslam/redkitchen"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A field and two DFNets in files with the official names, and the options that go with them."""
    folder = tmp_path_factory.mktemp("official")
    config = NefesConfig(features="dfnet")
    config.regressor.name, config.field.name = "dfnet", "mlp"
    config.view.resolution, config.view.stride = 48, 4
    config.field.coarse_samples, config.field.samples = 4, 4
    config.scene.constants = NAME
    scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)
    torch.manual_seed(5)
    field = PaperField(config.field, scene, 128)
    content = {
        "global_step": 600,
        "network_fn_state_dict": field.coarse.state_dict(),
        "network_fine_state_dict": field.fine.state_dict(),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }
    torch.save(content, folder / "nefes.tar")
    for name in ("apr", "dfnet"):
        torch.save(DFNet().state_dict(), folder / f"{name}.pt")
    config.regressor.weights = str(folder / "apr.pt")
    config.feature_weights = str(folder / "dfnet.pt")
    return folder / "nefes.tar", config, field


def test_official_files_become_a_map_that_localizes(
    official, tmp_path, make_wall, start_run, monkeypatch
):
    """Oracle: a perfect prediction in the original's frame, and the original's rays at its pose."""
    file, config, field = official
    registry = Registry()
    reloc_register_components(registry=registry)
    assert registry.get("estimator", "nefes_regressor").load_importer() is import_weights
    wall, average = make_wall(12), scene_constants(NAME).average
    run = start_run(tmp_path / "map", config, wall)
    import_weights(file, config, wall, run)
    scene_map = run.map.finish()
    loaded = NefesEstimator(NefesConfig())
    loaded.load(scene_map, Runtime(threads=1))
    view = loaded.bundle.config.view
    assert (view.grid, view.focal) == ("published", pytest.approx(585 / 480 * 48))
    assert loaded.bundle.config.field.histogram_of_image
    for key, value in field.state_dict().items():
        if "running" not in key and "batches" not in key:
            assert torch.equal(loaded.bundle.field.state_dict()[key], value), key
    saved = torch.load(config.feature_weights, weights_only=True)
    assert torch.equal(loaded.bundle.features.network.fc_pose.weight, saved["fc_pose.weight"])
    truth = wall[3].world_from_cam
    answer = MIRROR @ np.linalg.inv(average) @ truth @ MIRROR
    monkeypatch.setattr(
        DFNet, "raw_poses", lambda self, images: torch.from_numpy(answer[:3]).float()[None]
    )
    found = loaded.estimate(wall[3].without_ground_truth()).world_from_cam
    assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 1e-5
    assert rotation_angle_deg(found[:3, :3], truth[:3, :3]) < 1e-4
    # What is rendered there: the original's rays through its field.
    target = Target(loaded.bundle, wall[3])
    rows, columns = target.shape
    y, x = np.mgrid[:rows, :columns]
    focal = view.focal / 4
    rays = [(x - columns / 2) / focal, -(y - rows / 2) / focal, -np.ones((rows, columns))]
    directions = np.stack(rays, -1).reshape(-1, 3) @ answer[:3, :3].T
    origin = torch.tensor(0.5 * answer[:3, 3] + [0, 0, 0.5]).float()
    field.scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)
    with torch.no_grad():
        wanted = field.render(
            origin.expand(len(directions), 3), torch.from_numpy(directions).float(),
            target.histogram[None],
        )  # fmt: skip
        fused = field.fuse(
            *(v.T.unflatten(1, target.shape)[None] for v in (wanted.colour, wanted.features))
        )
    torch.testing.assert_close(target.render(truth)[0].features, fused[0], atol=2e-3, rtol=1e-3)
    refiner = NefesRefiner(RefineConfig(mode="weights", iterations=1, verify_ends=True))
    refiner.load(scene_map, Runtime(threads=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.field, "name", "hashgrid"), "nefes_refine/paper"),
        (lambda c: setattr(c.regressor, "weights", ""), r"regressor\.weights"),
        (lambda c: setattr(c.scene, "constants", ""), r"scene\.constants"),
    ],
)
def test_what_official_weights_need_is_asked_for(official, change, message):
    import copy

    file, config, _ = official
    config = copy.deepcopy(config)
    change(config)
    with pytest.raises(ConfigError, match=message):
        import_weights(file, config, None, None)

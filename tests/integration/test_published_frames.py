"""Official networks of 7Scenes against what their presets fetch: perfect predictions have no error.

DFNet's average poses and RelPose-GNN's pose vectors belong to the pose files as they are published
(nefes sheet, 1.2 and 1.3; relpose_gnn sheet, 1.2).
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
import benchmark_archives as archives

from reloc_core.cli.main import main
from reloc_core.composition import compose
from reloc_core.config import config_directory
from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.geometry import rotation_angle_deg, so3_log

torch = pytest.importorskip("torch")
MIRROR = np.diag([1.0, -1.0, -1.0, 1.0])


def fetched(preset, tmp_path, monkeypatch):
    """The preset's dataset after the fetch command that it names, and the published poses."""
    monkeypatch.chdir(tmp_path)
    content, poses, _ = archives.sevenscenes()
    (tmp_path / "mirror" / "7scenes").mkdir(parents=True)
    (tmp_path / "mirror" / "7scenes" / "heads.zip").write_bytes(content)
    text = (Path(config_directory()) / "experiment" / "paper" / f"{preset}.yaml").read_text()
    command = re.search(r"reloc (data fetch 7scenes .*)", text).group(1).split()
    assert main([*command, "scenes=heads", "partial=true", "mirror=mirror"]) == 0
    cfg = compose("benchmark", [f"experiment=paper/{preset}", "scene=heads", "root=data"])
    dataset = AceDataset(AceConfig(cfg.dataset.root, "train"))
    return cfg, dataset, [poses[2, i] for i in range(3)]


def assert_same(found, truth):
    assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 1e-4
    assert rotation_angle_deg(found[:3, :3], truth[:3, :3]) < 1e-3


def test_dfnet(tmp_path, monkeypatch):
    pytest.importorskip("nefes_refine")
    from nefes_refine.config import SceneConfig
    from nefes_refine.field.constants import scene_constants
    from nefes_refine.field.scene import measure_scene

    cfg, dataset, published = fetched("nefes_7scenes_dslam", tmp_path, monkeypatch)
    name = cfg.estimator.scene.constants
    average = scene_constants(name).average
    centers = np.stack([f.world_from_cam[:3, 3] for f in dataset.frames])
    points = centers.mean(0) + np.random.default_rng(0).uniform(-2, 2, (100, 3))
    scene = measure_scene(centers, points, SceneConfig(constants=name))
    for frame, pose in zip(dataset.frames, published, strict=True):
        answer = MIRROR @ np.linalg.inv(average) @ pose @ MIRROR
        found = scene.from_centred(torch.from_numpy(answer[None, :3]))[0].numpy()
        assert_same(found, frame.world_from_cam)
        assert frame.camera.fx == 585.0  # 585/2 at 320x240


def test_relpose_gnn(tmp_path, monkeypatch):
    pytest.importorskip("gnn_relpose")
    from gnn_relpose.published.constants import constants

    cfg, dataset, published = fetched("gnn_7scenes_dslam", tmp_path, monkeypatch)
    convention = constants(cfg.estimator.constants).convention
    for frame, pose in zip(dataset.frames, published, strict=True):
        half = so3_log(pose[:3, :3]) / 2
        vector = torch.from_numpy(np.concatenate([pose[:3, 3], half])).float()
        found = np.asarray(convention.poses(vector[None]))[0]
        assert_same(found, frame.world_from_cam)

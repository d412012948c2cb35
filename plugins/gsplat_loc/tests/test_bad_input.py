"""What can be wrong with data, maps and files; interrupted training."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from gsplat_loc.config import GsplatConfig
from gsplat_loc.estimator import GsplatEstimator
from gsplat_loc.field.fieldmap import Anchors, Descriptors, FieldMap
from gsplat_loc.field.ply import write_ply

from reloc_core.cli.main import main
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.errors import DataError, MapError
from reloc_core.interfaces import Runtime
from reloc_core.maps import Map, load_tensors, save_tensors
from reloc_core.types import Query

RUNTIME = Runtime(threads=1, seed=1)


@pytest.fixture
def scene_map(make_field, make_run, tmp_path):
    """A map of 50 Gaussians and 4 anchors, never trained."""
    run = make_run(tmp_path / "map")
    field = make_field(50)
    many = Descriptors(torch.zeros(50, 64).half(), torch.zeros(50).half(), torch.zeros(50).int())
    few = Anchors(
        torch.zeros(4, 3), torch.zeros(4, 64), torch.zeros(4).int(), torch.zeros(4),
        torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4, 8).int(),
    )  # fmt: skip
    FieldMap(field, np.zeros(3), torch.zeros(3), many, few, 1.0).save(run)
    return run.map.finish()


def rewrite(scene_map, name, change):
    """Change a file of a map, with the checksum that belongs to it."""
    path = scene_map.path / f"{name}.safetensors"
    tensors, metadata = load_tensors(path)
    change(tensors, metadata)
    save_tensors(path, tensors, metadata)
    data = path.read_bytes()
    listing = scene_map.path / "map.yaml"
    content = yaml.safe_load(listing.read_text())
    content["files"][path.name] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    listing.write_text(yaml.safe_dump(content))


def load(scene_map):
    GsplatEstimator(GsplatConfig()).load(Map.open(scene_map.path), RUNTIME)


def test_the_map_itself_loads(scene_map):
    load(scene_map)


def test_another_extractor_is_named(scene_map):
    rewrite(scene_map, "field", lambda _, metadata: metadata.update(extractor="sift", channels=128))
    with pytest.raises(MapError, match="carries 128 channels of 'sift'"):
        load(scene_map)


@pytest.mark.parametrize(("file", "key"), [("anchors", "descriptors"), ("features", "features")])
def test_descriptors_of_another_width_are_refused(scene_map, file, key):
    def narrow(tensors, _):
        tensors[key] = tensors[key][:, :32].contiguous()

    rewrite(scene_map, file, narrow)
    with pytest.raises(MapError, match=rf"descriptors of {file} .* expected \(\d+, 64\)"):
        load(scene_map)


@pytest.mark.parametrize("name", ["means", "colors", "opacities", "scales", "quaternions"])
def test_parameters_that_are_not_finite_are_counted(scene_map, name):
    def spoil(tensors, _):
        tensors[name][[3, 7]] = float("nan")

    rewrite(scene_map, "field", spoil)
    with pytest.raises(MapError, match=f"2 of 50 Gaussians have a '{name}' that is not finite"):
        load(scene_map)


def test_descriptors_that_are_not_finite_are_refused(scene_map):
    rewrite(scene_map, "anchors", lambda tensors, _: tensors["descriptors"][1].fill_(float("inf")))
    with pytest.raises(MapError, match="descriptors of anchors are not finite"):
        load(scene_map)


class Blank(SyntheticDataset):
    """The room with nothing to see in it."""

    def __getitem__(self, index):
        query = super().__getitem__(index)
        return Query(query.name, query.camera, image=np.full_like(query.image, 120),
                     world_from_cam=query.world_from_cam)  # fmt: skip


class Still(SyntheticDataset):
    """The room from one place, so that nothing can be triangulated."""

    @property
    def frames(self):
        first = super().frames[0].world_from_cam
        return tuple(replace(f, world_from_cam=first) for f in super().frames)

    def __getitem__(self, index):
        query = super().__getitem__(0)
        return replace(query, name=self.frames[index].name)


@pytest.mark.parametrize("kind", [Blank, Still])
def test_nothing_to_start_from_is_said(kind, make_run, tmp_path):
    dataset = kind(SyntheticConfig(width=160, height=120, train_frames=5, depth=False))
    config = GsplatConfig()
    with pytest.raises(DataError, match=r"No point of .* was found in two of its 5 images"):
        GsplatEstimator(config).fit(dataset, make_run(tmp_path / "map"))
    assert not (tmp_path / "map").exists()


def test_a_ply_without_gaussians_stops_before_training(make_run, tmp_path):
    path = tmp_path / "cloud.ply"
    path.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n"
                    "property float y\nproperty float z\nend_header\n1 2 3\n")  # fmt: skip
    config = GsplatConfig()
    config.init.source, config.init.path = "ply", str(path)
    dataset = SyntheticDataset(SyntheticConfig(width=160, height=120, train_frames=5))
    with pytest.raises(DataError, match="no f_dc_0"):
        GsplatEstimator(config).fit(dataset, make_run(tmp_path / "map"))


def test_files_of_gaussians_are_whole_for_a_peer(make_field, tmp_path):
    """Another library reads the layout that viewers expect: names, types, order, values."""
    plyfile = pytest.importorskip("plyfile")
    field = make_field(20, degree=3)
    write_ply(tmp_path / "field.ply", field, np.array([1.0, 2.0, 3.0]))
    (vertex,) = plyfile.PlyData.read(str(tmp_path / "field.ply")).elements
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)),
             *(f"f_rest_{i}" for i in range(45)), "opacity", *(f"scale_{i}" for i in range(3)),
             *(f"rot_{i}" for i in range(4))]  # fmt: skip
    assert vertex.name == "vertex"
    assert [p.name for p in vertex.properties] == names
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    np.testing.assert_allclose(vertex["y"], field.means[:, 1].numpy() + 2, atol=1e-6)
    np.testing.assert_array_equal(vertex["f_rest_15"], field.colors[:, 1, 1].numpy())
    np.testing.assert_array_equal(vertex["scale_2"], field.scales[:, 2].numpy())
    np.testing.assert_array_equal(vertex["rot_3"], field.quaternions[:, 3].numpy())


@pytest.mark.long
def test_a_killed_training_resumes_to_the_same_field(tmp_path):
    """The process gets SIGKILL after a checkpoint; the same command finishes the map."""
    command = [
        "train", "estimator=gsplat_loc", "dataset=synthetic", "dataset.width=160", "threads=1",
        "dataset.height=120", "dataset.train_frames=12", "estimator.image.resolution=80",
        "estimator.train.iterations=60", "estimator.train.checkpoint_seconds=0",
        "estimator.densify.start=5", "estimator.densify.interval=20", "estimator.init.count=1500",
        "estimator.features.mode=none",
        "estimator.anchors.max_error_px=8",
    ]  # fmt: skip

    def arguments(name):
        return [*command, f"map_dir={tmp_path / name}", f"output_dir={tmp_path / ('run_' + name)}"]

    child = subprocess.Popen([sys.executable, "-m", "reloc_core.cli", *arguments("killed")])
    checkpoint = tmp_path / ".killed.partial" / "checkpoint.safetensors"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert load_tensors(checkpoint)[1]["iteration"] < 60
    assert main(arguments("killed")) == 0
    assert main(arguments("whole")) == 0
    whole, killed = (Map.open(tmp_path / n).tensors("field")[0] for n in ("whole", "killed"))
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)

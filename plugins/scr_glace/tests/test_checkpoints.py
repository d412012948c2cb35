import pickle

import numpy as np
import pytest
import torch
from scr_glace.config import GlaceConfig
from scr_glace.networks.encoder import AceEncoder, build_encoder
from scr_glace.networks.head import Head, HeadSpec
from scr_glace.official.checkpoints import (
    head_from_official,
    infer_spec,
    official_from_head,
    write_head,
)
from scr_glace.official.exchange import export_head, import_head

from reloc_core.cli.main import main
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.errors import MapError
from reloc_core.features.weights import read_state_dict
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline

SPECS = [
    HeadSpec(512, 512),
    HeadSpec(768, 256, blocks=2, mlp_ratio=2.0, clusters=7),
    HeadSpec(64, 32, homogeneous=False),
]


def head_of(spec, seed=0):
    torch.manual_seed(seed)
    return Head(spec, torch.randn(spec.clusters, 3) * 5).eval().requires_grad_(False)


@pytest.mark.parametrize("spec", SPECS)
def test_round_trip_of_an_official_file(spec, tmp_path):
    head = head_of(spec)
    path = tmp_path / "head.pt"
    write_head(head, path)
    state = torch.load(path, weights_only=True)
    assert all(v.dtype == torch.float16 for v in state.values())
    assert state["res3_conv1.weight"].shape == (spec.channels, spec.in_channels, 1, 1)
    anchor = state["centers"] if spec.clusters > 1 else state["mean"]
    assert anchor.shape == ((1, spec.clusters, 3, 1, 1) if spec.clusters > 1 else (1, 3, 1, 1))
    assert ("head_skip.weight" in state) == (spec.in_channels != spec.channels)
    read = head_from_official(read_state_dict(path, "head"))
    assert read.spec == spec
    x = torch.randn(100, spec.in_channels)
    with torch.no_grad():
        read.centers.copy_(head.centers)  # our own maps keep the anchor in fp32
        error = (read(x) - head(x)).norm(dim=-1)
    assert float(error.max()) < 2e-3
    assert float(error.median()) < 1e-3


def test_official_keys_of_a_glace_head():
    state = official_from_head(head_of(HeadSpec(768, 768, blocks=1, clusters=3)))
    layers = [
        "res3_conv1",
        "res3_conv2",
        "res3_conv3",
        "0c0",
        "0c1",
        "0c2",
        "fc1",
        "fc2",
        "fcc",
        "fc3",
    ]
    expected = {f"{n}.{p}" for n in layers for p in ("weight", "bias")}
    scales = {"max_scale", "min_scale", "max_inv_scale", "h_beta", "min_inv_scale"}
    assert set(state) == expected | scales | {"centers"}
    assert all(state[k].shape == (1,) for k in scales)
    assert float(state["h_beta"]) == pytest.approx(0.92432, abs=1e-4)


def test_ddp_prefix_and_fp16_scales_are_undone():
    state = {f"module.{k}": v for k, v in official_from_head(head_of(SPECS[0])).items()}
    head = head_from_official(state)
    assert head.spec.min_scale == 0.01
    assert head.spec.max_scale == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc3.weight"), "lacks 'fc3.weight'"),
        (lambda s: s.pop("mean"), "neither 'mean' nor 'centers'"),
        (lambda s: s.update({"fc1.weight": s["fc1.weight"][:9]}), "'fc1.weight' has shape"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown 'extra'"),
    ],
)
def test_other_networks_are_refused(change, message):
    state = official_from_head(head_of(HeadSpec(16, 16)))
    change(state)
    with pytest.raises(MapError, match=message):
        head_from_official(state)


def test_infer_spec_of_an_encoder():
    with pytest.raises(MapError, match="no ACE or GLACE head"):
        infer_spec(AceEncoder().state_dict())


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"fc1.weight": Bomb()}, path)
    with pytest.raises(MapError, match="objects other than tensors"):
        read_state_dict(path, "head")
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"w": Bomb()}))
    with pytest.raises(MapError):
        read_state_dict(plain, "head")
    assert "executed" not in capsys.readouterr().out


def test_unusable_files(tmp_path):
    with pytest.raises(MapError, match="no head at"):
        read_state_dict(tmp_path / "absent.pt", "head")
    pointer = tmp_path / "lfs.pt"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(MapError, match="git lfs pull"):
        read_state_dict(pointer, "head")
    whole = tmp_path / "whole.pt"
    write_head(head_of(HeadSpec(16, 16)), whole)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(MapError, match="truncated"):
        read_state_dict(cut, "head")
    numbers = tmp_path / "list.pt"
    torch.save([1, 2, 3], numbers)
    with pytest.raises(MapError, match="no state dict"):
        read_state_dict(numbers, "head")


@pytest.fixture
def ace_weights(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "ace_encoder_pretrained.pt"
    torch.save(AceEncoder().state_dict(), path)
    return path


def test_an_official_head_becomes_a_map_and_back(tmp_path, ace_weights):
    head = head_of(SPECS[0])
    write_head(head, tmp_path / "chess.pt")
    config = GlaceConfig()
    config.encoder.name, config.encoder.weights = "ace", str(ace_weights)
    config.global_descriptor.name = "none"
    made = import_head(tmp_path / "chess.pt", tmp_path / "map", config)
    assert made.info.config["head"]["channels"] == 512
    export_head(Map.open(tmp_path / "map"), tmp_path / "again.pt")
    first = torch.load(tmp_path / "chess.pt", weights_only=True)
    second = torch.load(tmp_path / "again.pt", weights_only=True)
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(second[key], first[key])


def test_export_refuses_encodings_that_official_programs_do_not_make(tmp_path, ace_weights):
    write_head(head_of(HeadSpec(768, 768)), tmp_path / "glace.pt")
    np.savez(tmp_path / "f.npz", names=["a"], features=np.ones((1, 256), np.float32) / 16)
    config = GlaceConfig()
    config.encoder.name, config.encoder.weights = "ace", str(ace_weights)
    config.global_descriptor.name = "file"
    config.global_descriptor.path, config.global_descriptor.scale = str(tmp_path / "f.npz"), 2.0
    made = import_head(tmp_path / "glace.pt", tmp_path / "map", config)
    with pytest.raises(MapError, match=r"global_descriptor\.scale=2"):
        export_head(made, tmp_path / "again.pt")


def test_import_refuses_what_does_not_fit(tmp_path, ace_weights):
    write_head(head_of(HeadSpec(768, 768)), tmp_path / "glace.pt")
    config = GlaceConfig()
    config.encoder.name, config.encoder.weights = "ace", str(ace_weights)
    config.global_descriptor.name = "none"
    with pytest.raises(MapError, match="256 global channels"):
        import_head(tmp_path / "glace.pt", tmp_path / "map", config)
    assert not (tmp_path / "map").exists()


def test_from_a_file_to_a_map_that_localizes(tmp_path, ace_weights, capsys):
    """`reloc weights import`, then queries: the head's own answers at the cells of the image."""
    head = head_of(HeadSpec(512, 512))
    write_head(head, tmp_path / "room.pt")
    data = ["dataset=synthetic", "dataset.width=96", "dataset.height=64", "dataset.train_frames=8",
            "dataset.test_frames=2"]  # fmt: skip
    options = ["estimator.encoder.name=ace", f"estimator.encoder.weights={ace_weights}",
               "estimator.global_descriptor.name=none", "estimator.image.resolution=64"]  # fmt: skip
    code = main(["weights", "import", "component=scr_glace", f"file={tmp_path / 'room.pt'}", *data,
                 *options, f"map_dir={tmp_path / 'map'}", f"output_dir={tmp_path / 'out'}"])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    pipeline = Pipeline.from_map(tmp_path / "map")
    query = SyntheticDataset(SyntheticConfig(split="test", width=96, height=64, test_frames=2))[0]
    evidence = pipeline.estimate(query)
    with torch.inference_mode():
        encoder = build_encoder(pipeline.estimator.config.encoder)
        maps = encoder(encoder.prepare(query.image))
        expected = head(maps[0].flatten(1).T.float())
    np.testing.assert_allclose(evidence.points3d, expected.numpy(), atol=0.05)

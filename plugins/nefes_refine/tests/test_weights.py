"""Importers behind `reloc weights`: files with the official names and shapes, written here."""

import pickle

import pytest
import torch
from nefes_refine.weights import DFNET, NEFES, check_model, check_vgg16

from reloc_core.errors import MapError


def empty(*shape):
    """A tensor of any size that takes no room in the file."""
    return torch.zeros(1).expand(*shape) if shape else torch.zeros(())


def layer(name, *shape):
    return {f"{name}.weight": empty(*shape), f"{name}.bias": empty(shape[0])}


def batch_norm(name, width, counter=True):
    state = {f"{name}.{k}": empty(width) for k in ("weight", "bias", "running_mean", "running_var")}
    return {**state, f"{name}.num_batches_tracked": torch.tensor(0)}


VGG = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256),
       17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}  # fmt: skip


def dfnet():
    state = layer("fc_pose", 12, 512)
    for number, (out, inputs) in VGG.items():
        state |= layer(f"encoder.{number}", out, inputs, 3, 3)
    for level, inputs in enumerate((64, 256, 512)):
        name = f"adaptation_layers.adapt_layer_{level}"
        state |= layer(f"{name}.0", 64, inputs, 1, 1) | layer(f"{name}.2", 128, 64, 5, 5)
        state |= batch_norm(f"{name}.3", 128)
    return state


def mlp():
    state = layer("xyz_encoding_1.0", 128, 63) | layer("xyz_encoding_5.0", 128, 191)
    for i in (2, 3, 4, 6, 7, 8):
        state |= layer(f"xyz_encoding_{i}.0", 128, 128)
    state |= layer("xyz_encoding_final", 128, 128) | layer("dir_encoding.0", 64, 155)
    return state | layer("static_sigma.0", 1, 128) | layer("static_rgb.0", 131, 64)


def field():
    coarse = (
        mlp() | layer("fusion_net.net.0", 64, 131, 3, 3) | layer("fusion_net.net.6", 128, 64, 5, 5)
    )
    coarse |= layer("fusion_net.net.2", 64, 64, 3, 3) | layer("fusion_net.net.4", 64, 64, 3, 3)
    coarse |= batch_norm("fusion_net.net.7", 128) | {"exposure_embedding.params": empty(3072)}
    fine = mlp() | layer("transient_encoding.0", 64, 155)
    fine |= layer("transient_encoding.2", 64, 64) | layer("transient_encoding.4", 64, 64)
    fine |= (
        layer("transient_sigma.0", 1, 64)
        | layer("transient_rgb.0", 3, 64)
        | layer("transient_beta.0", 1, 64)
    )
    return {"global_step": 600, "network_fn_state_dict": coarse, "network_fine_state_dict": fine,
            "optimizer_state_dict": {"state": {}, "param_groups": []}}  # fmt: skip


def test_official_layouts(tmp_path):
    torch.save(dfnet(), tmp_path / "checkpoint-heads.pt")
    assert check_model(tmp_path / "checkpoint-heads.pt") == "DFNet regressor"
    torch.save(field(), tmp_path / "nefes.tar")
    assert check_model(tmp_path / "nefes.tar") == "field of NeFeS"
    vgg = {
        f"features.{k.removeprefix('encoder.')}": v
        for k, v in dfnet().items()
        if k.startswith("encoder")
    }
    torch.save(vgg | layer("classifier.0", 4096, 25088), tmp_path / "vgg16-397923af.pth")
    assert check_vgg16(tmp_path / "vgg16-397923af.pth") == "VGG-16 of torchvision"


def test_archives_keep_the_published_members():
    wanted = ["logs/paper_models/nefes/NeFeS_heads_colmap/nefes.tar",
              "logs/paper_models/apr/DFNet_heads_colmap/checkpoint-heads-colmap.pt",
              "logs/paper_models/dfnet/DFNet_heads_colmap/checkpoint-heads-colmap.pt"]  # fmt: skip
    assert all(NEFES.keeps(name) for name in wanted)
    assert not NEFES.keeps("logs/paper_models/apr/PoseNet_heads/checkpoint.pt")
    assert DFNET.keeps("logs/DFNet_heads/checkpoint-0100-0.1.pt")


def test_other_networks_are_refused(tmp_path):
    content = field()
    del content["network_fine_state_dict"]["transient_beta.0.bias"]
    torch.save(content, tmp_path / "nefes.tar")
    with pytest.raises(MapError, match=r"fine network.*transient_beta\.0\.bias"):
        check_model(tmp_path / "nefes.tar")
    torch.save(mlp(), tmp_path / "checkpoint.pt")
    with pytest.raises(MapError, match="no DFNet"):
        check_model(tmp_path / "checkpoint.pt")
    with pytest.raises(MapError, match="no VGG-16"):
        check_vgg16(tmp_path / "checkpoint.pt")


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("check", "name"), [(check_model, "a.pt"), (check_model, "a.tar"), (check_vgg16, "a.pth")]
)
def test_pickles_with_code_are_refused(tmp_path, capsys, check, name):
    content = {
        "network_fn_state_dict": Bomb(),
        "network_fine_state_dict": Bomb(),
        "fc_pose.bias": Bomb(),
    }
    for write in (lambda p: torch.save(content, p), lambda p: p.write_bytes(pickle.dumps(content))):
        write(tmp_path / name)
        with pytest.raises(MapError):
            check(tmp_path / name)
    assert "executed" not in capsys.readouterr().out

"""Importers behind `reloc weights`: files with the official names and shapes, written here."""

import pickle

import pytest
import torch
from gnn_relpose.weights import PUBLISHED, check_relpose, check_resnet34

from reloc_core.errors import MapError


def empty(*shape):
    """A tensor of any size that takes no room in the file."""
    return torch.zeros(1).expand(*shape) if shape else torch.zeros(())


def linear(name, out, inputs):
    return {f"{name}.weight": empty(out, inputs), f"{name}.bias": empty(out)}


def norm(name, width):
    state = {f"{name}.{k}": empty(width) for k in ("weight", "bias", "running_mean", "running_var")}
    return {**state, f"{name}.num_batches_tracked": torch.tensor(0)}


def resnet(prefix="", classes=1000):
    """torchvision's names: layerI.J.convK without bias, bnK, downsample.{0,1}."""
    state = {"conv1.weight": empty(64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            state |= {
                f"{name}.conv1.weight": empty(width, inputs, 3, 3),
                **norm(f"{name}.bn1", width),
            }
            state |= {
                f"{name}.conv2.weight": empty(width, width, 3, 3),
                **norm(f"{name}.bn2", width),
            }
            if inputs != width:
                state[f"{name}.downsample.0.weight"] = empty(width, inputs, 1, 1)
                state |= norm(f"{name}.downsample.1", width)
            inputs = width
    state |= linear("fc", classes, 512)
    return {prefix + k: v for k, v in state.items()}


def relpose(channels=2048, second=True):
    """Names and shapes of the official file, with the module `gnn2` that is never called."""
    state = resnet("feature_extractor.", channels) | linear("proj_edge", channels, 2 * channels)
    for module in ("gnn1", "gnn2") if second else ("gnn1",):
        for part, inputs in (("mlp", 2), ("mlp_updating", 2), ("edge_model.edge_mlp", 3)):
            state |= linear(f"{module}.{part}.0", channels, inputs * channels)
            state |= linear(f"{module}.{part}.2", channels, channels)
        for part in ("g", "theta", "phi"):
            state |= linear(f"{module}.att.{part}", channels // 8, channels)
        state |= linear(f"{module}.att.W", channels, channels // 8)
    for head in ("fc_xyz", "fc_wpqr", "fc_xyz_R", "fc_wpqr_R"):
        state |= linear(head, 3, channels)
    return {"epoch": 39, "model_state_dict": state, "optim_state_dict": {"state": {}, "param_groups": []},
            "criterion_state_dict": {"sax": torch.zeros(1)}}  # fmt: skip


@pytest.mark.parametrize(
    ("channels", "second", "tensors"), [(2048, True, 268), (2048, False, 248), (1024, True, 268)]
)
def test_official_checkpoint(tmp_path, channels, second, tensors):
    content = relpose(channels, second)
    assert len(content["model_state_dict"]) == tensors
    torch.save(content, tmp_path / "relpose_gnn__multi_39.pth.tar")
    assert (
        check_relpose(tmp_path / "relpose_gnn__multi_39.pth.tar")
        == f"RelPose-GNN with {channels} channels"
    )


def test_resnet_of_torchvision(tmp_path):
    torch.save(resnet(), tmp_path / "new.pth")
    # Early files lack the counters.
    torch.save(
        {k: v for k, v in resnet().items() if "batches_tracked" not in k}, tmp_path / "old.pth"
    )
    assert check_resnet34(tmp_path / "new.pth") == check_resnet34(tmp_path / "old.pth")


def test_other_networks_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(resnet(), path)
    with pytest.raises(MapError, match="no RelPose-GNN"):
        check_relpose(path)
    content = relpose()
    content["model_state_dict"]["gnn1.att.g.weight"] = empty(255, 2048)
    torch.save(content, path)
    with pytest.raises(MapError, match=r"gnn1\.att\.g\.weight"):
        check_relpose(path)
    with pytest.raises(MapError):
        check_resnet34(path)


def test_addresses_are_those_of_the_release():
    multi, six, *_ = PUBLISHED
    assert multi.addresses()[0].endswith("/relpose-gnn/models/relpose_gnn__multi_39.pth.tar")
    assert six.addresses("stairs")[0].endswith("/6Scenes_stairs_epoch_039.pth.tar")


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("check", [check_relpose, check_resnet34])
def test_pickles_with_code_are_refused(tmp_path, capsys, check):
    torch.save({"model_state_dict": {"proj_edge.bias": Bomb()}}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"proj_edge.bias": Bomb()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(MapError):
            check(tmp_path / name)
    assert "executed" not in capsys.readouterr().out

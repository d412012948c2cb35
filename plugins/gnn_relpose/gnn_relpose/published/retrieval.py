"""Which references look like an image: NetVLAD on XFeat, or the published VGG-16 with its own weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnn_relpose.shared.frames import Describer
from reloc_core.errors import MapError
from reloc_core.features.retrieval import NetVlad
from reloc_core.features.weights import check_layout, read_state_dict
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.streams import numpy_rng
from reloc_core.types import ImageArray

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
_WORDS = 64
_ZOOM = 525 / 585  # share of the image that is shown, about its middle
_HEIGHT = 192
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SAMPLES = 100  # local descriptors per image for the centres of NetVLAD


class VggNetVlad(nn.Module):
    """VGG-16 up to the activation after conv5_3, and NetVLAD; key names as in `netvlad_vgg16.tar`.

    Global descriptors have 32,768 numbers; neither whitening nor reduction, as published.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG16:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.encoder = nn.Sequential(*layers)
        self.pool = nn.Module()
        self.pool.conv = nn.Conv2d(channels, _WORDS, 1, bias=False)
        self.pool.centroids = nn.Parameter(torch.zeros(_WORDS, channels))

    def forward(self, images: Tensor) -> Tensor:
        """Local descriptors (B, N, 512) of normalised images (B, 3, H, W), unit vectors."""
        return F.normalize(self.encoder(images).flatten(2).transpose(1, 2), dim=-1)

    def vlad(self) -> NetVlad:
        """The layer that makes global descriptors of them."""
        layer = NetVlad(self.pool.centroids.detach())
        with torch.no_grad():
            layer.assignment.copy_(self.pool.conv.weight.flatten(1))
        return layer


def read_netvlad(path: Path | str) -> dict[str, Tensor]:
    """Tensors of `netvlad_vgg16.tar`.

    Raises:
        MapError: no such file, or another network.
    """
    state = read_state_dict(path, "NetVLAD on VGG-16")
    check_layout(VggNetVlad(), state, "NetVLAD on VGG-16")
    return state


def published_input(image: ImageArray) -> Tensor:
    """What the published retrieval is shown of an RGB image: its middle, 192 pixels high; (1, 3, H, W)."""
    height, width = image.shape[:2]
    kept = round(height * _ZOOM), round(width * _ZOOM)
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    middle = image[top : top + kept[0], left : left + kept[1]]
    factor = _HEIGHT / min(kept)
    size = (round(kept[1] * factor), round(kept[0] * factor))
    small = cv2.resize(
        middle, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    )
    normal = (small / 255.0 - _IMAGENET[0]) / _IMAGENET[1]
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32))[None]


class Retrieval:
    """Global descriptors of images.

    Args:
        resolution: of images that XFeat describes.
        clusters: of NetVLAD on XFeat.
        weights: tensors of `VggNetVlad`; None for XFeat.
        device: where the network runs.
    """

    def __init__(
        self, resolution: int, clusters: int, weights: dict[str, Tensor] | None, device: str
    ) -> None:
        self.clusters, self.device = clusters, device
        self.network: VggNetVlad | None = None
        self.describer: Describer | None = None
        self.vlad: NetVlad | None = None
        if weights is None:
            self.describer = Describer(resolution, device)
            return
        self.network = VggNetVlad()
        self.network.load_state_dict({k: v.float() for k, v in weights.items()})
        self.network = self.network.to(device).eval()
        self.vlad = self.network.vlad()

    @torch.inference_mode()
    def local(self, image: ImageArray) -> Tensor:
        """Local descriptors (N, C) of an RGB image."""
        if self.network is not None:
            found: Tensor = self.network(published_input(image).to(self.device))[0].cpu()
            return found
        assert self.describer is not None
        return self.describer.describe(image).maps.flatten(1).T

    @torch.inference_mode()
    def describe(self, image: ImageArray) -> Tensor:
        """Global descriptor (1, D) of an RGB image.

        Raises:
            MapError: the centres are not known yet.
        """
        if self.vlad is None:
            raise MapError("gnn_published has no map yet: call load or fit first.")
        found: Tensor = self.vlad(self.local(image)[None])
        return found

    @torch.inference_mode()
    def fit(self, dataset: Dataset, run: Run) -> Tensor:
        """Global descriptors (F, D) of all images; the centres of XFeat's are theirs."""
        seed, maps, sample = run.runtime.seed, [], []
        with run.progress(f"Describing {dataset.name}", len(dataset)) as progress:
            for i in range(len(dataset)):
                flat = self.local(dataset[i].image)
                drawn = numpy_rng(seed, "words", i).permutation(len(flat))
                sample.append(flat[torch.from_numpy(drawn[:_SAMPLES])])
                maps.append(flat.half())
                progress.advance(1)
        if self.network is None:
            words = numpy_rng(seed, "words")
            self.vlad = NetVlad.from_descriptors(torch.cat(sample), words, self.clusters)
        assert self.vlad is not None
        return torch.cat([self.vlad(m[None].float()) for m in maps])

    def tensors(self) -> dict[str, Tensor]:
        """What a map stores."""
        if self.network is not None:
            return {f"network.{k}": v.half() for k, v in self.network.state_dict().items()}
        assert self.vlad is not None
        return dict(self.vlad.state_dict())

    @classmethod
    def of(cls, tensors: dict[str, Tensor], resolution: int, device: str) -> Retrieval:
        """Undo `tensors`."""
        prefix = "network."
        weights = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        result = cls(resolution, 0, weights or None, device)
        if not weights:
            result.vlad = NetVlad(tensors["centroids"])
            result.vlad.load_state_dict(tensors)
        return result

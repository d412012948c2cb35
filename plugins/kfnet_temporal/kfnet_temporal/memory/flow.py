"""A process without a trained network: cost volume and soft-argmax flow with noise on XFeat features."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfnet_temporal.filtering.process import OUTSIDE, Motion, Process, similarity_along
from reloc_core.features.xfeat import STRIDE
from reloc_core.types import ImageArray

_POOLS = (1, 3, 7)
_DISAGREEMENT = 1.0  # cells
_BETTER = 0.1  # cosine
NOISE_CUES = 7


class FlowProcess(Process):
    """Flow between two feature grids, and the noise of coordinates moved along it.

    Args:
        radius: cells that the flow can reach along an axis.
        min_std: metres; smallest noise.
        refine: whether the flow is refined on the images.
    """

    def __init__(self, radius: int, min_std: float, refine: bool = True) -> None:
        super().__init__()
        self.radius, self.min_std = radius, min_std
        self.refine = refine
        self.log_sharpness = nn.Parameter(torch.tensor(3.0))
        self.pool_weights = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        self.noise = nn.Sequential(
            nn.Conv2d(NOISE_CUES, 16, 1), nn.Tanh(), nn.Conv2d(16, 16, 1), nn.Tanh(),
            nn.Conv2d(16, 1, 1),
        )  # fmt: skip
        last = self.noise[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.constant_(last.bias, -4.0)

    def offsets(self, device: torch.device) -> Tensor:
        """Displacements (2, n * n) in cells, x first, rows outer."""
        axis = torch.arange(-self.radius, self.radius + 1, device=device, dtype=torch.float32)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()])

    def motion(
        self,
        previous: Tensor,
        current: Tensor,
        images: tuple[ImageArray, ImageArray] | None = None,
    ) -> Motion:
        """Backward flow from the current frame to the previous one.

        The cost volume finds each cell's displacement. Where images are given it is refined to a
        fraction of a pixel by dense inverse search, unless the features say that this went astray.

        Args:
            previous: (C, h, w) unit vectors.
            current: (C, h, w) unit vectors.
            images: (H, W) uint8 grey, previous and current, whose cells of 8 x 8 pixels the
                features describe.
        """
        volume = cost_volume(previous, current, self.radius)
        mix = torch.softmax(self.pool_weights, 0)
        pooled = sum(w * average(volume, k) for w, k in zip(mix, _POOLS, strict=True))
        assert isinstance(pooled, Tensor)
        sharp = self.log_sharpness.exp()
        offsets = self.offsets(volume.device)
        # Only around the best displacement: a far second peak is an outlier, not information.
        best = offsets[:, pooled.argmax(0).flatten()]
        near = ((offsets[:, :, None] - best[:, None]).abs() < 1.5).all(0).view_as(pooled)
        p = torch.softmax((sharp * pooled).masked_fill(~near, -torch.inf), 0)
        flow = torch.einsum("do,ohw->dhw", offsets, p)
        second = torch.einsum("do,ohw->dhw", offsets.square(), p)
        spread = (second - flow.square()).clamp_min(1e-4).sum(0).sqrt()
        similarity = (p * volume).sum(0)
        disagreement = torch.zeros_like(similarity)
        if images is not None:
            fine = image_flow(*images, (flow.shape[-2], flow.shape[-1])).to(flow.device)
            fine_similarity = similarity_along(previous, current, fine)
            disagreement = (fine - flow).norm(dim=0).detach()
            astray = (disagreement > _DISAGREEMENT) & (similarity > fine_similarity + _BETTER)
            flow = torch.where(astray, flow, fine)
            similarity = torch.where(astray, similarity, fine_similarity)
        whole = torch.softmax(sharp * pooled, 0)
        entropy = -(whole * (whole + 1e-9).log()).sum(0)
        cues = torch.stack(
            [spread.log(), similarity * 4 - 3, entropy - 2, whole.amax(0) * 4 - 2,
             flow.norm(dim=0) / self.radius, disagreement.clamp_max(4)]
        )  # fmt: skip
        return Motion(flow, cues, similarity)

    def noise_std(self, motion: Motion, slope: Tensor) -> Tensor:
        """Process noise (h, w) in metres.

        Args:
            motion: of the frame.
            slope: (h, w) metres that the moved coordinates change per cell.
        """
        x = torch.cat([motion.cues, ((slope + 1e-3).log() + 3)[None]])
        return self.noise(x[None])[0, 0].clamp(-8, 3).exp() + self.min_std


def cost_volume(previous: Tensor, current: Tensor, radius: int) -> Tensor:
    """Cosines ((2 r + 1)^2, h, w) of each current cell and the previous cells around it.

    Args:
        previous: (C, h, w).
        current: (C, h, w).
        radius: r, cells.

    Returns:
        displacements with rows outer; -1 for those that leave the grid.
    """
    channels, height, width = current.shape
    side, wide = 2 * radius + 1, width + 2 * radius
    padded = F.pad(previous, (radius,) * 4)
    # Every row of cells against the band of rows around it, of which the diagonals are wanted.
    bands = padded.unfold(1, side, 1).permute(1, 0, 3, 2).reshape(height, channels, side * wide)
    products = torch.bmm(current.permute(1, 2, 0), bands)
    row = side * wide
    found = products.as_strided((side, side, height, width), (wide, 1, width * row, row + 1))
    axis = torch.arange(-radius, radius + 1, device=current.device)
    y = torch.arange(height, device=current.device) + axis[:, None]
    x = torch.arange(width, device=current.device) + axis[:, None]
    outside_y, outside_x = (y < 0) | (y >= height), (x < 0) | (x >= width)
    outside = outside_y[:, None, :, None] | outside_x[None, :, None, :]
    return found.masked_fill(outside, OUTSIDE).reshape(side * side, height, width)


def average(maps: Tensor, size: int) -> Tensor:
    """Means of maps (C, h, w) over squares of cells, without those outside the grid."""
    if size == 1:
        return maps
    half = size // 2
    rows = F.avg_pool2d(maps[None], (1, size), 1, (0, half), count_include_pad=False)
    return F.avg_pool2d(rows, (size, 1), 1, (half, 0), count_include_pad=False)[0]


def image_flow(previous: ImageArray, current: ImageArray, shape: tuple[int, int]) -> Tensor:
    """Backward flow (2, h, w) in cells at the cells' centres, by dense inverse search.

    Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016, as in OpenCV.
    """
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    field = search.calc(current, previous, None)
    middle = (STRIDE - 1) // 2
    y = np.minimum(np.arange(shape[0]) * STRIDE + middle, current.shape[0] - 2)
    x = np.minimum(np.arange(shape[1]) * STRIDE + middle, current.shape[1] - 2)
    # A cell's centre lies between four pixels.
    corners = [field[np.ix_(y + dy, x + dx)] for dy in (0, 1) for dx in (0, 1)]
    return torch.from_numpy(np.mean(corners, 0)).permute(2, 0, 1) / STRIDE

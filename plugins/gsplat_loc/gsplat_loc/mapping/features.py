"""Descriptors of the Gaussians: averaged over the images that see them, or trained by rendering."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsplat_loc.config import FeatureConfig
from gsplat_loc.field.fieldmap import Descriptors
from gsplat_loc.field.gaussians import Gaussians
from gsplat_loc.field.render import Placement, physical, view_of
from gsplat_loc.mapping.views import Views
from reloc_core import rendering
from reloc_core.features.xfeat import CHANNELS, STRIDE, XFeat
from reloc_core.interfaces import Run
from reloc_core.mapping import evenly, make_view
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array

_SEEN = 0.1  # of a pixel: blending weight from which a Gaussian counts as seen in an image
_UPSAMPLED = 2  # rendering against descriptors: pixels per cell and axis


@torch.inference_mode()
def dense_descriptors(network: XFeat, image: np.ndarray) -> Tensor:
    """Unit descriptors (h, w, 64) of an image (H, W, 3) whose sides are multiples of 8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    maps = network(torch.from_numpy(grey)[None, None].float() / 255)[0]
    return F.normalize(maps, dim=0).permute(1, 2, 0)


class DescriptorMaps:
    """Descriptor maps of chosen images, described when asked for and kept as far as they fit.

    Args:
        views: where images come from.
        options: how many of them, and at which resolution XFeat sees them.
        origin: (3,) of the field in the world.
        device: of the network.
        cache_mb: memory for maps, held as float16; beyond it images are described again.
    """

    def __init__(
        self, views: Views, options: FeatureConfig, origin: Float64Array, device: str, cache_mb: int
    ) -> None:
        self.views, self.origin, self.resolution = views, origin, options.resolution
        self.frames = views.frames[evenly(len(views), options.images)]
        self.network = XFeat().to(device)
        self._free = cache_mb * 1e6
        self._kept: dict[int, tuple[rendering.View, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[rendering.View, Tensor]:
        """The view at the grid of descriptors, and the descriptors (h, w, 64) on the CPU."""
        if index in self._kept:
            view, maps = self._kept[index]
            return view, maps.float()
        view, maps = self._describe(int(self.frames[index]))
        if self._free >= maps.nbytes:
            self._free -= maps.nbytes
            self._kept[index] = (view, maps)
        return view, maps.float()

    def _describe(self, frame: int) -> tuple[rendering.View, Tensor]:
        query = self.views.dataset[frame]
        assert query.world_from_cam is not None
        # Enlarged too, as the detector does with queries: XFeat depends on scale.
        seen = make_view(query, self.resolution, enlarge=True)
        # Whole cells, so that the grid of cells covers exactly the image's area.
        height, width = (side // STRIDE * STRIDE for side in seen.image.shape[:2])
        full = view_of(seen.camera, query.world_from_cam, self.origin)
        cropped = rendering.View(full.world_from_cam, full.fx, full.fy, full.cx, full.cy,
                                 width, height)  # fmt: skip
        # Rounded as in the cache, so that its size changes no result.
        maps = dense_descriptors(self.network, seen.image[:height, :width]).cpu().half()
        return cropped.scaled(width // STRIDE, height // STRIDE), maps


def average(
    gaussians: Gaussians, views: Views, options: FeatureConfig, at: Placement, run: Run
) -> Descriptors:
    """Means of the descriptors where Gaussians appear, weighted by their share of each pixel.

    With the geometry fixed a rendered descriptor is linear in those of the Gaussians; this is the
    weighted mean that blending would need thousands of steps to approach, and its length tells how well
    the views agree.
    """
    count, device = len(gaussians), gaussians.means.device
    sums = torch.zeros(count, CHANNELS, device=device)
    weights = torch.zeros(count, device=device)
    seen = torch.zeros(count, dtype=torch.int32, device=device)
    shape = physical(gaussians)
    described = DescriptorMaps(views, options, at.origin, run.runtime.device, 0)
    with run.progress("Describing Gaussians", len(described)) as progress:
        for index in range(len(described)):
            view, maps = described[index]
            height, width = view.height * _UPSAMPLED, view.width * _UPSAMPLED
            fine = F.interpolate(maps.permute(2, 0, 1)[None], (height, width), mode="bilinear")
            fine = F.normalize(fine[0], dim=0).permute(1, 2, 0).contiguous().to(device)
            found = rendering.accumulate_features(
                shape, fine, view.scaled(width, height), near=at.near, threads=at.threads
            )
            sums += found.features
            weights += found.weights
            seen += found.weights > _SEEN
            progress.advance()
    mean = sums / weights.clamp(min=1e-9)[:, None]
    agreement = mean.norm(dim=1)
    return Descriptors(F.normalize(sums, dim=1).half(), agreement.half(), seen)


def blend(
    gaussians: Gaussians, views: Views, options: FeatureConfig, at: Placement, run: Run
) -> Descriptors:
    """Descriptors trained by rendering them (Feature-3DGS, as in GSplatLoc), the geometry fixed.

    L1 against the descriptor maps, Adam, one image per step; the gradient reaches descriptors only. Done
    anew when interrupted: the checkpoint holds the field, which took longer.
    Maps are kept up to `features.cache_mb` and computed again beyond it.
    """
    initial = average(gaussians, views, options, at, run)
    features = torch.nn.Parameter(torch.zeros_like(initial.features, dtype=torch.float32))
    adam = torch.optim.Adam([features], lr=options.learning_rate, eps=1e-15, fused=True)
    described = DescriptorMaps(views, options, at.origin, run.runtime.device, options.cache_mb)
    shape = physical(gaussians)
    rng = numpy_rng(run.runtime.seed, "descriptor images")
    with run.progress("Training descriptors", options.iterations) as progress:
        order = np.zeros(0, int)
        for _ in range(options.iterations):
            if not len(order):
                order = rng.permutation(len(described))
            view, maps = described[int(order[0])]
            order = order[1:]
            out = rendering.rasterize(shape, features, view, near=at.near, threads=at.threads)
            loss = (out.image - maps.to(out.image.device)).abs().mean()
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
            progress.advance(1, loss=float(loss.detach()))
    return Descriptors(
        F.normalize(features.detach(), dim=1).half(), initial.agreement, initial.views
    )


def trusted(
    gaussians: Gaussians, descriptors: Descriptors, options: FeatureConfig, extent: float
) -> Tensor:
    """Indices of the Gaussians worth matching, best by views and agreement, in ascending order."""
    good = descriptors.views >= options.min_views
    good &= descriptors.agreement >= options.min_agreement
    good &= gaussians.opacities.sigmoid() >= options.min_opacity
    if options.max_scale:
        good &= gaussians.scales.exp().amax(1) <= options.max_scale * extent
    index = good.nonzero()[:, 0]
    score = descriptors.agreement.float()[index] ** 2 * descriptors.views[index].float().sqrt()
    best = score.argsort(descending=True, stable=True)[: options.selected]
    return index[best].sort().values

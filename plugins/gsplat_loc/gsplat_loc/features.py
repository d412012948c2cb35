"""Descriptors of the Gaussians: averaged over the images that see them, or trained by rendering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsplat_loc.config import FeatureConfig
from gsplat_loc.gaussians import Gaussians
from gsplat_loc.render import physical, view_of
from gsplat_loc.views import Views, pinhole, resized, spread
from reloc_core import rendering
from reloc_core.features.xfeat import CHANNELS, STRIDE, XFeat
from reloc_core.interfaces import Run
from reloc_core.types import Float64Array

_SEEN = 0.1  # of a pixel: blending weight from which a Gaussian counts as seen in an image
_UPSAMPLED = 2  # rendering against descriptors: pixels per cell and axis


@dataclass(frozen=True)
class Descriptors:
    """Descriptors of N Gaussians.

    Attributes:
        features: (N, 64) float16 unit vectors; zero where a Gaussian was never seen.
        agreement: (N,) float16 length of the mean of the unit descriptors, 1 where all agree.
        views: (N,) int32 images that saw it.
    """

    features: Tensor
    agreement: Tensor
    views: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return dict(vars(self))


@torch.inference_mode()
def dense_descriptors(network: XFeat, image: np.ndarray) -> Tensor:
    """Unit descriptors (h, w, 64) of an image (H, W, 3) whose sides are multiples of 8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    maps = network(torch.from_numpy(grey)[None, None].float() / 255)[0]
    return F.normalize(maps, dim=0).permute(1, 2, 0)


def _described(
    views: Views, options: FeatureConfig, origin: Float64Array, run: Run, title: str
) -> Iterator[tuple[rendering.View, Tensor]]:
    """Chosen images as (view at the descriptors' grid, descriptors (h, w, 64))."""
    network = XFeat().to(run.runtime.device)
    chosen = views.frames[spread(len(views), options.images)]
    with run.progress(title, len(chosen)) as progress:
        for frame in chosen:
            query = views.dataset[int(frame)]
            assert query.world_from_cam is not None
            target = pinhole(query.camera, options.resolution)
            image, _ = resized(query.camera, target, query.image)
            # Whole cells, so that the grid of cells covers exactly the image's area.
            height, width = (side // STRIDE * STRIDE for side in image.shape[:2])
            full = view_of(target, query.world_from_cam, origin)
            cropped = rendering.View(full.world_from_cam, full.fx, full.fy, full.cx, full.cy,
                                     width, height)  # fmt: skip
            maps = dense_descriptors(network, image[:height, :width])
            yield cropped.scaled(width // STRIDE, height // STRIDE), maps
            progress.advance()


def average(
    gaussians: Gaussians, views: Views, options: FeatureConfig, origin: Float64Array, run: Run
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
    for view, maps in _described(views, options, origin, run, "Describing Gaussians"):
        height, width = view.height * _UPSAMPLED, view.width * _UPSAMPLED
        fine = F.interpolate(maps.permute(2, 0, 1)[None], (height, width), mode="bilinear")
        fine = F.normalize(fine[0], dim=0).permute(1, 2, 0).contiguous()
        found = rendering.accumulate_features(
            shape, fine, view.scaled(width, height), threads=run.runtime.threads
        )
        sums += found.features
        weights += found.weights
        seen += found.weights > _SEEN
    mean = sums / weights.clamp(min=1e-9)[:, None]
    agreement = mean.norm(dim=1)
    return Descriptors(F.normalize(sums, dim=1).half(), agreement.half(), seen)


def blend(
    gaussians: Gaussians, views: Views, options: FeatureConfig, origin: Float64Array, run: Run
) -> Descriptors:
    """Descriptors trained by rendering them (Feature-3DGS, as in GSplatLoc), the geometry fixed.

    L1 against the descriptor maps, Adam, one image per step; the gradient reaches descriptors only.
    """
    initial = average(gaussians, views, options, origin, run)
    features = torch.nn.Parameter(torch.zeros_like(initial.features, dtype=torch.float32))
    adam = torch.optim.Adam([features], lr=options.learning_rate, eps=1e-15, fused=True)
    targets = list(_described(views, options, origin, run, "Describing images"))
    shape = physical(gaussians)
    rng = np.random.default_rng((run.runtime.seed, 4))
    with run.progress("Training descriptors", options.iterations) as progress:
        order = np.zeros(0, int)
        for _ in range(options.iterations):
            if not len(order):
                order = rng.permutation(len(targets))
            view, maps = targets[order[0]]
            order = order[1:]
            out = rendering.rasterize(shape, features, view, threads=run.runtime.threads)
            loss = (out.image - maps.to(out.image.device)).abs().mean()
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
            progress.advance(1, loss=float(loss))
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

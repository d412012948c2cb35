"""The two published ways to refine: gradients through the field into a pose or into the regressor.

Chen et al., NeFeS, CVPR 2024, section 3.5: Adam on 1 - cosine between rendered and extracted features,
where a cosine is taken per channel over all pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.config import RefineConfig
from nefes_refine.field.rendering import Rendering
from nefes_refine.field.training import enlarged
from nefes_refine.regressor import matrix
from nefes_refine.target import Target
from reloc_core.rendering.poses import exp_se3
from reloc_core.types import Float64Array

_CHUNK = 1024  # rays that are rendered at a time
_KEPT = 200_000  # samples whose graph may be alive at a time, some 200 MB of the compact field
_CROP = 10  # published: pixels of the working image left out at each border


def channel_cosine_loss(rendered: Tensor, wanted: Tensor) -> Tensor:
    """1 - mean over channels of the cosine over pixels, of maps (C, H, W).

    Invariant to a channel's scale, not to a pixel's.
    """
    a, b = rendered.flatten(1), wanted.flatten(1)
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-6).mean()


def rendered_gradient(
    target: Target, pose: Tensor, detailed: bool = False, crop: int = 0
) -> tuple[float, Tensor, Tensor]:
    """Loss, its gradient (3, 4) with respect to a pose, and the rendered colours (3, rows, columns).

    The loss is differentiated down to the rendered values, and these by the pose. Where the graph of a
    whole image would take much memory, the image is rendered without one first and then again in
    chunks of rays with a graph.

    Args:
        target: the query.
        pose: (3, 4) world_from_cam.
        detailed: compare at the resolution of the extracted features, to which the rendering is
            enlarged, and not at that of the rendering.
        crop: what is left out at each border of the comparison.
    """
    bundle = target.bundle
    field = bundle.field
    chunks = target.directions.split(_CHUNK)
    kept = len(target.directions) * bundle.config.field.samples <= _KEPT
    leaf = pose.detach().clone().requires_grad_(True)
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=leaf.dtype)

    def rendered(directions: Tensor) -> Rendering:
        origins, turned = field.scene.rays(torch.cat([leaf, bottom]), directions)
        return field.render(
            origins.to(bundle.device), turned.to(bundle.device), target.histogram[None]
        )

    with torch.set_grad_enabled(kept):
        parts = [rendered(chunk) for chunk in chunks]
    colours, features = (
        torch.cat(values).detach().T.unflatten(1, target.shape).requires_grad_(True)
        for values in zip(*((p.colour, p.features) for p in parts), strict=True)
    )
    with torch.enable_grad():
        fused = field.fuse(colours[None], features[None])
        wanted = target.detailed if detailed else target.features
        fused = enlarged(fused, (wanted.shape[1], wanted.shape[2]), bundle.config.view.grid)[0]
        inner = (slice(None), slice(crop, -crop or None), slice(crop, -crop or None))
        loss = channel_cosine_loss(fused[inner], wanted[inner])
        grads = torch.autograd.grad(loss, (colours, features))
        pulls = zip(*(g.flatten(1).T.split(_CHUNK) for g in grads), strict=True)
        total = torch.zeros_like(leaf)
        for chunk, part, pull in zip(chunks, parts, pulls, strict=True):
            found = part if kept else rendered(chunk)
            total += torch.autograd.grad((found.colour, found.features), leaf, pull)[0]
    return float(loss.detach()), total, colours.detach()


def refine_pose_mode(
    target: Target, world_from_cam: Float64Array, config: RefineConfig
) -> Float64Array:
    """Pose mode: Adam on a rotation about the camera's centre and a shift of it.

    Features are compared at the resolution of the rendering, as published.
    """
    rotation = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    start = torch.from_numpy(world_from_cam)
    optimizer = torch.optim.Adam(
        [{"params": [rotation], "lr": config.learning_rate_rotation},
         {"params": [shift], "lr": config.learning_rate_translation}]
    )  # fmt: skip

    def current() -> Tensor:
        motion = exp_se3(torch.cat([shift, rotation]))
        position = start[:3, 3] + motion[:3, 3]
        return torch.cat([motion[:3, :3] @ start[:3, :3], position[:, None]], 1)

    return _optimise(target, world_from_cam, config, optimizer, current)


def refine_weights_mode(
    target: Target, world_from_cam: Float64Array, config: RefineConfig
) -> Float64Array:
    """Weights mode: Adam on a private copy of the regressor, whose output is the pose.

    The pose that is refined is therefore the regressor's own, not the one handed in. Features are
    compared at the resolution at which they are extracted (published: 240 pixels high), without a
    border of ten pixels.
    """
    network = copy.deepcopy(target.bundle.regressor).requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)

    def current() -> Tensor:
        return network.pose(target.view, target.features)

    scale = target.view.camera.height / target.detailed.shape[1]
    crop = max(1, round(_CROP / scale))
    return _optimise(target, world_from_cam, config, optimizer, current, detailed=True, crop=crop)


def _optimise(
    target: Target,
    initial: Float64Array,
    config: RefineConfig,
    optimizer: torch.optim.Optimizer,
    current: Callable[[], Tensor],
    detailed: bool = False,
    crop: int = 0,
) -> Float64Array:
    """Iterate, and verify as configured.

    `verify_ends` compares the renderings of the first and the last iteration, both before their update.
    """
    first: tuple[Float64Array, Tensor] | None = None
    best, best_loss, best_colours = initial, math.inf, torch.zeros(0)
    with torch.enable_grad():
        for _ in range(config.iterations):
            pose = current()
            loss, gradient, colours = rendered_gradient(target, pose, detailed, crop)
            found = matrix(pose)
            first = first or (found, colours)
            if loss < best_loss:
                best, best_loss, best_colours = found, loss, colours
            optimizer.zero_grad()
            pose.backward(gradient.to(pose))  # type: ignore[no-untyped-call]
            optimizer.step()
        if not config.verify or first is None:
            return matrix(current())
        if config.verify_ends:
            best, best_colours = matrix(current()), colours
    return best if image_not_worse(target, first[1], best_colours) else first[0]


def image_not_worse(target: Target, before: Tensor, after: Tensor) -> bool:
    """The published verification: neither PSNR nor SSIM of the rendering has fallen.

    Renderings (3, rows, columns) are compared with the image at the image's own resolution.
    """
    image = torch.from_numpy(target.view.image).permute(2, 0, 1).to(before) / 255
    inner = (slice(None), slice(_CROP, -_CROP), slice(_CROP, -_CROP))
    size = (image.shape[1], image.shape[2])
    wanted = image[inner]
    grid = target.bundle.config.view.grid
    shown = [enlarged(x[None], size, grid)[0][inner] for x in (before, after)]
    errors = [float(((x - wanted) ** 2).mean()) for x in shown]
    return errors[1] <= errors[0] and ssim(shown[1], wanted) >= ssim(shown[0], wanted)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of images (3, H, W) in 0..1, with 7x7 box means."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x[None], (3, 3, 3, 3), mode="reflect"), 7, 1)[0]

    c1, c2 = 1e-4, 9e-4
    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    value = (2 * ma * mb + c1) * (2 * covariance + c2)
    value = value / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(value.clamp(0, 1).mean())

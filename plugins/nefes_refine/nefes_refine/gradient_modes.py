"""The two published ways to refine: gradients through the field into a pose or into the regressor.

Chen et al., NeFeS, CVPR 2024, section 3.5: Adam on 1 - cosine between rendered and extracted features,
where a cosine is taken per channel over all pixels.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.bundle import Bundle
from nefes_refine.config import RefineConfig
from nefes_refine.posenet import PoseNet, orthogonal
from reloc_core.errors import ConfigError
from reloc_core.types import Float64Array

if TYPE_CHECKING:
    from nefes_refine.refiner import Target

_CHUNK = 1024  # rays whose graph is alive at a time
_CROP = 10  # published: pixels of the working image left out at each border, weights mode


def channel_cosine_loss(rendered: Tensor, wanted: Tensor) -> Tensor:
    """1 - mean over channels of the cosine over pixels, of maps (C, H, W).

    Invariant to a channel's scale, not to a pixel's.
    """
    a, b = rendered.flatten(1), wanted.flatten(1)
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-6).mean()


def so3_exp_torch(vector: Tensor) -> Tensor:
    """Rotation matrix (3, 3) of a rotation vector (3,), differentiable at zero (Rodrigues)."""
    zero = torch.zeros_like(vector[0])
    x, y, z = vector
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    squared = vector.dot(vector)
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    a = torch.where(small, 1 - squared / 6, torch.sin(angle) / angle)
    b = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
    return torch.eye(3, dtype=vector.dtype) + a * skew + b * (skew @ skew)


def left_jacobian(vector: Tensor) -> Tensor:
    """V (3, 3) of the SE(3) exponential: its translation is V t."""
    zero = torch.zeros_like(vector[0])
    x, y, z = vector
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    squared = vector.dot(vector)
    small = squared < 1e-6
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    a = torch.where(small, 0.5 - squared / 24, (1 - torch.cos(angle)) / safe)
    b = torch.where(small, 1 / 6 - squared / 120, (angle - torch.sin(angle)) / (safe * angle))
    return torch.eye(3, dtype=vector.dtype) + a * skew + b * (skew @ skew)


def rendered_gradient(
    bundle: Bundle, target: Target, pose: Tensor, crop: int = 0
) -> tuple[float, Tensor, Tensor]:
    """Loss, its gradient (3, 4) with respect to a pose, and the rendered colours (3, H, W).

    The image is rendered without a graph, the loss is differentiated down to the rendered values, and
    these are rendered again in chunks of rays with a graph: memory does not grow with the image.
    """
    from nefes_refine.field_training import render_map

    field = bundle.field
    fixed = torch.eye(4, dtype=torch.float64)
    fixed[:3] = pose.detach().double()
    colours, features, _ = render_map(
        field, fixed, target.directions, target.shape, target.histogram
    )
    colours, features = (x.clone().requires_grad_(True) for x in (colours, features))
    with torch.enable_grad():
        fused = field.fuse(colours[None], features[None])[0]
        inner = (slice(None), slice(crop, -crop or None), slice(crop, -crop or None))
        loss = channel_cosine_loss(fused[inner], target.features[inner])
        grads = torch.autograd.grad(loss, (colours, features))
        wanted = [g.flatten(1).T for g in grads]
        leaf = pose.detach().clone().requires_grad_(True)
        total = torch.zeros_like(leaf)
        bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=leaf.dtype)
        for start in range(0, len(target.directions), _CHUNK):
            part = slice(start, start + _CHUNK)
            origins, turned = field.scene.rays(torch.cat([leaf, bottom]), target.directions[part])
            found = field.render(
                origins.to(bundle.device), turned.to(bundle.device), target.histogram[None]
            )
            value = (found.colour * wanted[0][part]).sum() + (
                found.features * wanted[1][part]
            ).sum()
            total += torch.autograd.grad(value, leaf)[0]
    return float(loss.detach()), total, colours.detach()


def refine_pose_mode(
    bundle: Bundle, target: Target, world_from_cam: Float64Array, config: RefineConfig
) -> Float64Array:
    """Pose mode: Adam on a rotation about the camera's centre and a shift of it."""
    rotation = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    start = torch.from_numpy(world_from_cam)
    optimizer = torch.optim.Adam(
        [{"params": [rotation], "lr": config.learning_rate_rotation},
         {"params": [shift], "lr": config.learning_rate_translation}]
    )  # fmt: skip

    def current() -> Tensor:
        turned = so3_exp_torch(rotation) @ start[:3, :3]
        position = start[:3, 3] + left_jacobian(rotation) @ shift
        return torch.cat([turned, position[:, None]], 1)

    return _optimise(bundle, target, world_from_cam, config, optimizer, current, 0)


def refine_weights_mode(
    bundle: Bundle, target: Target, world_from_cam: Float64Array, config: RefineConfig
) -> Float64Array:
    """Weights mode: Adam on a private copy of the regressor, whose output is the pose.

    The pose that is refined is therefore the regressor's own, not the one handed in.

    Raises:
        ConfigError: the map holds no regressor that could be optimised.
    """
    if isinstance(bundle.regressor, PoseNet):
        network = copy.deepcopy(bundle.regressor).requires_grad_(True)

        def current() -> Tensor:
            return orthogonal(network(target.features[None]))[0]
    else:
        from nefes_refine.dfnet import DFNet
        from nefes_refine.published import from_centred, image_tensor

        if not isinstance(bundle.regressor, DFNet):
            raise ConfigError("mode=weights needs a map with a regressor.")
        network = copy.deepcopy(bundle.regressor).requires_grad_(True)
        pixels = image_tensor(target.view.image)[None].to(bundle.device)

        def current() -> Tensor:
            return from_centred(bundle.scene, orthogonal(network.pose(pixels)))[0]

    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    crop = max(1, round(_CROP / bundle.config.view.stride))
    return _optimise(bundle, target, world_from_cam, config, optimizer, current, crop)


def _optimise(bundle, target, initial, config, optimizer, current, crop):  # type: ignore[no-untyped-def]
    """Iterate; with `verify`, keep the best seen pose by the loss and the published image check."""
    with torch.enable_grad():
        best, best_loss, first_colours, best_colours = initial, None, None, None
        for _ in range(config.iterations):
            pose = current()
            loss, gradient, colours = rendered_gradient(bundle, target, pose, crop)
            found = _matrix(pose)
            if best_loss is None:
                first_colours, first_pose = colours, found
            if best_loss is None or loss < best_loss or not config.verify:
                best, best_loss, best_colours = found, loss, colours
            optimizer.zero_grad()
            pose.backward(gradient.to(pose))
            optimizer.step()
        if not config.verify:
            return _matrix(current())
    if not _image_not_worse(target.colours, first_colours, best_colours):
        return first_pose
    return best


def _matrix(pose: Tensor) -> Float64Array:
    import numpy as np

    from reloc_core.geometry import nearest_rotation

    result = np.eye(4)
    result[:3] = pose.detach().double().cpu().numpy()
    result[:3, :3] = nearest_rotation(result[:3, :3])
    return result


def _image_not_worse(query: Tensor, before: Tensor, after: Tensor) -> bool:
    """The published verification: neither PSNR nor SSIM of the rendering has fallen."""
    wanted = query.permute(2, 0, 1).to(before)
    errors = [float(((x - wanted) ** 2).mean()) for x in (before, after)]
    return errors[1] <= errors[0] and ssim(after, wanted) >= ssim(before, wanted)


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

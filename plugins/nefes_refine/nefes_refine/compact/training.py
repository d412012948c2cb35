"""Training of the small regressor on real and synthetic feature maps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.compact.posenet import INPUT, PoseNet, pose_loss
from nefes_refine.config import RegressorConfig
from nefes_refine.field.data import Images
from nefes_refine.field.rendering import Field
from nefes_refine.field.synthetic_views import median_depth, random_poses, render_features
from nefes_refine.regressor import orthogonal
from reloc_core.geometry import nearest_rotation, so3_log
from reloc_core.interfaces import Run

_NOISE = 0.05  # standard deviation of the noise on features in training
_DROP = 0.3  # share of training maps in which a rectangle is blanked


def train_posenet(
    options: RegressorConfig, field: Field, images: Images, run: Run, seed: int
) -> PoseNet:
    """Train a regressor for the scene of a field.

    Args:
        options: epochs, synthetic views.
        field: trained.
        images: the training images with features.
        run: for progress.
        seed: of views, order and initialisation.
    """
    rng = np.random.default_rng(seed)
    poses = images.poses.numpy()
    count = round(options.synthetic_views * len(images))
    source = np.arange(count) % len(images)
    synthetic = np.zeros((0, 4, 4))
    if count:
        synthetic = random_poses(poses[source], options, median_depth(field, images), rng)
    maps = [_resized(images.maps(slice(i, i + 32))) for i in range(0, len(images), 32)]
    with run.progress("Rendering random views", count) as progress:
        for number, pose in zip(source, synthetic, strict=True):
            found = render_features(field, pose, images.cells[number], images.histograms[number])
            maps.append(_resized(found[None].cpu()))
            progress.advance()
    inputs = torch.cat(maps)
    targets = torch.from_numpy(np.concatenate([poses, synthetic])[:, :3]).float()
    torch.manual_seed(seed)
    centers = images.poses[:, :3, 3].float()
    spread = float(centers.std(0).norm()) or 1.0
    network = PoseNet(inputs.shape[1], centers.mean(0), spread)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=1e-4)
    steps = options.epochs * -(-len(inputs) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate * 2, total_steps=max(steps, 2)
    )
    generator = torch.Generator().manual_seed(seed)
    with run.progress("Training the regressor", options.epochs) as progress:
        for _ in range(options.epochs):
            total = 0.0
            for chosen in torch.randperm(len(inputs), generator=generator).split(options.batch):
                batch = augmented(inputs[chosen].float(), generator)
                loss = pose_loss(network(batch), targets[chosen], network.spread)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(chosen)
            progress.advance(1, loss=total / len(inputs))
    return network.eval().requires_grad_(False)


def _resized(maps: Tensor) -> Tensor:
    return F.interpolate(maps, INPUT, mode="area").half()


def augmented(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Feature maps (B, C, H, W) with noise and, in some, a blank rectangle."""
    noisy = maps + _NOISE * torch.randn(maps.shape, generator=generator)
    rows, columns = maps.shape[-2:]
    for one in noisy:
        if float(torch.rand((), generator=generator)) < _DROP:
            top = int(torch.randint(rows // 2, (), generator=generator))
            left = int(torch.randint(columns // 2, (), generator=generator))
            one[:, top : top + rows // 3, left : left + columns // 3] = 0
    return noisy


@torch.no_grad()
def regress(network: PoseNet, maps: Tensor) -> np.ndarray:
    """Poses (B, 4, 4) float64 of feature maps (B, C, rows, columns)."""
    poses = np.tile(np.eye(4), (len(maps), 1, 1))
    poses[:, :3] = orthogonal(network(maps)).cpu().numpy()
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
    return poses


def residual_covariance(network: PoseNet, images: Images) -> np.ndarray:
    """Covariance (6, 6) of the regressor's errors on images it has not seen.

    In the tangent of `reloc_core.types`; a diagonal, because the errors are few.
    """
    found = regress(network, images.maps())
    true = images.poses.numpy()
    turned = np.swapaxes(found[:, :3, :3], 1, 2)
    rotation = so3_log(turned @ true[:, :3, :3])
    shift = np.einsum("nij,nj->ni", turned, true[:, :3, 3] - found[:, :3, 3])
    errors = np.concatenate([rotation, shift], 1)
    return np.diag((errors**2).mean(0) + 1e-8)

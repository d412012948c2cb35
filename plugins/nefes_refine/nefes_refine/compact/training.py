"""Training of the small regressor on real and synthetic feature maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.compact.posenet import INPUT, PoseNet, pose_loss
from nefes_refine.config import RegressorConfig
from nefes_refine.field.data import Images
from nefes_refine.field.rendering import Field
from nefes_refine.field.synthetic_views import median_depth, random_poses, render_features
from nefes_refine.refine.mapped_views import MappedViews, tangents
from nefes_refine.refine.novelty import Novelty
from nefes_refine.regressor import orthogonal
from reloc_core.geometry import nearest_rotation
from reloc_core.interfaces import Run
from reloc_core.types import Float64Array

_STRETCHES = 14  # of a sequence, every third of which tests the regressor
_NOISE = 0.05  # standard deviation of the noise on features in training
_DROP = 0.3  # share of training maps in which a rectangle is blanked


@dataclass
class Lesson:
    """What a regressor learns from.

    Attributes:
        inputs: (M, C, rows, columns) float16 feature maps, those of the N images first.
        targets: (M, 3, 4) poses.
        source: (M,) image that a map shows or was drawn near.
        images: N.
    """

    inputs: Tensor
    targets: Tensor
    source: np.ndarray
    images: int


def prepare(options: RegressorConfig, field: Field, images: Images, run: Run, seed: int) -> Lesson:
    """Feature maps of the images and of random views near them that the field renders.

    Args:
        options: how many views, and how far.
        field: trained.
        images: the training images with features.
        run: for progress.
        seed: of the views.
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
    targets = torch.from_numpy(np.concatenate([poses, synthetic])[:, :3]).float()
    return Lesson(
        torch.cat(maps), targets, np.concatenate([np.arange(len(images)), source]), len(images)
    )


def train_posenet(
    options: RegressorConfig, lesson: Lesson, run: Run, seed: int, kept: np.ndarray | None = None
) -> PoseNet:
    """Train a regressor: few passes over small maps, done anew when interrupted.

    Args:
        options: epochs, batch, learning rate.
        lesson: from `prepare`.
        run: for progress.
        seed: of order and initialisation.
        kept: (N,) bool: the images that it may learn from, and the views near these; all by default.
    """
    rows = np.arange(len(lesson.inputs))
    if kept is not None:
        rows = rows[kept[lesson.source]]
    inputs, targets = lesson.inputs[rows], lesson.targets[rows]
    torch.manual_seed(seed)
    centers = targets[rows < lesson.images][:, :3, 3]
    spread = float(centers.std(0).norm()) or 1.0
    network = PoseNet(inputs.shape[1], centers.mean(0), spread)
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=1e-4)
    steps = options.epochs * -(-len(inputs) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate * 2, total_steps=max(steps, 2)
    )
    generator = torch.Generator().manual_seed(seed)
    title = "Training the regressor" if kept is None else "Testing the regressor"
    with run.progress(title, options.epochs) as progress:
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


def measure_errors(
    options: RegressorConfig,
    lesson: Lesson,
    views: MappedViews,
    images: Images,
    run: Run,
    seed: int,
) -> tuple[Float64Array, Novelty]:
    """Covariance (6, 6) of a regressor's errors away from mapped images, and what is usual there.

    A regressor like the real one, trained for half as long, is asked about stretches of the sequence that
    it has not seen: single images between mapped ones would tell far too little.
    """
    stretch = np.arange(lesson.images) * _STRETCHES // lesson.images
    held = stretch % 3 == 1
    half = replace(options, epochs=max(options.epochs // 2, 1))
    network = train_posenet(half, lesson, run, seed, ~held)
    numbers = np.flatnonzero(held)
    found = regress(network, lesson.inputs[numbers].float())
    truth = images.poses.numpy()[numbers]
    errors = np.concatenate([tangents(f, t[None]) for f, t in zip(found, truth, strict=True)])
    covariance: Float64Array = np.diag((errors**2).mean(0) + 1e-8)
    maps = [images.maps([int(i)])[0] for i in numbers]
    return covariance, Novelty.measure(views.some(~held), maps, found, covariance)


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

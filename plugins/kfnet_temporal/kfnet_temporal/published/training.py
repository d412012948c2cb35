"""Stages 2 and 3 of the published training: OFlowNet on pairs, then both networks on windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.labels import Labels
from kfnet_temporal.common.sequences import windows
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.published.augment import (
    corner_pixels,
    draw_jitter,
    draw_motion,
    jitter,
    moved_image,
    moved_pixels,
    scaled_rgb,
    scaled_size,
)
from kfnet_temporal.published.measurement import ScoordnetEstimator
from kfnet_temporal.published.objectives import flow_loss, window_loss
from kfnet_temporal.published.process import OflowProcess
from reloc_core.errors import ConfigError, DataError
from reloc_core.geometry import transform
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.streams import numpy_rng, torch_rng
from reloc_core.types import Float64Array


@dataclass(frozen=True)
class Scene:
    """A mapping dataset with its labels, and the frame that its coordinates are wanted in."""

    dataset: Dataset
    labels: Labels
    frame_from_world: Float64Array


@dataclass(frozen=True)
class Window:
    """Consecutive images of a scene, augmented alike.

    Attributes:
        images: (T, 3, H, W) RGB in 0..255.
        labels: (T, 3, h, w) NaN where unknown.
    """

    images: Tensor
    labels: Tensor

    @property
    def cells(self) -> Tensor:
        """(T, 3, h, w) the images at the pixels that the cells stand for."""
        return self.images[:, :, ::8, ::8]


def read_window(
    scene: Scene, frames: Sequence[int], resolution: int, rng: np.random.Generator,
    augment: bool, zoom: bool,
) -> Window:  # fmt: skip
    """Read images with labels; all of them get the same augmentation."""
    brightness, contrast = draw_jitter(rng)
    motion: Float64Array | None = None
    images, targets = [], []
    for index in frames:
        query = scene.dataset[index]
        rgb = scaled_rgb(query.image, resolution)
        if motion is None:
            motion = draw_motion(rng, rgb.shape[0], rgb.shape[1], zoom) if augment else np.eye(2, 3)
        image = rgb.astype(np.float32)
        if augment:
            image = moved_image(jitter(image, brightness, contrast), motion)
        height, width = query.image.shape[:2]
        scale = np.array([width, height]) / scaled_size(width, height, resolution)
        pixels, shape = corner_pixels((height, width), resolution)
        places = moved_pixels((pixels + 0.5) / scale - 0.5, motion)
        inside = ((places >= 0) & (places <= np.array(rgb.shape[1::-1]) - 1)).all(1)
        points = scene.labels.at(index, query, (places + 0.5) * scale - 0.5)
        points[~inside] = np.nan
        found = transform(scene.frame_from_world, points)
        images.append(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        targets.append(torch.from_numpy(found).float().T.reshape(3, *shape))
    return Window(torch.stack(images).float(), torch.stack(targets))


# ------------------------------------------------------------------------------------- stage 2


def train_oflow(
    process: OflowProcess, scenes: Sequence[Scene], config: TemporalConfig, run: Run,
    checkpoint: Checkpoint,
) -> None:  # fmt: skip
    """Stage 2: the prior from true coordinates must explain those of the neighbour, both ways.

    Raises:
        DataError: no two consecutive frames.
    """
    options = config.process
    pairs = [(s, w) for s in scenes for w in windows(s.dataset, 2, config.filter.max_gap)]
    if not pairs:
        raise DataError("There are no two consecutive frames to learn the flow from.")
    parameters = process.network.parameters()
    optimizer = torch.optim.Adam(
        parameters, options.learning_rate, weight_decay=options.weight_decay
    )

    def step_loss(step: int) -> Tensor:
        rng = numpy_rng(run.runtime.seed, "pairs", step)
        generator = torch_rng(run.runtime.seed, "noise", step)
        scene, frames = pairs[int(rng.integers(len(pairs)))]
        window = read_window(scene, frames, process.resolution, rng, options.augment, False)
        std = float(rng.uniform(options.noise[0], options.noise[1]))
        features = process.network.features(window.images.to(process.device))
        return flow_loss(process, features, window.labels, window.cells, config, std, generator)

    train_steps(
        run, "OFlowNet", checkpoint, "oflow", options.iterations, {"process": process}, optimizer,
        step_loss, options.rate,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- stage 3


def train_both(
    measurement: ScoordnetEstimator, process: OflowProcess, scene: Scene, config: TemporalConfig,
    run: Run, checkpoint: Checkpoint,
) -> None:  # fmt: skip
    """Stage 3: both networks through the unrolled filter, windows forwards and backwards.

    Raises:
        ConfigError: the networks work at different resolutions.
        DataError: no window of consecutive frames.
    """
    options = config.joint
    if measurement.config.resolution != process.resolution:
        raise ConfigError(
            f"estimator.measurement.options.resolution ({measurement.config.resolution}) and "
            f"estimator.process.resolution ({process.resolution}) must agree to train both networks."
        )
    found = windows(scene.dataset, options.window, config.filter.max_gap)
    if not found:
        raise DataError(
            f"{scene.dataset.name} has no {options.window} consecutive frames. Lower "
            "estimator.joint.window."
        )
    assert measurement.network is not None
    measurement.network.train().requires_grad_(True)
    process.network.requires_grad_(not options.fix_process)
    trained = (
        [measurement.network] if options.fix_process else [measurement.network, process.network]
    )
    optimizer = torch.optim.Adam(
        [p for m in trained for p in m.parameters()],
        options.learning_rate,
        weight_decay=config.process.weight_decay,
    )

    def step_loss(step: int) -> Tensor:
        rng = numpy_rng(run.runtime.seed, "windows", step)
        frames = list(found[int(rng.integers(len(found)))])
        if rng.integers(2):
            frames.reverse()
        augment = measurement.config.augment
        window = read_window(scene, frames, process.resolution, rng, augment, True)
        images = window.images.to(process.device)
        points, variances = measurement.measure(images)
        features = process.network.features(images)
        return window_loss(
            process, points, variances, features, window.labels, window.cells, config
        )

    modules = {"process": process, "measurement": measurement.network}
    train_steps(
        run, "KFNet", checkpoint, "kfnet", options.iterations, modules, optimizer, step_loss,
        options.rate,
    )  # fmt: skip

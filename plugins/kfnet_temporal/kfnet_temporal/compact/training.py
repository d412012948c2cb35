"""Stages 2 and 3 of the compact training: the narrow networks on crops of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.sequences import windows
from kfnet_temporal.compact.bank import FeatureBank
from kfnet_temporal.compact.measurement import NarrowEstimator
from kfnet_temporal.compact.networks import KERNEL, bordered
from kfnet_temporal.compact.process import NarrowProcess
from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.published.objectives import flow_loss, window_loss
from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.streams import numpy_rng, torch_rng

CROP = (24, 32)
"""Rows and columns of cells of a training example."""
_MAX_NORM = 10.0


def train_narrow_flow(
    process: NarrowProcess, dataset: Dataset, bank: FeatureBank, config: TemporalConfig, run: Run,
    checkpoint: Checkpoint,
) -> None:  # fmt: skip
    """Stage 2: the prior from true coordinates must explain those of the neighbour, both ways.

    Raises:
        DataError: no two consecutive frames.
    """
    options = config.process
    pairs = windows(dataset, 2, config.filter.max_gap)
    if not pairs:
        raise DataError("There are no two consecutive frames to learn the flow from.")
    optimizer = torch.optim.Adam(
        process.network.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )

    def step_loss(step: int) -> Tensor:
        rng = numpy_rng(run.runtime.seed, "pairs", step)
        frames, crop = pairs[int(rng.integers(len(pairs)))], draw_crop(bank, rng)
        std = float(rng.uniform(options.noise[0], options.noise[1]))
        return flow_loss(
            process, *taken(bank, frames, crop), config, std,
            torch_rng(run.runtime.seed, "noise", step),
        )  # fmt: skip

    train_steps(
        run, "Flow", checkpoint, "oflow", options.iterations, {"process": process}, optimizer,
        step_loss, options.rate, max_norm=_MAX_NORM,
    )  # fmt: skip


def train_narrow_both(
    measurement: NarrowEstimator, process: NarrowProcess, dataset: Dataset, bank: FeatureBank,
    config: TemporalConfig, run: Run, checkpoint: Checkpoint,
) -> None:  # fmt: skip
    """Stage 3: both networks through the unrolled filter, windows forwards and backwards.

    Raises:
        DataError: no window of consecutive frames.
    """
    options = config.joint
    found = windows(dataset, options.window, config.filter.max_gap)
    if not found:
        raise DataError(
            f"{dataset.name} has no {options.window} consecutive frames. Lower estimator.joint.window."
        )
    network = measurement.network
    assert network is not None
    network.train().requires_grad_(True)
    process.network.requires_grad_(not options.fix_process)
    modules = {"measurement": network, "process": process}
    trained = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, options.learning_rate)

    def step_loss(step: int) -> Tensor:
        rng = numpy_rng(run.runtime.seed, "windows", step)
        frames = list(found[int(rng.integers(len(found)))])
        if rng.integers(2):
            frames.reverse()
        crop = draw_crop(bank, rng)
        points, std = network(_wider(bank, frames, crop).to(process.device))
        return window_loss(process, points, std.square(), *taken(bank, frames, crop), config)

    train_steps(
        run, "Joint", checkpoint, "kfnet", options.iterations, modules, optimizer, step_loss,
        options.rate, max_norm=_MAX_NORM,
    )  # fmt: skip


def draw_crop(bank: FeatureBank, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a training example."""
    found = []
    for size, wanted in zip(bank.labels.shape[-2:], CROP, strict=True):
        first = int(rng.integers(0, max(size - wanted, 0) + 1))
        found.append(slice(first, min(first + wanted, size)))
    return found[0], found[1]


def taken(
    bank: FeatureBank, frames: range | list[int], crop: tuple[slice, slice]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and grey levels (T, ., h, w) of some images."""
    chosen = list(frames)
    rows, columns = crop
    return (
        bank.features[chosen][..., rows, columns].float(),
        bank.labels[chosen][..., rows, columns],
        bank.cells[chosen][..., rows, columns].float(),
    )


def _wider(bank: FeatureBank, frames: list[int], crop: tuple[slice, slice]) -> Tensor:
    """Features (T, C, h + 2, w + 2) with the cells around the crop."""
    rows, columns = (slice(s.start, s.stop + KERNEL - 1) for s in crop)
    return bordered(bank.features[frames].float())[..., rows, columns]

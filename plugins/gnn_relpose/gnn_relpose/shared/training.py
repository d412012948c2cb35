"""The training loop of the networks of this project: one-cycle schedule, checkpoints."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnn_relpose.shared.config import TrainConfig
from gnn_relpose.shared.loss import WeightedPoseLoss, one_cycle
from reloc_core.errors import RelocError
from reloc_core.interfaces import Run
from reloc_core.training.packing import pack, unpack

_MAX_GRADIENT = 5.0


class GraphTrainer(ABC):
    """Trains a network on graphs of scenes, which are drawn with the square root of their size.

    Args:
        options: of the loop.
        network: to train.
        sizes: queries of each scene.
        seed: of everything random.
        optimizer: class of the optimizer.

    Attributes:
        step: iterations done.
        chances: of the scenes.
    """

    def __init__(
        self,
        options: TrainConfig,
        network: nn.Module,
        sizes: Sequence[int],
        seed: int,
        optimizer: type[torch.optim.Adam | torch.optim.AdamW],
    ) -> None:
        self.options, self.module, self.seed, self.step = options, network, seed, 0
        shares = np.sqrt(sizes)
        self.chances = shares / shares.sum()
        self.weighting = WeightedPoseLoss(options.translation_weight, options.rotation_weight)
        self.parameters = [*network.parameters(), *self.weighting.parameters()]
        self.optimizer = optimizer(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay
        )

    @abstractmethod
    def iterate(self) -> Mapping[str, float]:
        """One optimizer step; returns what is logged of it."""

    def run(self, run: Run) -> dict[str, float]:
        """Train to the last iteration, from the checkpoint when there is one.

        Raises:
            RelocError: the loss is not a number; the last checkpoint is kept.
        """
        found = run.map.load_checkpoint()
        if found is not None:
            self.restore(*found)
        total, metrics = self.options.iterations, {}
        saved = time.monotonic()
        self.module.train()
        with run.progress("Training the network", total) as progress:
            progress.advance(self.step)
            while self.step < total:
                metrics = dict(self.iterate())
                if self.step % self.options.log_every == 0 or self.step == total:
                    run.log("iteration", step=self.step, **metrics)
                    progress.advance(0, **metrics)
                progress.advance(1)
                late = time.monotonic() - saved >= self.options.checkpoint_seconds
                if self.step < total and late:
                    run.map.save_checkpoint(*self.state())
                    saved = time.monotonic()
        self.module.eval()
        return metrics

    def descend(self, loss: Tensor) -> None:
        """Follow the gradient of a scalar for one step."""
        if not bool(loss.isfinite()):
            raise RelocError(
                f"Training diverged at iteration {self.step}: the loss is not a number. The last "
                "checkpoint is kept. Check the poses with 'reloc data check', or train again with "
                "resume=false and a lower estimator.train.learning_rate."
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT)
        rate = self.options.learning_rate * one_cycle(self.step / self.options.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that continuing needs, as tensors and JSON."""
        modules = {"network": self.module, "loss": self.weighting}
        return pack(modules, self.optimizer), {"step": self.step}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        unpack(tensors, {"network": self.module, "loss": self.weighting}, self.optimizer)
        self.step = int(metadata["step"])

"""How the networks of this project are trained: on graphs of several scenes, with a one-cycle schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnn_relpose.shared.config import TrainConfig
from gnn_relpose.shared.loss import WeightedPoseLoss, one_cycle
from reloc_core.errors import DataError, MapError
from reloc_core.interfaces import Dataset, Run
from reloc_core.maps import Map
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps

_MAX_GRADIENT = 5.0


def other_scenes(run: Run, regime: str) -> list[Dataset]:
    """The scenes beside the mapped one that a network learns from; see `TrainConfig.regime`.

    Raises:
        DataError: there are none, and it may learn from no other.
    """
    extra = list(run.extra_datasets) if regime != "single" else []
    if regime == "leave_one_out" and not extra:
        raise DataError(
            "estimator.train.regime=leave_one_out trains on other scenes only: name some with "
            "extra_datasets=[{name: DATASET, root: DIR}, ...]."
        )
    return extra


def load_weights(network: nn.Module, scene_map: Map) -> Mapping[str, Any]:
    """Read the network of a map, in place; returns what else is stored of it.

    Raises:
        MapError: the map is of another method, or its network of another shape.
    """
    state, metadata = scene_map.tensors("network")
    expected = network.state_dict()
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
        raise MapError(
            f"The network of {scene_map.path} has another shape than the configuration. Leave the "
            "options below estimator.network out, or train again."
        )
    network.load_state_dict(state)
    return metadata


class GraphTrainer(ABC):
    """Trains a network on graphs of scenes, which are drawn with the square root of their size.

    Args:
        options: of the loop.
        network: to train.
        sizes: queries of each scene.
        seed: of everything random.
        optimizer: class of the optimizer.

    Attributes:
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
        self.options, self.module, self.seed = options, network, seed
        shares = np.sqrt(sizes)
        self.chances = shares / shares.sum()
        self.weighting = WeightedPoseLoss(options.translation_weight, options.rotation_weight)
        self.optimizer = optimizer(
            [*network.parameters(), *self.weighting.parameters()],
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
        )

    @abstractmethod
    def step_loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a step, and what is logged of it."""

    def run(self, run: Run) -> dict[str, float]:
        """Train to the last iteration, from the checkpoint when there is one.

        Raises:
            RelocError: the loss is not a number; the last checkpoint is kept.
        """
        options = self.options
        self.module.train()
        metrics = train_steps(
            run, "Training the network", Checkpoint(run.map, options.checkpoint_seconds), "network",
            options.iterations, {"network": self.module, "loss": self.weighting}, self.optimizer,
            self.step_loss, lambda step: options.learning_rate * one_cycle(step / options.iterations),
            _MAX_GRADIENT, options.log_every,
        )  # fmt: skip
        self.module.eval()
        return metrics

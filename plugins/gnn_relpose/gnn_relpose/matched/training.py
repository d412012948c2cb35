"""The training loop of the compact network: Adam, one-cycle schedule, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.matched.config import MatchedConfig
from gnn_relpose.matched.graphs import augment, make_batch, training_graph
from gnn_relpose.matched.loss import LossTerms, graph_loss
from gnn_relpose.matched.network import GraphNetwork
from gnn_relpose.matched.scene import Pairs, Scene
from gnn_relpose.shared.loss import WeightedPoseLoss, one_cycle
from reloc_core.errors import RelocError
from reloc_core.interfaces import Run
from reloc_core.training.packing import pack, unpack
from reloc_core.training.streams import numpy_rng, torch_rng

_MAX_GRADIENT = 5.0


class Trainer:
    """Trains a network on graphs of prepared scenes.

    Scenes are drawn with the square root of their number of queries, so small ones are not drowned.

    Args:
        config: of the estimator.
        network: to train.
        scenes: prepared scenes with their training pairs.
        seed: of everything random.

    Attributes:
        step: iterations done.
    """

    def __init__(
        self,
        config: MatchedConfig,
        network: GraphNetwork,
        scenes: Sequence[tuple[Scene, Pairs]],
        seed: int,
    ) -> None:
        self.config, self.network, self.seed = config, network, seed
        self.scenes = scenes
        sizes = np.sqrt([len(pairs.queries) for _, pairs in scenes])
        self.chances = sizes / sizes.sum()
        options = config.train
        self.weighting = WeightedPoseLoss(options.translation_weight, options.rotation_weight)
        self.parameters = [*network.parameters(), *self.weighting.parameters()]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.step = 0

    def run(self, run: Run) -> dict[str, float]:
        """Train to the last iteration, from the checkpoint when there is one.

        Raises:
            RelocError: the loss is not a number; the last checkpoint is kept.
        """
        if run.map.has_checkpoint:
            self.restore(*run.map.load_checkpoint())
        total, options = self.config.train.iterations, self.config.train
        metrics: dict[str, float] = {}
        saved = time.monotonic()
        self.network.train()
        with run.progress("Training the network", total) as progress:
            progress.advance(self.step)
            while self.step < total:
                terms = self.iterate()
                if self.step % options.log_every == 0 or self.step == total:
                    metrics = _metrics(terms)
                    run.log("iteration", step=self.step, **metrics)
                    progress.advance(0, **metrics)
                progress.advance(1)
                if self.step < total and time.monotonic() - saved >= options.checkpoint_seconds:
                    run.map.save_checkpoint(*self.state())
                    saved = time.monotonic()
        self.network.eval()
        return metrics

    def iterate(self) -> LossTerms:
        """One optimizer step."""
        options = self.config.train
        rng = numpy_rng(self.seed, "batch", self.step)
        torch.manual_seed(int(rng.integers(1 << 62)))  # of dropout
        graphs = []
        for _ in range(options.batch_size):
            scene, pairs = self.scenes[int(rng.choice(len(self.scenes), p=self.chances))]
            row = int(rng.integers(len(pairs.queries)))
            there = np.flatnonzero(pairs.candidates[row] >= 0)
            columns = rng.permutation(there)[: self.config.graph.neighbours]
            graphs.append(training_graph(scene, pairs, row, columns))
        batch, target = make_batch(graphs)
        assert target is not None
        stream = torch_rng(self.seed, "augment", self.step)
        batch, target, genuine = augment(batch, target, self.config.augment, stream)
        shown = [g.genuine for g in graphs for _ in g.rays]
        genuine = genuine * torch.tensor(shown, dtype=genuine.dtype)
        terms = graph_loss(self.weighting, self.network(batch), target, genuine)
        if not bool(terms.total.isfinite()):
            raise RelocError(
                f"Training diverged at iteration {self.step}: the loss is not a number. The last "
                "checkpoint is kept. Check the poses with 'reloc data check', or train again with "
                "resume=false and a lower estimator.train.learning_rate."
            )
        self.optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * one_cycle(self.step / options.iterations)
        self.optimizer.step()
        self.step += 1
        return terms

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that continuing needs, as tensors and JSON."""
        modules = {"network": self.network, "loss": self.weighting}
        return pack(modules, self.optimizer), {"step": self.step}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        unpack(tensors, {"network": self.network, "loss": self.weighting}, self.optimizer)
        self.step = int(metadata["step"])


def _metrics(terms: LossTerms) -> dict[str, float]:
    return {
        "loss": float(terms.total.detach()),
        "rotation_deg": math.degrees(float(terms.rotation)),
        "translation_per_depth": float(terms.translation),
        "right": float(terms.right),
    }

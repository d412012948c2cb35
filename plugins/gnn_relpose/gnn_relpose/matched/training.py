"""What the network of matches is trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.matched.config import MatchedConfig
from gnn_relpose.matched.graphs import augment, make_batch, training_graph
from gnn_relpose.matched.loss import LossTerms, graph_loss
from gnn_relpose.matched.network import GraphNetwork
from gnn_relpose.matched.scene import Pairs, Scene
from gnn_relpose.shared.training import GraphTrainer
from reloc_core.training.streams import numpy_rng, torch_rng


class Trainer(GraphTrainer):
    """Trains a network on graphs of prepared scenes.

    Args:
        config: of the estimator.
        network: to train.
        scenes: prepared scenes with their training pairs.
        seed: of everything random.
    """

    def __init__(
        self,
        config: MatchedConfig,
        network: GraphNetwork,
        scenes: Sequence[tuple[Scene, Pairs]],
        seed: int,
    ) -> None:
        self.config, self.network, self.scenes = config, network, scenes
        sizes = [len(pairs.queries) for _, pairs in scenes]
        super().__init__(config.train, network, sizes, seed, torch.optim.Adam)

    def step_loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """See `GraphTrainer.step_loss`."""
        rng = numpy_rng(self.seed, "batch", step)
        torch.manual_seed(int(rng.integers(1 << 62)))  # of dropout
        graphs = []
        for _ in range(self.options.batch_size):
            scene, pairs = self.scenes[int(rng.choice(len(self.scenes), p=self.chances))]
            row = int(rng.integers(len(pairs.queries)))
            there = np.flatnonzero(pairs.candidates[row] >= 0)
            columns = rng.permutation(there)[: self.config.graph.neighbours]
            graphs.append(training_graph(scene, pairs, row, columns))
        batch, target = make_batch(graphs)
        assert target is not None
        stream = torch_rng(self.seed, "augment", step)
        batch, target, genuine = augment(batch, target, self.config.augment, stream)
        shown = [g.genuine for g in graphs for _ in g.rays]
        genuine = genuine * torch.tensor(shown, dtype=genuine.dtype)
        terms = graph_loss(self.weighting, self.network(batch), target, genuine)
        return terms.total, _metrics(terms)


def _metrics(terms: LossTerms) -> dict[str, float]:
    return {
        "loss": float(terms.total.detach()),
        "rotation_deg": math.degrees(float(terms.rotation)),
        "translation_per_depth": float(terms.translation),
        "right": float(terms.right),
    }

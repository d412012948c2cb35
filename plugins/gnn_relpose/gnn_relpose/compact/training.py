"""What the compact network is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.compact.config import CompactConfig
from gnn_relpose.compact.network import CompactNetwork
from gnn_relpose.compact.scene import TrainingScene
from gnn_relpose.shared.config import GraphConfig
from gnn_relpose.shared.selection import thin
from gnn_relpose.shared.topology import batch_edges
from gnn_relpose.shared.training import GraphTrainer
from reloc_core.training.streams import numpy_rng, torch_rng

_LARGEST_PERIOD = 5  # published indoors; smaller ones are met at localization
_ELSEWHERE = 0.5  # share of graphs without references of the query's own stretch of the sequence
_SCALE_WEIGHT = 0.1


class Trainer(GraphTrainer):
    """Trains a network on graphs of prepared scenes.

    A graph is an image and references that retrieval finds for it, thinned by a random stride; every
    image shows itself or one of its turned copies. All edges count, as published.

    Args:
        config: of the estimator.
        network: to train.
        scenes: prepared scenes.
        seed: of everything random.
    """

    def __init__(
        self,
        config: CompactConfig,
        network: CompactNetwork,
        scenes: Sequence[TrainingScene],
        seed: int,
    ) -> None:
        self.config, self.network, self.scenes = config, network, scenes
        self.members = [np.flatnonzero(~scene.held) for scene in scenes]
        sizes = [len(members) for members in self.members]
        super().__init__(config.train, network, sizes, seed, torch.optim.AdamW)

    def step_loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """See `GraphTrainer.step_loss`."""
        rng = numpy_rng(self.seed, "batch", step)
        torch.manual_seed(int(rng.integers(1 << 62)))  # of dropout
        maps, vectors, sizes = [], [], []
        for _ in range(self.options.batch_size):
            number = int(rng.choice(len(self.scenes), p=self.chances))
            scene, images = self.scenes[number], self._graph(number, rng)
            shown = rng.integers(scene.maps.shape[1], size=len(images))
            maps.append(scene.maps[images, shown])
            vectors.append(scene.vectors[images, shown])
            sizes.append(len(images))
        index, _ = batch_edges(sizes)
        target = torch.cat(vectors)
        inputs = self._augmented(torch.cat(maps).float(), step)
        found, scales = self.network.relative(self.network.nodes(inputs), index)
        error = (found - (target[index[0]] - target[index[1]])).abs()
        both = torch.stack([error[:, :3].mean(1), error[:, 3:].mean(1)], 1)
        loss = self.weighting(both[:, 0].mean(), both[:, 1].mean())
        # Laplace likelihood of the errors: scales that fit them.
        likelihood = (both.detach() * (-scales).exp() + scales).mean()
        mean = both.detach().mean(0)
        return loss + _SCALE_WEIGHT * likelihood, {
            "loss": float(loss.detach()),
            "translation": float(mean[0]),
            "half_angle": float(mean[1]),
        }

    def _graph(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """A query and its references, in random order but for the query."""
        scene = self.scenes[number]
        query = int(rng.choice(self.members[number]))
        ranking = scene.ranking[query]
        ranking = ranking[~scene.held[ranking]]
        if rng.random() < _ELSEWHERE:
            others = ranking[scene.blocks[ranking] != scene.blocks[query]]
            ranking = others if len(others) else ranking
        period = int(rng.integers(1, _LARGEST_PERIOD + 1))
        rule = GraphConfig(self.config.graph.neighbours, period, dropout=0.5, random_start=True)
        chosen = thin(ranking[: self.config.retrieval.pool], rule, rng)
        return np.concatenate([[query], rng.permutation(chosen)])

    def _augmented(self, maps: Tensor, step: int) -> Tensor:
        """Noise on all features, a blank rectangle in some images."""
        options = self.config.augment
        generator = torch_rng(self.seed, "augment", step)
        noisy = maps + options.noise * torch.randn(maps.shape, generator=generator)
        rows, columns = maps.shape[-2:]
        for one in noisy:
            if float(torch.rand((), generator=generator)) < options.blank:
                top = int(torch.randint(rows // 2 + 1, (), generator=generator))
                left = int(torch.randint(columns // 2 + 1, (), generator=generator))
                one[:, top : top + rows // 3, left : left + columns // 3] = 0
        return noisy

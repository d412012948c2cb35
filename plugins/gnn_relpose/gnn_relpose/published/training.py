"""Training of the published network: Adam with stepwise decay over epochs of all scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.published.config import PublishedConfig
from gnn_relpose.published.images import Colors, jitter, resize
from gnn_relpose.published.network import PublishedNetwork
from gnn_relpose.shared.loss import WeightedPoseLoss
from gnn_relpose.shared.ranking import Ranking
from gnn_relpose.shared.selection import thin
from gnn_relpose.shared.topology import batch_edges
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.streams import numpy_rng

_BLOCK = 10  # images that cross_connect counts as one sequence


@dataclass
class TrainingScene:
    """A scene whose images become nodes.

    Attributes:
        dataset: its images.
        colors: their statistics.
        vectors: (F, 6) pose vectors.
        ranking: of an image its references (R,), best first.
    """

    dataset: Dataset
    colors: Colors
    vectors: Tensor
    ranking: Ranking


class PublishedTrainer:
    """Adam with stepwise decay over epochs of all scenes, one graph per training image."""

    def __init__(
        self,
        config: PublishedConfig,
        network: PublishedNetwork,
        scenes: Sequence[TrainingScene],
        seed: int,
    ) -> None:
        self.config, self.network, self.scenes, self.seed = config, network, scenes, seed
        options = config.train
        self.device = next(network.parameters()).device
        self.weighting = WeightedPoseLoss(options.translation_weight, options.rotation_weight)
        self.weighting.to(self.device)
        self.optimizer = torch.optim.Adam(
            [*network.parameters(), *self.weighting.parameters()],
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        self.images = [(s, i) for s, scene in enumerate(scenes) for i in range(len(scene.dataset))]
        self.steps_per_epoch = max(len(self.images) // options.batch_size, 1)

    def run(self, run: Run) -> dict[str, float]:
        """Train to the last epoch, from the checkpoint when there is one; returns last errors."""
        options = self.config.train

        def rate(step: int) -> float:
            epoch = step // self.steps_per_epoch
            return float(options.learning_rate * options.decay ** (epoch // options.decay_step))

        self.network.train()
        return train_steps(
            run, "Training the network", Checkpoint(run.map, options.checkpoint_seconds), "network",
            options.epochs * self.steps_per_epoch, {"network": self.network, "loss": self.weighting},
            self.optimizer, self.step_loss, rate, log_every=options.log_every,
        )  # fmt: skip

    def step_loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a step, and what is logged of it."""
        options = self.config.train
        epoch, position = divmod(step, self.steps_per_epoch)
        order = numpy_rng(self.seed, "batch", epoch).permutation(len(self.images))
        rows = order[position * options.batch_size :][: options.batch_size]
        rng = numpy_rng(self.seed, "augment", step)
        images, vectors, sizes = [], [], []
        for row in rows:
            shown, poses = self._graph(*self.images[row], rng)
            images += shown
            vectors.append(poses)
            sizes.append(len(shown))
        index, graph = batch_edges(sizes)
        index = self._kept(index, sizes, rng).to(self.device)
        target = torch.cat(vectors).to(self.device)
        torch.manual_seed(int(rng.integers(1 << 62)))
        nodes = self._nodes(images)
        found, index = self.network.relative(nodes, index, graph.to(self.device), True)
        error = (found - (target[index[0]] - target[index[1]])).abs()
        loss = self.weighting(error[:, :3].mean(), error[:, 3:].mean())
        return loss, {
            "loss": float(loss.detach()),
            "translation": float(error[:, :3].mean().detach()),
            "half_angle": float(error[:, 3:].mean().detach()),
        }

    def _graph(
        self, number: int, query: int, rng: np.random.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Images and pose vectors of a training graph, references in random order."""
        scene = self.scenes[number]
        ranking = scene.ranking[query]
        if self.config.cross_connect:
            others = ranking[ranking // _BLOCK != query // _BLOCK]
            ranking = others if len(others) else ranking
        chosen = thin(ranking[: self.config.retrieval.pool], self.config.graph, rng)
        members = np.concatenate([[query], rng.permutation(chosen)])
        images = []
        for member in members:
            image = resize(scene.dataset[int(member)].image, self.config.height) / 255.0
            images.append(
                scene.colors.normalize(jitter(image, self.config.train.color_jitter, rng))
            )
        return images, scene.vectors[torch.from_numpy(members)]

    def _nodes(self, images: Sequence[Tensor]) -> Tensor:
        """Node vectors; images of one size are run together."""
        shapes = [tuple(image.shape) for image in images]
        nodes = torch.zeros(len(images), self.config.network.channels, device=self.device)
        for shape in sorted(set(shapes)):
            members = [i for i, s in enumerate(shapes) if s == shape]
            stacked = torch.stack([images[i] for i in members]).to(self.device)
            nodes = nodes.index_add(
                0, torch.tensor(members, device=self.device), self.network.nodes(stacked)
            )
        return nodes

    def _kept(self, index: Tensor, sizes: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Edges after edge dropout: one mask over pairs, for both directions and all graphs alike."""
        chance = self.config.train.edge_dropout
        if chance == 0:
            return index
        largest = max(sizes)
        kept = np.triu(rng.random((largest, largest)) >= chance, 1)
        if not kept.any():
            return index
        starts = np.repeat(np.cumsum([0, *sizes[:-1]]), [n * (n - 1) for n in sizes])
        local = index.numpy() - starts
        chosen = torch.from_numpy((kept | kept.T)[local[0], local[1]])
        return index[:, chosen] if bool(chosen.any()) else index

"""Training of the published network: Adam with stepwise decay over epochs of all scenes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.published.config import PublishedConfig
from gnn_relpose.published.images import Colors, jitter, resize
from gnn_relpose.published.network import PublishedNetwork
from gnn_relpose.shared.loss import WeightedPoseLoss
from gnn_relpose.shared.ranking import Ranking
from gnn_relpose.shared.selection import Thinning, thin
from gnn_relpose.shared.topology import batch_edges
from reloc_core.errors import RelocError
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.packing import pack, unpack
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


def thinning(config: PublishedConfig) -> Thinning:
    """How the published rule thins a ranking."""
    graph = config.graph
    return Thinning(graph.neighbours, graph.period, graph.dropout, graph.random_start)


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
        self.parameters = [*network.parameters(), *self.weighting.parameters()]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.images = [(s, i) for s, scene in enumerate(scenes) for i in range(len(scene.dataset))]
        self.steps_per_epoch = max(len(self.images) // options.batch_size, 1)
        self.step = 0

    def run(self, run: Run) -> dict[str, float]:
        """Train to the last epoch, from the checkpoint when there is one; returns last errors."""
        if run.map.has_checkpoint:
            self._restore(*run.map.load_checkpoint())
        options = self.config.train
        total = options.epochs * self.steps_per_epoch
        saved, metrics = time.monotonic(), {}
        self.network.train()
        with run.progress("Training the network", total) as progress:
            progress.advance(self.step)
            while self.step < total:
                metrics = self.iterate()
                if self.step % options.log_every == 0 or self.step == total:
                    run.log("iteration", step=self.step, **metrics)
                progress.advance(1, **metrics)
                if self.step < total and time.monotonic() - saved >= options.checkpoint_seconds:
                    run.map.save_checkpoint(*self._state())
                    saved = time.monotonic()
        return metrics

    def iterate(self) -> dict[str, float]:
        """One optimizer step.

        Raises:
            RelocError: the loss is not a number.
        """
        options = self.config.train
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = numpy_rng(self.seed, "batch", epoch).permutation(len(self.images))
        rows = order[position * options.batch_size :][: options.batch_size]
        rng = numpy_rng(self.seed, "augment", self.step)
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
        if not bool(loss.isfinite()):
            raise RelocError(
                f"Training diverged at step {self.step}: the loss is not a number. Train again with "
                "resume=false and a lower estimator.train.learning_rate."
            )
        self.optimizer.zero_grad()
        loss.backward()
        rate = options.learning_rate * options.decay ** (epoch // options.decay_step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        return {
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
        chosen = thin(ranking[: self.config.retrieval.pool], thinning(self.config), rng)
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

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that continuing needs, as tensors and JSON."""
        modules = {"network": self.network, "loss": self.weighting}
        return pack(modules, self.optimizer), {"step": self.step}

    def _restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continue from `_state`."""
        unpack(tensors, {"network": self.network, "loss": self.weighting}, self.optimizer)
        self.step = int(metadata["step"])

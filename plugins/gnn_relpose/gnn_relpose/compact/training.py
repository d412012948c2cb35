"""Training of the compact network: Adam, one-cycle schedule, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.compact.config import CompactConfig
from gnn_relpose.compact.network import CompactNetwork
from gnn_relpose.compact.scene import TrainingScene
from gnn_relpose.shared.loss import WeightedPoseLoss, one_cycle
from gnn_relpose.shared.selection import Thinning, thin
from gnn_relpose.shared.topology import batch_edges
from reloc_core.errors import RelocError
from reloc_core.interfaces import Run
from reloc_core.training.packing import pack, unpack
from reloc_core.training.streams import numpy_rng, torch_rng

_MAX_GRADIENT = 5.0
_LARGEST_PERIOD = 5  # published indoors; smaller ones are met at localization
_ELSEWHERE = 0.5  # share of graphs without references of the query's own stretch of the sequence
_SCALE_WEIGHT = 0.1


class Trainer:
    """Trains a network on graphs of prepared scenes.

    A graph is an image and references that retrieval finds for it, thinned by a random stride; every
    image shows itself or one of its turned copies. All edges count, as published.

    Args:
        config: of the estimator.
        network: to train.
        scenes: prepared scenes; drawn with the square root of their size.
        seed: of everything random.

    Attributes:
        step: iterations done.
    """

    def __init__(
        self,
        config: CompactConfig,
        network: CompactNetwork,
        scenes: Sequence[TrainingScene],
        seed: int,
    ) -> None:
        self.config, self.network, self.seed, self.scenes = config, network, seed, scenes
        self.members = [np.flatnonzero(~scene.held) for scene in scenes]
        sizes = np.sqrt([len(m) for m in self.members])
        self.chances = sizes / sizes.sum()
        options = config.train
        self.weighting = WeightedPoseLoss(options.translation_weight, options.rotation_weight)
        self.parameters = [*network.parameters(), *self.weighting.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.step = 0

    def run(self, run: Run) -> dict[str, float]:
        """Train to the last iteration, from the checkpoint when there is one.

        Raises:
            RelocError: the loss is not a number; the last checkpoint is kept.
        """
        found = run.map.load_checkpoint()
        if found is not None:
            self.restore(*found)
        total, options = self.config.train.iterations, self.config.train
        metrics: dict[str, float] = {}
        saved = time.monotonic()
        self.network.train()
        with run.progress("Training the network", total) as progress:
            progress.advance(self.step)
            while self.step < total:
                metrics = self.iterate()
                if self.step % options.log_every == 0 or self.step == total:
                    run.log("iteration", step=self.step, **metrics)
                    progress.advance(0, **metrics)
                progress.advance(1)
                if self.step < total and time.monotonic() - saved >= options.checkpoint_seconds:
                    run.map.save_checkpoint(*self.state())
                    saved = time.monotonic()
        self.network.eval()
        return metrics

    def iterate(self) -> dict[str, float]:
        """One optimizer step."""
        options = self.config.train
        rng = numpy_rng(self.seed, "batch", self.step)
        torch.manual_seed(int(rng.integers(1 << 62)))  # of dropout
        maps, vectors, sizes = [], [], []
        for _ in range(options.batch_size):
            number = int(rng.choice(len(self.scenes), p=self.chances))
            scene, images = self.scenes[number], self._graph(number, rng)
            shown = rng.integers(scene.maps.shape[1], size=len(images))
            maps.append(scene.maps[images, shown])
            vectors.append(scene.vectors[images, shown])
            sizes.append(len(images))
        index, _ = batch_edges(sizes)
        target = torch.cat(vectors)
        inputs = self._augmented(torch.cat(maps).float())
        found, scales = self.network.relative(self.network.nodes(inputs), index)
        error = (found - (target[index[0]] - target[index[1]])).abs()
        both = torch.stack([error[:, :3].mean(1), error[:, 3:].mean(1)], 1)
        loss = self.weighting(both[:, 0].mean(), both[:, 1].mean())
        if not bool(loss.isfinite()):
            raise RelocError(
                f"Training diverged at step {self.step}: the loss is not a number. Train again with "
                "resume=false and a lower estimator.train.learning_rate."
            )
        # Laplace likelihood of the errors: scales that fit them.
        likelihood = (both.detach() * (-scales).exp() + scales).mean()
        self.optimizer.zero_grad()
        (loss + _SCALE_WEIGHT * likelihood).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * one_cycle(self.step / options.iterations)
        self.optimizer.step()
        self.step += 1
        mean = both.detach().mean(0)
        return {
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
        rule = Thinning(
            self.config.graph.neighbours, int(rng.integers(1, _LARGEST_PERIOD + 1)), 0.5, True
        )
        chosen = thin(ranking[: self.config.retrieval.pool], rule, rng)
        return np.concatenate([[query], rng.permutation(chosen)])

    def _augmented(self, maps: Tensor) -> Tensor:
        """Noise on all features, a blank rectangle in some images."""
        options = self.config.augment
        generator = torch_rng(self.seed, "augment", self.step)
        noisy = maps + options.noise * torch.randn(maps.shape, generator=generator)
        rows, columns = maps.shape[-2:]
        for one in noisy:
            if float(torch.rand((), generator=generator)) < options.blank:
                top = int(torch.randint(rows // 2 + 1, (), generator=generator))
                left = int(torch.randint(columns // 2 + 1, (), generator=generator))
                one[:, top : top + rows // 3, left : left + columns // 3] = 0
        return noisy

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that continuing needs, as tensors and JSON."""
        modules = {"network": self.network, "loss": self.weighting}
        return pack(modules, self.optimizer), {"step": self.step}

    def restore(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        unpack(tensors, {"network": self.network, "loss": self.weighting}, self.optimizer)
        self.step = int(metadata["step"])

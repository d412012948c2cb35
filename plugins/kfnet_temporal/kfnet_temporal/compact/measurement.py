"""The estimator `kfnet_narrow`: a narrow SCoordNet on frozen features; stage 1 of the compact training."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.grid import FeatureExtractor, FeatureGrid
from kfnet_temporal.common.labels import Labels, make_labels, principal_axes
from kfnet_temporal.common.losses import likelihood
from kfnet_temporal.compact.bank import FeatureBank, gather
from kfnet_temporal.compact.networks import KERNEL, NarrowScoordNet, bordered
from kfnet_temporal.measurement_config import NarrowConfig, check_narrow
from reloc_core.errors import DataError, MapError
from reloc_core.geometry import transform
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.streams import torch_rng, torch_seed
from reloc_core.types import Correspondences, Float64Array, Query

_MIN_IMAGES = 8
_MAX_NORM = 10.0


class NarrowEstimator(Estimator):
    """Dense scene coordinates with variances by a narrow SCoordNet.

    Args:
        config: options; see `NarrowConfig`.

    Attributes:
        bank: features and labels that it was fitted to; the filter's further stages use them too.
    """

    produces = Correspondences

    def __init__(self, config: NarrowConfig) -> None:
        check_narrow(config)
        self.config = config
        self.network: NarrowScoordNet | None = None
        self.extractor: FeatureExtractor | None = None
        self.normalised_from_world: Float64Array = np.eye(4)
        self.bank: FeatureBank | None = None

    # ------------------------------------------------------------------------------ training

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`: stage 1.

        Raises:
            DataError: too few images, of several sizes, or without labels.
        """
        if len(dataset) < _MIN_IMAGES:
            raise DataError(
                f"{dataset.name} has {len(dataset)} images; a map needs at least {_MIN_IMAGES}."
            )
        labels = make_labels(dataset, self.config.labels, run)
        extractor = FeatureExtractor(self.config.resolution, run.runtime.device)
        self.extractor = extractor
        self.normalised_from_world = principal_axes(dataset, labels, lambda q: extractor(q).pixels)
        self.gather(dataset, labels, run)
        assert self.bank is not None
        self.network = self._new_network(run.runtime.seed).to(run.runtime.device)
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )  # fmt: skip
        cells = Cells(self.bank)
        train_steps(
            run, "Scene coordinates", Checkpoint(run.map), "scoordnet", self.config.iterations,
            {"network": self.network}, optimizer,
            lambda step: self._step_loss(cells, run.runtime.seed, step), self.rate,
            max_norm=_MAX_NORM,
        )  # fmt: skip
        self.freeze()
        self.save(run)

    def gather(self, dataset: Dataset, labels: Labels, run: Run) -> None:
        """Compute what all stages learn from."""
        assert self.extractor is not None
        self.bank = gather(
            dataset, labels, self.extractor, self.normalised_from_world, run, self.config.augment
        )

    def rate(self, step: int) -> float:
        """Learning rate: a linear start, then half a cosine."""
        warm = min(1.0, (step + 1) / max(1, min(100, self.config.iterations // 10)))
        fall = 0.5 + 0.5 * math.cos(math.pi * step / max(self.config.iterations, 1))
        return self.config.learning_rate * (warm * fall + 1e-3)

    def _new_network(self, seed: int) -> NarrowScoordNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "scoordnet"))
            return NarrowScoordNet(self.config.channels, self.config.blocks)

    def _step_loss(self, cells: Cells, seed: int, step: int) -> Tensor:
        """The likelihood of the labels of random cells, which all come from different images."""
        assert self.network is not None
        patches, targets = cells.draw(self.config.batch, torch_rng(seed, "cells", step))
        device = next(self.network.parameters()).device
        points, std = self.network(patches.to(device))
        return likelihood(points, std.square(), targets.to(device)[:, :, None, None]).mean()

    # ---------------------------------------------------------------------------------- maps

    def save(self, run: Run) -> None:
        """Write the network and its frame."""
        assert self.network is not None
        tensors = {f"network.{k}": v.cpu() for k, v in self.network.state_dict().items()}
        tensors["normalised_from_world"] = torch.from_numpy(self.normalised_from_world.copy())
        metadata = {k: getattr(self.config, k) for k in ("resolution", "channels", "blocks")}
        run.map.save("scoordnet", tensors, metadata)
        run.map.details.update(parameters=sum(p.numel() for p in self.network.parameters()))

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: of another resolution or network.
        """
        tensors, metadata = scene_map.tensors("scoordnet")
        for name in ("resolution", "channels", "blocks"):
            if metadata.get(name) != getattr(self.config, name):
                raise MapError(
                    f"{scene_map.path} was trained with {name} {metadata.get(name)}, not "
                    f"{getattr(self.config, name)}. Leave the option out, or train again."
                )
        try:
            self.normalised_from_world = tensors.pop("normalised_from_world").double().numpy()
            network = NarrowScoordNet(self.config.channels, self.config.blocks)
            network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items()})
        except (KeyError, RuntimeError) as error:
            raise MapError(f"{scene_map.path} holds no narrow SCoordNet ({error}).") from error
        self.network = network.to(runtime.device)
        self.extractor = FeatureExtractor(self.config.resolution, runtime.device)
        self.freeze()

    def freeze(self) -> None:
        """Stop training the network."""
        assert self.network is not None
        self.network.eval().requires_grad_(False)

    # -------------------------------------------------------------------------- localization

    @torch.inference_mode()
    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per cell of 8 x 8 pixels."""
        if self.network is None or self.extractor is None:
            raise MapError("kfnet_narrow has no map yet: call load or fit first.")
        grid: FeatureGrid = self.extractor(query)
        if grid.contrast < 1.0:
            return Correspondences(np.zeros((0, 2)), np.zeros((0, 3)), variances=np.zeros(0))
        device = next(self.network.parameters()).device
        points, std = self.network(bordered(grid.features[None].to(device)))
        flat = points[0].flatten(1).T.cpu().double().numpy()
        return Correspondences(
            grid.pixels, transform(np.linalg.inv(self.normalised_from_world), flat),
            variances=std[0].square().flatten().cpu().double().numpy(), grid_shape=grid.shape,
            redundancy=self.config.redundancy,
        )  # fmt: skip


class Cells:
    """All labelled cells of a bank, to be drawn from at random with their neighbours.

    Args:
        bank: features and labels.
    """

    def __init__(self, bank: FeatureBank) -> None:
        self.shape = bank.labels.shape[-2:]
        # Cells first and channels last, so that a cell's channels lie side by side.
        self.features = bordered(bank.features).permute(0, 2, 3, 1).contiguous()
        self.labels = bank.labels.permute(0, 2, 3, 1).reshape(-1, 3)
        self.known = torch.isfinite(self.labels).all(1).nonzero()[:, 0]
        self.around = torch.stack(
            torch.meshgrid(torch.arange(KERNEL), torch.arange(KERNEL), indexing="ij")
        ).flatten(1)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Patches (count, C, 3, 3) of features and labels (count, 3)."""
        chosen = self.known[torch.randint(len(self.known), (count,), generator=generator)]
        rows, columns = self.shape
        image, cell = chosen // (rows * columns), chosen % (rows * columns)
        y, x = cell // columns, cell % columns
        patches = self.features[
            image[:, None], y[:, None] + self.around[0], x[:, None] + self.around[1]
        ]
        return patches.float().permute(0, 2, 1).unflatten(2, (KERNEL, KERNEL)), self.labels[chosen]

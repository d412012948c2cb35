"""The estimator `kfnet_scoordnet`: the published measurement, and stage 1 of its training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.formats import read_transform
from kfnet_temporal.common.labels import Labels, make_labels, principal_axes
from kfnet_temporal.common.losses import likelihood, masked_mean
from kfnet_temporal.measurement_config import ScoordnetConfig, check_scoordnet
from kfnet_temporal.published.augment import (
    corner_pixels,
    draw_jitter,
    draw_motion,
    jitter,
    moved_image,
    moved_pixels,
    scaled_rgb,
    scaled_size,
)
from kfnet_temporal.published.scoordnet import SCoordNet
from kfnet_temporal.published.tf_import import import_scoordnet
from reloc_core.errors import MapError
from reloc_core.geometry import transform
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Correspondences, Float64Array, Query


class ScoordnetEstimator(Estimator):
    """SCoordNet, trained from scene coordinate labels by their likelihood.

    Args:
        config: options; see `ScoordnetConfig`.
    """

    produces = Correspondences

    def __init__(self, config: ScoordnetConfig) -> None:
        check_scoordnet(config)
        self.config = config
        self.network: SCoordNet | None = None
        self.normalised_from_world: Float64Array = np.eye(4)
        self.device = "cpu"

    # ------------------------------------------------------------------------------ training

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`: stage 1.

        Raises:
            DataError: there are no labels.
        """
        labels = make_labels(dataset, self.config.labels, run)
        self.device = run.runtime.device
        if self.config.transform:
            self.normalised_from_world = read_transform(self.config.transform)
        else:
            self.normalised_from_world = principal_axes(
                dataset, labels, lambda query: self.cells(query)[0]
            )
        self.network = self._new_network(run.runtime.seed).to(self.device)
        optimizer = torch.optim.Adam(
            self.network.parameters(),
            self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        train_steps(
            run, "SCoordNet", Checkpoint(run.map), "scoordnet", self.config.iterations,
            {"network": self.network}, optimizer,
            lambda step: self.step_loss(dataset, labels, run.runtime.seed, step),
            self.config.rate,
        )  # fmt: skip
        self.freeze()
        self.save(run)

    def _new_network(self, seed: int) -> SCoordNet:
        if self.config.weights:
            return import_scoordnet(self.config.weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SCoordNet()

    def step_loss(self, dataset: Dataset, labels: Labels, seed: int, step: int) -> Tensor:
        """The loss of one training step: the likelihood of the labels in a batch of images."""
        rng = numpy_rng(seed, "images", step)
        images, targets = [], []
        for index in rng.integers(0, len(dataset), self.config.batch):
            image, target = self._example(dataset, int(index), labels, rng)
            images.append(image)
            targets.append(target)
        points, variance = self.measure(torch.stack(images))
        target = torch.stack(targets).to(points.device)
        mask = torch.isfinite(target).all(1)
        target = torch.where(mask[:, None], target, torch.zeros_like(target))
        return masked_mean(likelihood(points, variance, target), mask)

    def _example(
        self, dataset: Dataset, index: int, labels: Labels, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        query = dataset[index]
        rgb = scaled_rgb(query.image, self.config.resolution)
        motion = np.eye(2, 3)
        image = rgb.astype(np.float32)
        if self.config.augment:
            image = jitter(image, *draw_jitter(rng))
            motion = draw_motion(rng, rgb.shape[0], rgb.shape[1], zoom=True)
            image = moved_image(image, motion)
        target = self.moved_labels(index, query, labels, motion)
        return torch.from_numpy(image).permute(2, 0, 1), target

    def moved_labels(
        self, index: int, query: Query, labels: Labels, motion: Float64Array
    ) -> Tensor:
        """Labels (3, h, w) in the normalised frame of an image seen through `draw_motion`."""
        pixels, shape = self.cells(query)
        height, width = scaled_rgb(query.image, self.config.resolution).shape[:2]
        size = query.image.shape[1], query.image.shape[0]
        scale = np.array(size) / scaled_size(*size, self.config.resolution)
        places = moved_pixels((pixels + 0.5) / scale - 0.5, motion)
        inside = ((places >= 0) & (places <= np.array([width - 1, height - 1]))).all(1)
        points = labels.at(index, query, (places + 0.5) * scale - 0.5)
        points[~inside] = np.nan
        normalised = transform(self.normalised_from_world, points)
        return torch.from_numpy(normalised).float().T.reshape(3, *shape)

    # ---------------------------------------------------------------------------------- maps

    def save(self, run: Run) -> None:
        """Write the network and its frame."""
        assert self.network is not None
        tensors = {f"network.{k}": v.cpu() for k, v in self.network.state_dict().items()}
        tensors["normalised_from_world"] = torch.from_numpy(self.normalised_from_world.copy())
        run.map.save("scoordnet", tensors, {"resolution": self.config.resolution})
        parameters = sum(p.numel() for p in self.network.parameters())
        run.map.details.update(parameters=parameters)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: of another resolution or network.
        """
        tensors, metadata = scene_map.tensors("scoordnet")
        if metadata.get("resolution") != self.config.resolution:
            raise MapError(
                f"{scene_map.path} was trained with resolution {metadata.get('resolution')}, not "
                f"{self.config.resolution}. Leave the option out, or train again."
            )
        try:
            self.normalised_from_world = tensors.pop("normalised_from_world").double().numpy()
            network = SCoordNet()
            network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items()})
        except (KeyError, RuntimeError) as error:
            raise MapError(f"{scene_map.path} holds no SCoordNet ({error}).") from error
        self.device = runtime.device
        self.network = network.to(self.device)
        self.freeze()

    def freeze(self) -> None:
        """Stop training the network."""
        assert self.network is not None
        self.network.eval().requires_grad_(False)

    # -------------------------------------------------------------------------- localization

    def cells(self, query: Query) -> tuple[Float64Array, tuple[int, int]]:
        """Pixels (h * w, 2) of the cells in the image, and the grid's shape."""
        height, width = query.image.shape[:2]
        return corner_pixels((height, width), self.config.resolution)

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (B, 3, h, w) in the normalised frame, and variances (B, h, w) in m^2.

        Args:
            images: (B, 3, H, W) RGB in 0..255.
        """
        if self.network is None:
            raise MapError("kfnet_scoordnet has no map yet: call load or fit first.")
        points, std = self.network(images.to(self.device))
        return points, std.square()

    @torch.inference_mode()
    def estimate(self, query: Query) -> Correspondences:
        """See `Estimator.estimate`: one correspondence per cell of 8 x 8 pixels."""
        image = scaled_rgb(query.image, self.config.resolution)
        points, variance = self.measure(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        pixels, shape = self.cells(query)
        flat = points[0].flatten(1).T.cpu().double().numpy()
        variances = variance[0].flatten().cpu().double().numpy()
        world = transform(np.linalg.inv(self.normalised_from_world), flat)
        good = np.isfinite(world).all(1) & np.isfinite(variances) & (variances > 0)
        return Correspondences(
            pixels[good], world[good], variances=variances[good],
            grid_shape=shape if good.all() else None,
        )  # fmt: skip

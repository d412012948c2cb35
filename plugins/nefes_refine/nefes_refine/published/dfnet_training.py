"""Training of DFNet on photographs, renderings of the same poses and random views."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.config import NefesConfig, RegressorConfig
from nefes_refine.field.data import Images, read_images
from nefes_refine.field.rendering import Field
from nefes_refine.field.synthetic_views import median_depth, random_centred_poses
from nefes_refine.field.training import enlarged, render_map
from nefes_refine.field.views import make_view, working_size
from nefes_refine.published.dfnet import DFNet, image_tensor, triplet_loss
from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.types import Float64Array, ImageArray

_PLATEAU = 0.95  # published: factor of the learning rate after `patience` epochs without progress


def photographs(dataset: Dataset, indices: np.ndarray, config: NefesConfig, run: Run) -> Images:
    """Rays and exposures of images that DFNet learns from; their pixels are read when needed.

    Raises:
        DataError: fewer than two images, which the triplet loss needs.
    """
    if len(indices) < 2:
        raise DataError("DFNet needs at least two images.")

    def nothing(image: ImageArray) -> Tensor:
        return torch.zeros(1, 1, 1)

    return read_images(dataset, indices, config, run, nothing)


class DFNetTrainer:
    """loss = MSE of the 12 pose numbers of both + triplet loss + MSE of the random views.

    The learning rate falls when images that are not trained on get no better, and training ends when
    they do not for long; the best network by these is kept. (The published code takes test images.)
    For that the loop is its own.

    Args:
        network: to train; knows the scene whose centred frame it predicts in.
        config: options.
        field: of the scene, after its colour stage.
        dataset: where the photographs are read from.
        images: what to train on, see `photographs`.
        unseen: held-out images.
        run: for progress.
    """

    def __init__(
        self, network: DFNet, config: NefesConfig, field: Field, dataset: Dataset, images: Images,
        unseen: Images, run: Run,
    ) -> None:  # fmt: skip
        self.network, self.config, self.field, self.run = network, config, field, run
        self.dataset, self.images, self.unseen = dataset, images, unseen
        self.options = config.regressor
        self.device = next(network.parameters()).device
        camera = dataset.frames[int(images.indices[0])].camera
        self.size = working_size(camera, config.view.resolution)
        self.optimizer = torch.optim.Adam(network.parameters(), self.options.learning_rate)

    def train(self) -> None:
        """Train to the last epoch or until nothing gets better."""
        options, seed = self.options, self.run.runtime.seed
        generator = torch.Generator().manual_seed(seed)
        rng = np.random.default_rng(seed)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=_PLATEAU, patience=options.patience
        )
        poses = self.images.poses.numpy()
        targets = self.field.scene.centred(self.images.poses).float()
        rendered = self._rendered(poses)
        depth = median_depth(self.field, self.images)
        extra: tuple[Tensor, Tensor] | None = None
        best, since = float("inf"), 0
        kept = {k: v.clone() for k, v in self.network.state_dict().items()}
        with self.run.progress("Training DFNet", options.epochs) as progress:
            for epoch in range(options.epochs):
                if options.synthetic_views > 0 and epoch % options.refresh_every == 0:
                    extra = self.random_views(depth, rng)
                order = torch.randperm(len(self.images), generator=generator)
                loss = self._epoch(order, targets, rendered, extra)
                error = self.validation_loss()
                plateau.step(error)
                since += 1
                if error < best:
                    best, since = error, 0
                    kept = {k: v.clone() for k, v in self.network.state_dict().items()}
                progress.advance(1, loss=loss, held_out=error)
                if since >= options.stop_patience:
                    break
        self.network.load_state_dict(kept)

    def random_views(self, depth: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Renderings (N, 3, H, W) near the images and their poses (N, 3, 4) in the centred frame."""
        scene = self.field.scene
        centred = scene.centred(self.images.poses).numpy()
        drawn = torch.from_numpy(random_centred_poses(centred, self.options, depth, rng))
        poses = np.tile(np.eye(4), (len(drawn), 1, 1))
        poses[:, :3] = scene.from_centred(drawn).numpy()
        return self._rendered(poses), drawn.float()

    def _epoch(
        self, order: Tensor, targets: Tensor, rendered: Tensor, extra: tuple[Tensor, Tensor] | None
    ) -> float:
        """One pass; returns the mean loss."""
        total = 0.0
        self.network.train()
        for chosen in order.split(self.options.batch):
            if len(chosen) < 2:
                continue
            photos = torch.stack([self._photo(self.images, int(i)) for i in chosen])
            loss = dfnet_loss(
                self.network, photos.to(self.device), rendered[chosen].to(self.device),
                targets[chosen].to(self.device), self.options,
            )  # fmt: skip
            if extra is not None:
                found = self.network.raw_poses(extra[0][chosen].to(self.device))
                loss = loss + F.mse_loss(found, extra[1][chosen].to(self.device))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += float(loss.detach()) * len(chosen)
        return total / len(self.images)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean squared error of the 12 pose numbers over the held-out images."""
        self.network.eval()
        targets = self.field.scene.centred(self.unseen.poses).float()
        errors = [
            F.mse_loss(
                self.network.raw_poses(self._photo(self.unseen, i)[None].to(self.device))[0].cpu(),
                targets[i],
            )
            for i in range(len(self.unseen))
        ]
        return float(torch.stack(errors).mean())

    def _photo(self, images: Images, number: int) -> Tensor:
        query = self.dataset[int(images.indices[number])]
        return image_tensor(make_view(query, self.config.view, self.size).image)

    def _rendered(self, poses: Float64Array) -> Tensor:
        """Colour renderings (N, 3, H, W) at the working size, enlarged from the cells."""
        found = []
        images, size = self.images, self.size
        for number, pose in enumerate(poses):
            colour = render_map(
                self.field, torch.from_numpy(pose), images.directions[number], images.shape,
                images.histograms[number].to(self.device),
            )[0].cpu()  # fmt: skip
            large = enlarged(colour[None], (size[1], size[0]), self.config.view.grid)[0]
            found.append(large.clamp(0, 1))
        return torch.stack(found)


def dfnet_loss(
    network: DFNet, photos: Tensor, rendered: Tensor, poses: Tensor, options: RegressorConfig
) -> Tensor:
    """Pose and triplet loss of photographs and renderings (B, 3, H, W) of the same poses.

    One mean over the 12 numbers of both, which weighs as much as that of the random views.
    """
    count = len(photos)
    size = (photos.shape[-2], photos.shape[-1])
    features, found = network(torch.cat([photos, rendered]), size)
    loss = F.mse_loss(found, torch.cat([poses, poses]))
    if options.triplet_weight:
        triplet = triplet_loss(features[:, count:], features[:, :count], options.triplet_margin)
        loss = loss + options.triplet_weight * triplet
    return loss

"""Training of a field in the three stages of NeFeS: colour, features, fusion."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nefes_refine.config import TrainingConfig
from nefes_refine.field.data import Images
from nefes_refine.field.rendering import Field, Rendering
from reloc_core.errors import RelocError
from reloc_core.interfaces import Run
from reloc_core.training.packing import pack, unpack

_SIGHT_MARGIN = 0.08  # scene units before a measured surface that must be empty
_RAYS = 8192  # rendered at a time
_STAGES = ("colour", "feature", "fusion")


@dataclass(frozen=True)
class Batch:
    """Cells of one step: image numbers and cell numbers, (R,) each; `patches` are squares of cells."""

    images: Tensor
    cells: Tensor
    patches: int = 0


class FieldTrainer:
    """Trains a field on cells of images.

    The loop is its own: one optimizer goes through all stages, between which DFNet may be trained.

    Args:
        config: steps, losses, schedule.
        field: to train.
        images: what to train on.
        seed: of the choice of rays.
        l1_features: compare features by L1, as published, instead of 1 - cosine.
        counted: images of which a pass consists where the configuration counts those; all by default.
    """

    def __init__(
        self, config: TrainingConfig, field: Field, images: Images, seed: int,
        l1_features: bool = False, counted: int | None = None,
    ) -> None:  # fmt: skip
        self.config, self.field, self.images, self.seed = config, field, images, seed
        self.l1_features = l1_features
        self.optimizer = torch.optim.Adam(field.parameter_groups(config.learning_rate))  # type: ignore[arg-type]
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        counts = (config.colour_steps, config.feature_steps, config.fusion_steps)
        each = max((counted or len(images)) // max(config.images_per_step, 1), 1)
        self.steps = tuple(n * each for n in counts) if config.epochs else counts
        self.done = 0
        self.extra: dict[str, Tensor] = {}  # further tensors of the checkpoints
        self.device = next(field.parameters()).device

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return sum(self.steps)

    def stage(self, step: int) -> str:
        """The stage of a step."""
        bounds = (self.steps[0], self.steps[0] + self.steps[1])
        return _STAGES[sum(step >= bound for bound in bounds)]

    def run(self, run: Run, until: int | None = None) -> float:
        """Train up to step `until` (all by default), from where the last checkpoint left off.

        Returns:
            the last loss.

        Raises:
            RelocError: the loss is not finite.
        """
        until = self.total if until is None else until
        loss = torch.zeros(())
        saved = time.monotonic()
        with run.progress("Training the field", until) as progress:
            progress.advance(self.done)
            for step in range(self.done, until):
                loss = self.step(step)
                self.done = step + 1
                if step % 20 == 0:
                    value = float(loss)
                    if not torch.isfinite(loss):
                        raise RelocError(
                            f"Training the field diverged at step {step}. Check poses and focal "
                            "lengths with 'reloc data check', or lower "
                            "estimator.training.learning_rate."
                        )
                    progress.advance(0, stage=self.stage(step), loss=value)
                progress.advance()
                if time.monotonic() - saved > self.config.checkpoint_seconds:
                    run.map.save_checkpoint(
                        {**self.state(), **self.extra},
                        {"step": self.done, "dfnet": bool(self.extra)},
                    )
                    saved = time.monotonic()
        return float(loss)

    def step(self, step: int) -> Tensor:
        """One step; its randomness depends on the seed and the step alone, so a run can resume."""
        generator = torch.Generator().manual_seed(hash((self.seed, step)) % (1 << 62))
        stage = self.stage(step)
        batch = self._patches(generator) if stage == "fusion" else self._rays(generator)
        if self.config.restart_schedule and step == self.steps[0]:
            self.optimizer.state.clear()  # the published second run starts from weights alone
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.decay(step)
        rendering = self.render(batch, generator)
        loss = self.loss(rendering, batch, stage)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.field.after_step(step)
        return loss.detach()

    def decay(self, step: int) -> float:
        """Factor of the learning rates."""
        first = self.steps[0]
        if not self.config.restart_schedule:
            return float(self.config.decay ** (step / max(self.total, 1)))
        done, total = (step, first) if step < first else (step - first, self.total - first)
        return float(self.config.decay ** (done / max(total, 1)))

    # -------------------------------------------------------------------------------- batches

    def _rays(self, generator: torch.Generator) -> Batch:
        if self.config.images_per_step:
            return self._rays_of_few(generator)
        count, images, cells = self.config.rays, len(self.images), self.images.directions.shape[1]
        image = torch.randint(images, (count,), generator=generator)
        cell = torch.randint(cells, (count,), generator=generator)
        if self.images.valid is not None:
            keep = self.images.valid[image, cell]
            image, cell = image[keep], cell[keep]
        return Batch(image, cell)

    def _rays_of_few(self, generator: torch.Generator) -> Batch:
        """As published: the same number of static cells of every image, none of them twice."""
        chosen = self._few(generator)
        each, cells = self.config.rays // len(chosen), self.images.directions.shape[1]
        drawn = []
        for image in chosen:
            cell = torch.randperm(cells, generator=generator)
            if self.images.valid is not None:
                cell = cell[self.images.valid[image, cell]]
            drawn.append(cell[:each])
        counts = torch.tensor([len(cell) for cell in drawn])
        return Batch(chosen.repeat_interleave(counts), torch.cat(drawn))

    def _few(self, generator: torch.Generator) -> Tensor:
        """Numbers of the images of a step."""
        return torch.randperm(len(self.images), generator=generator)[: self.config.images_per_step]

    def _patches(self, generator: torch.Generator) -> Batch:
        rows, columns = self.images.shape
        size, count = min(self.config.patch_size, rows, columns), self.config.patches
        if self.config.images_per_step:
            # As published: the same places in every image, and never at the last row or column.
            chosen = self._few(generator)
            image, copies, last = chosen.repeat_interleave(count), len(chosen), 0
        else:
            image = torch.randint(len(self.images), (count,), generator=generator)
            copies, last = 1, 1
        top = torch.randint(max(rows - size + last, 1), (count,), generator=generator)
        left = torch.randint(max(columns - size + last, 1), (count,), generator=generator)
        offsets = torch.arange(size)
        y = top.repeat(copies)[:, None, None] + offsets[None, :, None]
        x = left.repeat(copies)[:, None, None] + offsets[None, None, :]
        cell = (y * columns + x).flatten()
        return Batch(image.repeat_interleave(size * size), cell, len(image))

    def render(self, batch: Batch, generator: torch.Generator | None = None) -> Rendering:
        """Render the rays of a batch."""
        images = self.images
        directions = images.directions[batch.images, batch.cells]
        origins, directions = self.field.scene.rays(images.poses[batch.images], directions)
        return self.field.render(
            origins.to(self.device),
            directions.to(self.device),
            images.histograms[batch.images].to(self.device),
            generator,
        )

    # --------------------------------------------------------------------------------- losses

    def loss(self, rendering: Rendering, batch: Batch, stage: str) -> Tensor:
        """The loss of a stage."""
        images, config = self.images, self.config
        at = (batch.images, batch.cells)
        keep = images.valid[at].to(self.device) if images.valid is not None else slice(None)
        target = images.colours[at].to(self.device)
        total = colour_loss(rendering, target, config.transient_weight, keep)
        if images.depths is not None and config.depth_weight > 0:
            depth = (images.depths[at] * self.field.scene.scale).to(self.device)
            margin = _SIGHT_MARGIN * self.field.scene.scale
            total = total + config.depth_weight * depth_loss(rendering, depth, margin)
        if stage == "colour":
            return total
        assert images.features is not None
        wanted = images.features[at].float().to(self.device)
        share = config.feature_weight if stage == "feature" else config.feature_weight / 2
        total = total + share * self.difference(rendering.features[keep], wanted[keep])
        if stage == "fusion":
            side = round((len(batch.cells) / batch.patches) ** 0.5)
            fused = self.field.fuse(
                *(
                    part.unflatten(0, (batch.patches, side, side)).permute(0, 3, 1, 2)
                    for part in (rendering.colour, rendering.features)
                )
            )
            flat = fused.permute(0, 2, 3, 1).flatten(0, 2)
            total = total + share * self.difference(flat[keep], wanted[keep])
        return total

    def difference(self, rendered: Tensor, wanted: Tensor) -> Tensor:
        """How far rendered features (R, C) are from extracted ones."""
        if self.l1_features:
            return (rendered - wanted).abs().mean()
        return 1 - F.cosine_similarity(rendered, wanted, dim=1).mean()

    # ------------------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Tensor]:
        """Tensors to resume from."""
        return pack({"field": self.field}, self.optimizer)

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from `state` at a step."""
        unpack(tensors, {"field": self.field}, self.optimizer)
        self.done = step


def colour_loss(
    rendering: Rendering, target: Tensor, transient_weight: float, keep: Tensor | slice
) -> Tensor:
    """NeFeS' colour loss: squared error, weighted by the uncertainty where there is one."""
    squared = (rendering.colour - target)[keep] ** 2
    if rendering.beta is None:
        return squared.mean()
    beta = rendering.beta[keep]
    loss = (squared / (2 * beta[:, None] ** 2)).mean() + 3 + torch.log(beta).mean()
    if rendering.transient is not None:
        loss = loss + transient_weight * rendering.transient[keep].mean()
    if rendering.coarse_colour is not None:
        loss = loss + 0.5 * ((rendering.coarse_colour - target)[keep] ** 2).mean()
    return loss


def depth_loss(rendering: Rendering, depth: Tensor, margin: float) -> Tensor:
    """L1 on the expected depth, and emptiness of the line of sight before the measured surface.

    Args:
        rendering: R rays.
        depth: (R,) field units; 0 where unknown.
        margin: field units before the surface where density is allowed.
    """
    known = depth > 0
    if not bool(known.any()):
        return rendering.depth.sum() * 0
    error = (rendering.depth - depth)[known].abs().mean()
    blocking = (rendering.samples < (depth - margin)[:, None]) * rendering.weights
    return error + blocking[known].sum(1).mean()


@torch.no_grad()
def evaluate_field(
    field: Field, images: Images, numbers: Iterator[int] | range
) -> dict[str, float]:
    """PSNR (dB) of colours, mean cosine of raw and fused features and spread of the last, over images."""
    psnr, raw, fused = [], [], []
    device = next(field.parameters()).device
    for number in numbers:
        colour, features, _ = render_map(
            field, images.poses[number], images.directions[number], images.shape,
            images.histograms[number].to(device),
        )  # fmt: skip
        wanted = images.maps([number]).to(device)
        target = images.colours[number].to(device).T.unflatten(1, images.shape)
        psnr.append(float(-10 * torch.log10(((colour - target) ** 2).mean())))
        raw.append(float(F.cosine_similarity(features[None], wanted).mean()))
        mixed = field.fuse(colour[None], features[None])
        fused.append(float(F.cosine_similarity(mixed, wanted).mean()))
    return {
        **{
            name: round(sum(values) / max(len(values), 1), 4)
            for name, values in (("psnr", psnr), ("features", raw), ("fused", fused))
        },
        "fused_spread": round(float(np.std(fused or [0.0])), 4),
    }


@torch.no_grad()
def render_map(
    field: Field,
    world_from_cam: Tensor,
    directions: Tensor,
    shape: tuple[int, int],
    histogram: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole image: colours (3, rows, columns), features (C, ...) and depths (rows, columns).

    Args:
        field: to render.
        world_from_cam: (4, 4).
        directions: (rows * columns, 3) in camera axes, z = 1.
        shape: (rows, columns).
        histogram: (bins,) percent.

    Returns:
        depths in scene units.
    """
    device = next(field.parameters()).device
    origins, turned = field.scene.rays(world_from_cam, directions)
    parts = [
        field.render(o.to(device), d.to(device), histogram[None])
        for o, d in zip(origins.split(_RAYS), turned.split(_RAYS), strict=True)
    ]
    colour = torch.cat([p.colour for p in parts]).T.unflatten(1, shape)
    features = torch.cat([p.features for p in parts]).T.unflatten(1, shape)
    depth = torch.cat([p.depth for p in parts]).unflatten(0, shape) / field.scene.scale
    return colour, features, depth


def enlarged(maps: Tensor, size: tuple[int, int], grid: str) -> Tensor:
    """Maps (B, C, rows, columns) of a grid at (height, width) of their image, bicubic.

    The last cells may overhang the image. The published grid has no such cells and is stretched instead.
    """
    rows, columns = maps.shape[-2:]
    if (rows, columns) == size:
        return maps
    stride = -(-size[0] // rows)
    whole = size if grid == "published" else (rows * stride, columns * stride)
    large = F.interpolate(maps, whole, mode="bicubic", align_corners=False)
    return large[..., : size[0], : size[1]]

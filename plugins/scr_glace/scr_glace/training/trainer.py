"""The training loop: AdamW, one-cycle schedule, mixed precision, checkpoints, several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.errors import ConfigError, RelocError
from reloc_core.interfaces import Run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.packing import pack, unpack
from reloc_core.training.processes import Processes
from reloc_core.training.streams import torch_rng
from scr_glace.config import GlaceConfig
from scr_glace.networks.head import Head, head_inputs
from scr_glace.networks.precision import autocast_dtype
from scr_glace.training.buffer import Batch, Buffer
from scr_glace.training.loss import LossTerms, reprojection_loss
from scr_glace.training.muon import Muon
from scr_glace.training.schedule import one_cycle

STAGE = "head"
"""Name of the training in the checkpoint."""

_PICTURES, _PICTURED = 60, 3000  # of the training, and the samples of each


class Trainer:
    """Trains a head on a buffer.

    The loop is its own: several processes sum their gradients, and fp16 steps may be skipped.

    Args:
        config: of the estimator.
        head: to train, on the process's device.
        buffer: filled.
        descriptors: (frames, D) float32 global descriptors on the device; D may be 0.
        processes: this one and the others.
        seed: of the feature noise.
        neighbours: (frames, K) rows of the images whose descriptors may stand in for each one's own.

    Attributes:
        step: iterations done.
        updates: optimizer steps taken; fewer than iterations when fp16 gradients overflowed.
    """

    def __init__(
        self,
        config: GlaceConfig,
        head: Head,
        buffer: Buffer,
        descriptors: Tensor,
        processes: Processes,
        seed: int,
        neighbours: Tensor | None = None,
    ) -> None:
        self.config = config
        self.head = head
        self.buffer = buffer
        self.descriptors = descriptors
        self.neighbours = neighbours
        self.processes = processes
        self.seed = seed
        self.step = 0
        self.updates = 0
        kind = processes.device.type
        self.dtype = autocast_dtype(config.train.precision, kind)
        self.scaler = torch.amp.GradScaler(kind, enabled=self.dtype == torch.float16)
        self.parameters = [p for p in head.parameters() if p.requires_grad]
        options = config.optimizer
        self.optimizer: torch.optim.Optimizer
        if options.name == "muon":
            self.optimizer = Muon(
                self.parameters,
                options.muon_factor,
                weight_decay=options.weight_decay,
                rows=options.muon_rows,
                dtype=torch.float32 if self.dtype == torch.float32 else torch.bfloat16,
            )
        else:
            self.optimizer = torch.optim.AdamW(
                self.parameters, lr=0.0, weight_decay=options.weight_decay
            )
        if buffer.plan.size < config.train.batch_size:
            raise ConfigError(
                f"The buffer holds {buffer.plan.size} samples, fewer than one batch of "
                f"{config.train.batch_size}. Raise estimator.buffer.size or lower "
                "estimator.train.batch_size."
            )

    def run(self, run: Run, show: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Train to the last iteration, from the checkpoint when there is one.

        Args:
            run: progress, checkpoints.
            show: called now and then, at the beginning and the end too, for who wants to see `sampled`.

        Returns:
            metrics of the last logged iterations: loss, share of valid predictions, error in pixels.

        Raises:
            RelocError: the loss is not a number; the last checkpoint is kept.
        """
        # Only rank 0 reads the file: its state is everybody's.
        checkpoint = None
        saved = None
        if self.processes.rank == 0:
            checkpoint = Checkpoint(run.map, self.config.train.checkpoint_seconds)
            step, tensors = checkpoint.resume(STAGE)
            saved = (step, tensors, checkpoint.notes(STAGE)) if tensors else None
        saved = self.processes.share(saved)
        if saved is not None:
            self.restore(*saved)
        total = self.config.train.iterations
        metrics: dict[str, float] = {}
        show()
        with run.progress("train", total) as progress:
            progress.advance(self.step)
            while self.step < total:
                terms = self.iterate()
                shown = self.step % self.config.train.log_every == 0 or self.step == total
                # Reading the loss waits for the GPU, so there it is read now and then only.
                if shown or self.processes.device.type == "cpu":
                    metrics = self._metrics(terms)
                    self._refuse_divergence(metrics["loss"])
                if shown:
                    run.log("iteration", step=self.step, **metrics)
                progress.advance(1, **metrics)
                if self.step % max(total // _PICTURES, 1) == 0 or self.step == total:
                    show()
                if checkpoint is not None and self.step < total:
                    checkpoint.save(STAGE, self.step, self.state, self.notes())
        return metrics

    def iterate(self) -> LossTerms:
        """One iteration; returns the loss terms summed over all processes."""
        size = self.config.train.batch_size
        batch = self.buffer.batch(self.step, size)
        kind = self.processes.device.type
        with torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32):
            points = self.head(self.inputs(batch))
        progress = self.step / self.config.train.iterations
        terms = reprojection_loss(
            self.config.loss, points, batch.cam_from_world, batch.rays, batch.focal, progress,
            batch.targets, self.config.points.until,
        )  # fmt: skip
        self.optimizer.zero_grad(set_to_none=False)
        self.scaler.scale(terms.total / size).backward()  # type: ignore[no-untyped-call]
        self.processes.sum_gradients(self.parameters)
        rate = one_cycle(self.config.optimizer, self.updates, self.config.train.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # As published: an overflowing fp16 step does not advance the schedule.
        self.updates += int(self.scaler.get_scale() >= before)
        self.step += 1
        sums = torch.stack([terms.total.detach(), terms.valid.float(), terms.error])
        total, valid, error = self.processes.sum_(sums)
        return LossTerms(total, valid, error)

    @torch.no_grad()
    def sampled(self) -> tuple[Tensor, Tensor]:
        """What the head answers now for some samples of this process, the same every time.

        Returns:
            (n, 3) points in the head's world, and (n,) their reprojection errors in pixels.
        """
        size = self.buffer.plan.size
        batch = self.buffer.samples(torch.linspace(0, size - 1, min(size, _PICTURED)).long())
        points = self.head(self._joined(self.descriptors[batch.frame], batch))
        pose = batch.cam_from_world
        cam = torch.einsum("nij,nj->ni", pose[:, :, :3], points) + pose[:, :, 3]
        seen = cam[:, :2] / cam[:, 2:].clamp(min=self.config.loss.depth_min)
        return points, ((seen - batch.rays) * batch.focal).norm(dim=-1)

    def inputs(self, batch: Batch) -> Tensor:
        """Head inputs (n, D + C): noisy global descriptor first, then the local feature.

        Feature diffusion (GLACE): noise on every sample's descriptor, then normalisation,
        so that images with similar descriptors share what the head learns.
        """
        width = self.descriptors.shape[1]
        descriptor = self.descriptors[self._described_by(batch)]
        std = self.config.global_descriptor.noise_std
        if std > 0 and width:
            device = self.processes.device
            rng = torch_rng(self.seed, "noise", self.step, device=device)
            # Drawn for the whole batch, so that every number of processes draws the same.
            noise = torch.randn(batch.size, width, generator=rng, device=device)
            descriptor = F.normalize(descriptor + std * noise[batch.slot], dim=-1)
        return self._joined(descriptor, batch)

    def _joined(self, descriptors: Tensor, batch: Batch) -> Tensor:
        return head_inputs(descriptors, batch.features, self.config.global_descriptor.scale)

    def _described_by(self, batch: Batch) -> Tensor:
        """Frames (n,) whose descriptors the samples get: their own, or that of a neighbour.

        A query that sees the same points has another descriptor than any mapping image (R-SCoRe).
        """
        share = self.config.global_descriptor.neighbours
        if self.neighbours is None or share <= 0:
            return batch.frame
        device = self.processes.device
        rng = torch_rng(self.seed, "neighbours", self.step, device=device)
        drawn = torch.rand(batch.size, 2, generator=rng, device=device)[batch.slot]
        column = (drawn[:, 0] * self.neighbours.shape[1]).long()
        other = self.neighbours[batch.frame, column]
        return torch.where(drawn[:, 1] < share, other, batch.frame)

    def state(self) -> dict[str, Tensor] | None:
        """Tensors of a checkpoint; None where they are not worth keeping."""
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            return None
        return pack({"head": self.head}, self.optimizer)

    def notes(self) -> dict[str, Any]:
        """What goes with `state`, besides the step."""
        return {"updates": self.updates, "scaler": self.scaler.state_dict()}

    def restore(self, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Continue from what `state` and `notes` returned."""
        self.step, self.updates = step, int(notes["updates"])
        self.scaler.load_state_dict(dict(notes["scaler"]))
        unpack(tensors, {"head": self.head}, self.optimizer)

    def _metrics(self, terms: LossTerms) -> dict[str, float]:
        size = self.config.train.batch_size
        valid = float(terms.valid)
        return {
            "loss": float(terms.total) / size,
            "valid": valid / size,
            "error_px": float(terms.error) / max(valid, 1.0),
        }

    def _refuse_divergence(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise RelocError(
                f"Training diverged at iteration {self.step}: the loss is not a number. The last "
                "checkpoint is kept. Check poses and focal lengths with 'reloc data check', or train "
                "again with resume=false and a lower estimator.optimizer.learning_rate_max."
            )

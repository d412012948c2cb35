"""Consecutive mapping frames with labels and held-out measurements, kept for an interrupted training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.grid import FeatureGrid
from kfnet_temporal.filtering.kalman import State
from kfnet_temporal.filtering.process import Motion, Process
from reloc_core.interfaces import Run
from reloc_core.maps import load_tensors, save_tensors
from reloc_core.types import Float64Array, Frame, ImageArray


@dataclass
class Clip:
    """Consecutive mapping frames, ready for training.

    Attributes:
        features: (T, C, h, w) float16.
        labels: (T, 3, h, w) metres relative to the origin, NaN where unknown.
        measured: per frame, from an estimator that has not seen it.
        images: T grey images (H, W) uint8 that the features describe.
        pixels: (h * w, 2) centres of the cells in the original images.
        scale: (2,) original pixels per pixel of `images`.
        frames: metadata with poses.
        forward: motions from frame t to t - 1, for t = 1 .. T - 1; filled by `add_motions`.
        backward: motions from frame t to t + 1, for t = 0 .. T - 2.
    """

    features: Tensor
    labels: Tensor
    measured: list[State]
    images: list[ImageArray]
    pixels: Float64Array
    scale: Float64Array
    frames: Sequence[Frame] = ()
    forward: list[Motion] = field(default_factory=list)
    backward: list[Motion] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.features)

    def motion(self, process: Process, before: int, now: int) -> Motion:
        """The flow from one frame to a neighbour of it."""
        return process.motion(
            self.features[before].float(),
            self.features[now].float(),
            (self.images[before], self.images[now]) if process.refine else None,
        )

    def grid(self, t: int) -> FeatureGrid:
        """Frame t as localization sees it."""
        grey = self.images[t]
        return FeatureGrid(
            self.features[t].float(), self.pixels, grey, float(grey.std()), self.scale
        )

    def cell_image(self, t: int) -> Tensor:
        """(1, h, w) grey levels at the cells."""
        height, width = self.features.shape[-2:]
        return torch.from_numpy(self.images[t][::8, ::8][:height, :width].copy()).float()[None]

    def known(self, t: int) -> Tensor:
        """(h, w) bool: where frame t has labels."""
        return torch.isfinite(self.labels[t]).all(0)


def save_clip(path: Path, clip: Clip) -> None:
    """Write everything but the metadata and the motions."""
    save_tensors(
        path,
        {
            "features": clip.features,
            "labels": clip.labels,
            "mean": torch.stack([m.mean for m in clip.measured]),
            "variance": torch.stack([m.variance for m in clip.measured]),
            "images": torch.from_numpy(np.stack(clip.images)),
            "pixels": torch.from_numpy(clip.pixels),
            "scale": torch.from_numpy(clip.scale),
        },
        {},
    )


def load_clip(path: Path, frames: Sequence[Frame]) -> Clip:
    """Read what `save_clip` wrote."""
    tensors: Mapping[str, Tensor] = load_tensors(path)[0]
    measured = [State(m, v) for m, v in zip(tensors["mean"], tensors["variance"], strict=True)]
    return Clip(
        tensors["features"], tensors["labels"], measured, list(tensors["images"].numpy()),
        tensors["pixels"].numpy(), tensors["scale"].numpy(), frames,
    )  # fmt: skip


@torch.no_grad()
def add_motions(process: Process, clips: Sequence[Clip], run: Run) -> None:
    """Flow between all neighbours, both ways; it stays as it is from here on."""
    with run.progress("Motions", sum(len(c) - 1 for c in clips)) as progress:
        for clip in clips:
            clip.forward, clip.backward = [], []
            for t in range(len(clip) - 1):
                clip.forward.append(clip.motion(process, t, t + 1))
                clip.backward.append(clip.motion(process, t + 1, t))
                progress.advance()

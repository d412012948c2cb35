"""Frozen features and labels of all mapping images, computed once for all stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kfnet_temporal.common.grid import FeatureExtractor
from kfnet_temporal.common.labels import Labels
from kfnet_temporal.published.augment import (
    draw_jitter,
    draw_motion,
    jitter,
    moved_image,
    moved_pixels,
)
from reloc_core.errors import DataError
from reloc_core.geometry import transform
from reloc_core.interfaces import Dataset, Run
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array, Query


@dataclass(frozen=True)
class FeatureBank:
    """What the narrow networks learn from.

    Attributes:
        features: (n, C, h, w) float16; image i, and behind all images the augmented copies of each.
        labels: (n, 3, h, w) metres in the normalised frame, NaN where unknown.
        cells: (n, 1, h, w) float16 grey levels at the cells' centres.
        images: how many of the n are the images themselves.
    """

    features: Tensor
    labels: Tensor
    cells: Tensor
    images: int


def gather(
    dataset: Dataset, labels: Labels, extractor: FeatureExtractor,
    normalised_from_world: Float64Array, run: Run, augment: bool,
) -> FeatureBank:  # fmt: skip
    """Describe all images, and one turned, zoomed and recoloured copy of each.

    Raises:
        DataError: images of several sizes.
    """
    sizes = {(f.camera.width, f.camera.height) for f in dataset.frames}
    if len(sizes) > 1:
        raise DataError(
            f"{dataset.name} has images of {len(sizes)} sizes, such as "
            f"{' and '.join(f'{w} x {h}' for w, h in sorted(sizes)[:2])}; mapping needs one size."
        )
    count = len(dataset)
    total = count * (2 if augment else 1)
    features = targets = cells = torch.zeros(0)
    with run.progress("Features", total) as progress:
        for index, place in ((i, p) for i in range(count) for p in range(i, total, count)):
            if place == index:
                query, motion = dataset[index], np.eye(2, 3)
                seen = query
            else:
                rng = numpy_rng(run.runtime.seed, "augment", index)
                motion = draw_motion(rng, *query.image.shape[:2], zoom=True)
                seen = _moved(query, motion, *draw_jitter(rng))
            grid = extractor(seen)
            points = _labels(labels, index, query, grid.pixels, motion)
            target = transform(normalised_from_world, points)
            if not len(features):
                features = torch.zeros((total, *grid.features.shape), dtype=torch.float16)
                targets = torch.zeros((total, 3, *grid.shape))
                cells = torch.zeros((total, 1, *grid.shape), dtype=torch.float16)
            features[place] = grid.features.half()
            targets[place] = torch.from_numpy(target).float().T.reshape(3, *grid.shape)
            grey = grid.grey[4::8, 4::8][: grid.shape[0], : grid.shape[1]]
            cells[place, 0, : grey.shape[0], : grey.shape[1]] = torch.from_numpy(grey.copy()).half()
            progress.advance()
    if not bool(torch.isfinite(targets).any()):
        raise DataError(f"{dataset.name} has no scene coordinate labels to learn from.")
    return FeatureBank(features, targets, cells, count)


def _moved(query: Query, motion: Float64Array, brightness: float, contrast: float) -> Query:
    image = moved_image(jitter(query.image, brightness, contrast), motion)
    return Query(query.name, query.camera, image=np.clip(image, 0, 255).astype(np.uint8))


def _labels(
    labels: Labels, index: int, query: Query, pixels: Float64Array, motion: Float64Array
) -> Float64Array:
    """Labels (h * w, 3) of cells of an image seen through a motion; NaN outside."""
    places = moved_pixels(pixels, motion)
    last = np.array([query.camera.width, query.camera.height]) - 1
    points = labels.at(index, query, places)
    points[~((places >= 0) & (places <= last)).all(1)] = np.nan
    return points

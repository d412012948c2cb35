"""Scene points as first targets: what a short training has too few samples to find by itself.

Reprojection alone moves a prediction along the surface of its errors: from far away, and from behind
the camera, it takes 1e8 samples and more to arrive. Key points that several mapping images share are
triangulated with the known poses, and the head is first drawn to those points; the reprojection error,
which localization needs small, takes over as the training goes on (R-SCoRe uses measured points so).
The images that share points are also neighbours whose global encodings stand in for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reloc_core.errors import DataError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.features.vlad import image_looks
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping import (
    Cover,
    Features,
    ReconstructionOptions,
    describe,
    match_images,
    require_points,
)
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array
from scr_glace.config import PointsConfig

_FEW, _MANY = 1024, 2048  # key points of an image, where there are many and few images
_ALL = 60_000  # key points of all images from which on an image gets fewer
_MIN_POINTS = 50
_NEIGHBOUR_OVERLAP = 0.1  # shared points, as a share of the image that has fewer
_BLOCK = 256  # images whose overlap with all others is known at once
_NEIGHBOURS = 16  # draws per image


@dataclass(frozen=True)
class Targets:
    """Triangulated points of N mapping images.

    Attributes:
        points: (L, 3) float64 world.
        images: (M,) number of the image of each observation, ascending.
        pixels: (M, 2) float64 in the stored image.
        labels: (M,) point of each observation.
        distance: median distance of a point to a camera that observes it, in the scene's unit.
    """

    points: Float64Array
    images: np.ndarray
    pixels: Float64Array
    labels: np.ndarray
    distance: float

    def of_image(self, number: int) -> tuple[Float64Array, Float64Array]:
        """Pixels (K, 2) and points (K, 3) that an image observes."""
        first, last = np.searchsorted(self.images, [number, number + 1])
        return self.pixels[first:last], self.points[self.labels[first:last]]

    def overlaps(self, count: int) -> Iterator[Float64Array]:
        """Share of points that images have in common, of the fewer of both, in blocks of images.

        Yields:
            (256, count): the next images with all of them; fewer at the end.
        """
        seen = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([self.images, self.labels])),
            torch.ones(len(self.labels)),
            (count, max(len(self.points), 1)),
            check_invariants=True,
        ).coalesce()
        have = np.bincount(seen.indices()[0].numpy(), seen.values().numpy() ** 2, count)
        have = np.maximum(have, 1).astype(np.float32)
        # Neither the incidence of a large place nor the table of all images would fit.
        for rows in torch.arange(count).split(_BLOCK):
            shared = torch.sparse.mm(seen, seen.index_select(0, rows).to_dense().T).T.numpy()
            fewer = np.minimum(have[rows.numpy()][:, None], have[None])
            yield shared / fewer.astype(np.float64)

    def tensors(self) -> dict[str, Tensor]:
        """As what `from_tensors` takes."""
        return {
            "points": torch.from_numpy(self.points),
            "images": torch.from_numpy(self.images.astype(np.int64)),
            "pixels": torch.from_numpy(self.pixels),
            "labels": torch.from_numpy(self.labels.astype(np.int64)),
            "distance": torch.tensor([self.distance], dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Targets:
        """What `tensors` returned."""
        names = ("points", "images", "pixels", "labels")
        return cls(*(tensors[name].numpy() for name in names), float(tensors["distance"]))


def neighbour_table(overlaps: Iterable[Float64Array], seed: int) -> Tensor:
    """Images whose encodings may stand in for each image's own, (N, 16) int64 drawn by overlap.

    An image without any stands in for itself. The overlaps are those of `Targets.overlaps`.
    """
    table: list[np.ndarray] = []
    for row in (row for block in overlaps for row in block):
        image = len(table)
        chances = np.where(row >= _NEIGHBOUR_OVERLAP, row, 0.0)
        chances[image] = 0.0
        drawn = np.full(_NEIGHBOURS, image)
        if chances.any():
            rng = numpy_rng(seed, "neighbours", image)
            drawn = rng.choice(len(row), _NEIGHBOURS, p=chances / chances.sum())
        table.append(drawn)
    return torch.from_numpy(np.stack(table))


def find_targets(
    dataset: Dataset, frames: np.ndarray, resolution: int, config: PointsConfig, run: Run
) -> tuple[Targets, Features]:
    """Triangulate what the mapping images share.

    Args:
        dataset: posed.
        frames: (N,) its frames to map.
        resolution: of the detector.
        config: thresholds.
        run: progress, seed.

    Returns:
        the points, and the key points of all N images.

    Raises:
        DataError: too little that matches.
    """
    count = int(np.clip(_ALL // max(len(frames), 1), _FEW, _MANY))
    detector = KeypointDetector(resolution).to(run.runtime.device)
    features = describe(dataset, frames, detector, count, run, resumable=False)
    rng = numpy_rng(run.runtime.seed, "words")
    looks, _ = image_looks(features.descriptors, features.counts, rng)
    options = ReconstructionOptions.of(config, max_epipolar_px=config.max_error_px)
    matches = match_images(features, run, options, looks.numpy())
    tracks, observations = matches.tracks(options, run), matches.observations
    try:
        require_points(len(tracks), _MIN_POINTS, dataset, len(frames))
    except DataError as error:
        text = "estimator.points.enabled=false trains without them."
        raise DataError(f"{error} {text}") from None
    Cover.of(tracks, features.images, len(frames)).warn(run)
    images = features.images[tracks.rows]
    order = np.argsort(images, kind="stable")
    offset = tracks.points[tracks.labels] - observations.origins(tracks.rows)
    targets = Targets(
        tracks.points, images[order], features.pixels[tracks.rows][order], tracks.labels[order],
        float(np.median(np.linalg.norm(offset, axis=1))),
    )  # fmt: skip
    return targets, features

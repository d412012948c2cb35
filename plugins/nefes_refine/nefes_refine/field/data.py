"""The training images as cells: rays, colours, features and depth of all of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nefes_refine.config import NefesConfig
from nefes_refine.field.views import exposure, make_view, working_size
from reloc_core.errors import DataError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import transform
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping import ReconstructionOptions, evenly, reconstruct
from reloc_core.mapping.views import pixel_rays
from reloc_core.types import Camera, Float64Array, ImageArray

MIN_IMAGES = 8
_DEPTH_STEP = 7  # every so-many-th measured cell tells where the scene is
_MIN_VALIDATION = 4
_TRIANGULATED = 60  # images of which a scene without depth is triangulated


@dataclass
class Images:
    """Cells of N images of one size.

    Attributes:
        indices: (N,) of the dataset's frames.
        cells: (N,) cameras of the grids of cells.
        poses: (N, 4, 4) float64 world_from_cam.
        directions: (N, rows * columns, 3) float32 viewing directions in camera axes, z = 1.
        colours: (N, rows * columns, 3) float32 in 0..1.
        histograms: (N, bins) percent.
        depths: (N, rows * columns) scene units, 0 where unknown; None without depth.
        features: (N, rows * columns, C) float16; None until they are extracted.
        valid: (N, rows * columns) bool, False on masked cells; None without masks.
    """

    indices: np.ndarray
    cells: list[Camera]
    poses: Tensor
    directions: Tensor
    colours: Tensor
    histograms: Tensor
    depths: Tensor | None = None
    features: Tensor | None = None
    valid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of every image."""
        return self.cells[0].height, self.cells[0].width

    def maps(self, which: Sequence[int] | Tensor | slice = slice(None)) -> Tensor:
        """Feature maps (n, C, rows, columns) float32 of some images."""
        assert self.features is not None
        chosen = self.features[which].float()
        return chosen.transpose(1, 2).unflatten(2, self.shape)


def mapped_frames(
    dataset: Dataset, most: int, step: int = 1, leave_out: Sequence[int] = ()
) -> np.ndarray:
    """Indices of the frames to train on, evenly spread.

    Args:
        dataset: posed images.
        most: at most so many.
        step: every so-many-th of each sequence.
        leave_out: positions in the list of images sorted by name that are not there at all.

    Raises:
        DataError: too few images with poses.
    """
    names = [f.name for f in dataset.frames]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    gone = {by_name[i] for i in leave_out if i < len(names)}
    posed = np.array(
        [i for i, f in enumerate(dataset.frames) if f.world_from_cam is not None and i not in gone],
        int,
    )
    if len(posed) < MIN_IMAGES:
        raise DataError(
            f"{dataset.name} has {len(posed)} images with a pose; a field needs at least {MIN_IMAGES}, "
            "and a hundred for a room."
        )
    if step > 1:
        sequences = np.array([str(dataset.frames[i].sequence) for i in posed])
        posed = np.concatenate([posed[sequences == s][::step] for s in dict.fromkeys(sequences)])
    count = min(most, len(posed))
    chosen: np.ndarray = posed[np.arange(count) * len(posed) // count]
    return chosen


def read_images(
    dataset: Dataset,
    indices: np.ndarray,
    config: NefesConfig,
    run: Run,
    extract: Callable[[ImageArray], Tensor],
) -> Images:
    """Read images and describe them.

    Args:
        dataset: posed images.
        indices: (N,) which.
        config: view, bins, masks.
        run: for progress.
        extract: image (H, W, 3) to unit features (C, rows, columns).

    Raises:
        DataError: an image cannot be read, a mask is missing, or the masks leave nothing.
    """
    size = working_size(dataset.frames[int(indices[0])].camera, config.view.resolution)
    cells, directions, colours, histograms, depths, features = [], [], [], [], [], []
    masks = MaskFolder(config.training.masks) if config.training.masks else None
    valid = []
    with run.progress("Describing images", len(indices)) as progress:
        for index in indices:
            query = dataset[int(index)]
            view = make_view(query, config.view, size)
            colour = view.colours()
            cells.append(view.cells)
            directions.append(pixel_rays(view.cells).reshape(-1, 3).astype(np.float32))
            colours.append(colour.reshape(-1, 3))
            histograms.append(exposure(view, colour, config.field))
            static = None if masks is None else masks.read(query.name, view.cells)
            if static is not None:
                valid.append(static.ravel())
            if view.depth is not None and config.training.depth_weight > 0:
                depth = view.depth if static is None else np.where(static, view.depth, 0)
                depths.append(depth.ravel())
            features.append(extract(view.image).flatten(1).T.half())
            progress.advance()
    if masks is not None and not np.any(valid):
        raise DataError(
            f"The masks in {config.training.masks} leave nothing of any image: white (255) is static, "
            "black is left out."
        )
    poses: Float64Array = np.stack([dataset.frames[int(i)].world_from_cam for i in indices])  # type: ignore[misc]
    return Images(
        indices,
        cells,
        torch.from_numpy(poses),
        torch.from_numpy(np.stack(directions)),
        torch.from_numpy(np.stack(colours)),
        torch.from_numpy(np.stack(histograms)),
        torch.from_numpy(np.stack(depths)) if len(depths) == len(indices) else None,
        torch.stack(features),
        torch.from_numpy(np.stack(valid)) if masks is not None else None,
    )


class MaskFolder:
    """Masks of moving things, matched to images by stem: 255 static, 0 dynamic.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        from pathlib import Path

        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"estimator.training.masks: there is no folder {folder}.")

    def read(self, name: str, cells: Camera) -> np.ndarray:
        """Which cells (rows, columns) are static.

        Raises:
            DataError: the image has no mask.
        """
        import cv2

        from reloc_core.io.images import read_image

        stem = name.rsplit(".", 1)[0]
        for candidate in (f"{name}.png", f"{stem}.png", name):
            path = self.folder / candidate
            if path.is_file():
                mask = read_image(path)[..., 0]
                small = cv2.resize(mask, (cells.width, cells.height), interpolation=cv2.INTER_AREA)
                return np.asarray(small > 127)
        raise DataError(
            f"{self.folder} holds no mask of {name}: every training image needs one, named like it."
        )


def held_out(count: int, every: int) -> np.ndarray:
    """Which of `count` images validate: every so-many-th, but at least some of a small scene."""
    mask = np.zeros(count, bool)
    step = max(2, min(every, count // _MIN_VALIDATION))
    mask[step // 2 :: step] = True
    return mask


def scene_points(dataset: Dataset, images: Images, config: NefesConfig, run: Run) -> Float64Array:
    """Scene points (M, 3): measured where the images have depth, else triangulated.

    Raises:
        DataError: too few images to triangulate from.
    """
    if measured(images):
        return depth_points(images)
    chosen = images.indices[evenly(len(images), _TRIANGULATED)]
    options = ReconstructionOptions(keypoints=512, min_similarity=0.8, max_error_px=3.0)
    detector = KeypointDetector(config.view.resolution)
    found: Float64Array = reconstruct(dataset, chosen, detector, run, options).tracks.points
    return found


def measured(images: Images) -> bool:
    """Whether the images bring depth."""
    return images.depths is not None and bool((images.depths > 0).any())


def depth_points(images: Images) -> Float64Array:
    """Scene points (M, 3) of the measured cells of all images, thinned."""
    assert images.depths is not None
    points = []
    for number in range(len(images)):
        depth = images.depths[number]
        known = torch.nonzero(depth > 0)[::_DEPTH_STEP, 0]
        local = images.directions[number][known] * depth[known, None]
        points.append(transform(images.poses[number].numpy(), local.double().numpy()))
    return np.concatenate(points)

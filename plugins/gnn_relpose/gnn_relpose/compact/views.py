"""Images as the network takes them: pooled features, of the image and of turned copies."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from gnn_relpose.compact.config import AugmentConfig
from gnn_relpose.compact.network import pooled
from gnn_relpose.shared.frames import Describer
from reloc_core.geometry import project, so3_exp, unproject
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping.views import working_scale
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Camera, Float64Array, ImageArray, Query

_WORD_SAMPLES = 100  # local descriptors per image for NetVLAD's centres


@dataclass
class Views:
    """Feature maps of a dataset.

    Attributes:
        maps: (F, V, 64, rows, columns) float16; the first of the V views is the image itself.
        poses: (F, V, 4, 4) world_from_cam.
        locals: (F, 100, 64) some local descriptors of every image.
        full: per image (N, 64) float16 descriptors of all cells, for retrieval.
    """

    maps: Tensor
    poses: Float64Array
    locals: Tensor
    full: list[Tensor]


def turned(query: Query, rotation: Float64Array, resolution: int) -> ImageArray:
    """What the camera would have seen, turned about its centre by cam_from_turned (3, 3).

    Exact for any lens; pixels that the image does not show repeat its border.
    """
    height, width = query.image.shape[:2]
    factor = working_scale(width, height, resolution)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    camera = query.camera.scaled(*size)
    image = cv2.resize(query.image, size, interpolation=cv2.INTER_AREA)
    rays = _rays(camera) @ rotation.T
    pixels, front = project(camera, rays)
    pixels = np.where(front[..., None], pixels, -1e4)
    grid = np.nan_to_num(pixels, nan=-1e4).astype(np.float32).reshape(size[1], size[0], 2)
    return np.asarray(
        cv2.remap(image, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _rays(camera: Camera) -> Float64Array:
    x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return unproject(camera, np.stack([x, y], -1).reshape(-1, 2).astype(np.float64))


def describe(
    dataset: Dataset, describer: Describer, options: AugmentConfig, run: Run, copies: bool
) -> Views:
    """Features of all images and of their turned copies.

    Args:
        dataset: posed images.
        describer: of features.
        options: how far copies are turned, and how many there are.
        run: for progress and the seed.
        copies: whether there are any, which only training wants.
    """
    count = min(options.views, options.most // len(dataset) - 1) if copies else 0
    maps, poses, samples, full = [], [], [], []
    limits = np.radians([options.tilt_deg, options.tilt_deg, options.roll_deg])
    with run.progress(f"Describing {dataset.name}", len(dataset)) as progress:
        for number, frame in enumerate(dataset.frames):
            query = dataset[number]
            rng = numpy_rng(run.runtime.seed, "augment", number)
            found = describer.describe(query.image).maps
            shown, own = [pooled(found[None])[0].half()], [np.asarray(frame.world_from_cam)]
            flat = found.flatten(1).T
            full.append(flat.half())
            chosen = rng.permutation(len(flat))[:_WORD_SAMPLES]
            samples.append(flat[torch.from_numpy(chosen)])
            for _ in range(max(count, 0)):
                turn = np.eye(4)
                turn[:3, :3] = so3_exp(rng.uniform(-1, 1, 3) * limits)
                image = turned(query, turn[:3, :3], describer.resolution)
                shown.append(pooled(describer.describe(image).maps[None])[0].half())
                own.append(own[0] @ turn)
            maps.append(torch.stack(shown))
            poses.append(np.stack(own))
            progress.advance(1)
    return Views(torch.stack(maps), np.stack(poses).astype(np.float64), torch.stack(samples), full)

"""Random view synthesis: poses near the training cameras and what the field shows there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nefes_refine.config import RegressorConfig
from nefes_refine.field.data import Images
from nefes_refine.field.rendering import Field
from nefes_refine.field.training import render_map
from nefes_refine.field.views import cell_camera
from reloc_core.geometry import so3_exp
from reloc_core.mapping.views import pixel_rays
from reloc_core.types import Camera, Float64Array

_SHIFT = 0.15  # of the median depth, where no translation is given: the parallax then has a scale
_MARGIN = 0.1
_DEPTH_VIEWS = 8


def random_poses(
    world_from_cam: Float64Array, options: RegressorConfig, depth: float, rng: np.random.Generator
) -> Float64Array:
    """Perturbed poses (N, 4, 4) in the manner of DFNet.

    Angles about the camera's axes and shifts along the world's are uniform; positions are clamped to the
    box of the training positions, grown by `options.box_margin`.

    Args:
        world_from_cam: (N, 4, 4) poses to perturb.
        options: how far.
        depth: median depth of the scene's images, scene units; sets what the options leave open.
        rng: to draw from.
    """
    poses = np.array(world_from_cam)
    count = len(poses)
    angles = np.radians(rng.uniform(-1, 1, (count, 3)) * options.rotation_deg)
    for axis in range(3):
        vectors = np.zeros((count, 3))
        vectors[:, axis] = angles[:, axis]
        poses[:, :3, :3] = poses[:, :3, :3] @ so3_exp(vectors)
    poses[:, :3, 3] = _shifted(world_from_cam[:, :3, 3], options, depth, rng)
    return poses


def random_centred_poses(
    poses: Float64Array, options: RegressorConfig, depth: float, rng: np.random.Generator
) -> Float64Array:
    """Perturbed poses (N, 3, 4) of the centred frame, exactly as DFNet draws them.

    Rotations about the frame's x, then y, then z axis are multiplied from the left; position, shift and
    box are the frame's, too.

    Args:
        poses: (N, 3, 4) of the centred frame, OpenGL axes, metres.
        options: how far.
        depth: as for `random_poses`.
        rng: to draw from.
    """
    angles = np.radians(rng.uniform(-1, 1, (len(poses), 3)) * options.rotation_deg)
    rotations = poses[:, :, :3]
    for axis in np.eye(3):
        rotations = so3_exp(angles * axis) @ rotations
    positions = _shifted(poses[:, :, 3], options, depth, rng)
    return np.concatenate([rotations, positions[..., None]], -1)


def _shifted(
    positions: Float64Array, options: RegressorConfig, depth: float, rng: np.random.Generator
) -> Float64Array:
    """Positions (N, 3) shifted within their box."""
    most = options.translation if options.translation is not None else _SHIFT * depth
    margin = options.box_margin if options.box_margin is not None else _MARGIN * depth
    shift = rng.uniform(-1, 1, positions.shape) * most
    low, high = positions.min(0) - margin, positions.max(0) + margin
    return np.clip(positions + shift, low, high)


@torch.no_grad()
def median_depth(field: Field, images: Images) -> float:
    """Median depth, scene units, of a few of the images as the field renders them."""
    device = next(field.parameters()).device
    chosen = np.unique(np.linspace(0, len(images) - 1, _DEPTH_VIEWS).astype(int))
    depths = [
        render_map(
            field,
            images.poses[i],
            images.directions[i],
            images.shape,
            images.histograms[i].to(device),
        )[2]
        for i in chosen
    ]
    return float(torch.stack(depths).median())


@torch.no_grad()
def render_features(field: Field, pose: Float64Array, cells: Camera, histogram: Tensor) -> Tensor:
    """Features (C, rows / 2, columns / 2) at a pose: half the resolution is enough to regress from.

    Not fused: the fusion network has learned its neighbourhoods at full resolution.
    """
    half = cell_camera(cells, 2)
    directions = torch.from_numpy(pixel_rays(half).reshape(-1, 3)).float()
    shape = (half.height, half.width)
    device = next(field.parameters()).device
    return render_map(field, torch.from_numpy(pose), directions, shape, histogram.to(device))[1]

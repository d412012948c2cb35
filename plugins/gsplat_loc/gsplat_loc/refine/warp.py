"""The refinement of GSplatLoc as its public program does it, for comparison.

The rendered image is sampled where the pixels of the query's grid, unprojected with the *rendered* view's
depth, fall in the coarse camera; Adam changes quaternion and translation of the world-to-camera pose. No
mask, no robust weights, no stopping rule: pixels that leave the image count as black.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from gsplat_loc.field.render import Rendering
from gsplat_loc.refine.alignment import LEAST, color_levels
from gsplat_loc.refine.stage import Seen, Stage
from reloc_core.geometry import inverse, quaternion_from_rotation, rotation_from_quaternion
from reloc_core.types import Camera, Float64Array, ImageArray, Localization


class Warp(Stage):
    """The published refinement; with `warp_safe` the given pose where the residual did not fall."""

    def run(self, seen: Seen, localization: Localization) -> Localization:
        """See `Stage.run`."""
        given, options = localization.world_from_cam, self.config
        assert given is not None
        drawn, good = self.draw(seen, given)
        pose = released_warp(
            seen.image, drawn, seen.camera, given, options.warp_lr, options.warp_iters
        )
        if options.warp_safe:
            levels = color_levels(seen, drawn, good, options)
            now = levels[-1].term(np.eye(4), 1.0, LEAST) if levels else None
            after = levels[-1].term(inverse(given) @ pose, 1.0, LEAST) if levels else None
            if now is None or after is None or after.cost > now.cost:
                return localization
        return replace(localization, world_from_cam=pose)


def released_warp(
    query: ImageArray,
    drawn: Rendering,
    camera: Camera,
    world_from_cam: Float64Array,
    learning_rate: float,
    iterations: int,
) -> Float64Array:
    """The pose (4, 4) after `iterations` steps.

    Args:
        query: (H, W, 3).
        drawn: rendering at `world_from_cam`.
        camera: pinhole of both.
        world_from_cam: coarse pose.
        learning_rate: of Adam, for quaternion and translation.
        iterations: steps.
    """
    if not iterations:
        return world_from_cam
    coarse = inverse(world_from_cam)
    height, width = camera.height, camera.width
    target = torch.from_numpy(query.astype(np.float32) / 255)
    rendered = torch.from_numpy(drawn.image).permute(2, 0, 1)[None]
    # The accumulated depth, not divided by the opacity, as in the released program.
    depth = torch.from_numpy(drawn.depth * drawn.alpha)
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack(
        [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, torch.ones(height, width)], -1
    )
    points = (rays * depth[..., None]).reshape(-1, 3)
    coarse_r = torch.from_numpy(coarse[:3, :3]).float()
    coarse_t = torch.from_numpy(coarse[:3, 3]).float()
    quaternion = torch.nn.Parameter(
        torch.from_numpy(quaternion_from_rotation(coarse[:3, :3])).float()
    )
    translation = torch.nn.Parameter(coarse_t.clone())
    adam = torch.optim.Adam([quaternion, translation], lr=learning_rate)
    size = torch.tensor([width - 1.0, height - 1.0])
    for _ in range(iterations):
        rotation = _rotation(F.normalize(quaternion, dim=0))
        # From the optimized camera to the world, and on to the coarse camera.
        world = (points - translation) @ rotation
        local = world @ coarse_r.T + coarse_t
        z = local[:, 2]
        z = torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
        pixels = torch.stack(
            [camera.fx * local[:, 0] / z + camera.cx, camera.fy * local[:, 1] / z + camera.cy], 1
        )
        grid = (2 * pixels / size - 1).reshape(1, height, width, 2)
        warped = F.grid_sample(rendered, grid, align_corners=True, padding_mode="zeros")
        loss = ((warped[0].permute(1, 2, 0) - target) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    result = np.eye(4)
    result[:3, :3] = rotation_from_quaternion(quaternion.detach().double().numpy())
    result[:3, 3] = translation.detach().double().numpy()
    return inverse(result)


def _rotation(q: torch.Tensor) -> torch.Tensor:
    w, x, y, z = q
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]
    ).reshape(3, 3)  # fmt: skip

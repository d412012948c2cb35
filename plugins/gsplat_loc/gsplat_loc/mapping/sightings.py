"""Key points of the mapping images, lifted to the surface that the field shows."""

from __future__ import annotations

import numpy as np
import torch

from gsplat_loc.config import AnchorConfig
from gsplat_loc.field.gaussians import Gaussians
from gsplat_loc.field.render import lookup, snapshot, surface
from gsplat_loc.mapping.anchors import Sightings
from gsplat_loc.views import Views, pinhole, spread
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import unproject
from reloc_core.interfaces import Run
from reloc_core.types import Camera, Float64Array

_MIN_ALPHA = 0.5
_EDGE = 0.15


def sighted(
    gaussians: Gaussians,
    origin: Float64Array,
    background: torch.Tensor,
    views: Views,
    detector: KeypointDetector,
    options: AnchorConfig,
    run: Run,
) -> Sightings:
    """Sightings of evenly spread mapping images."""
    chosen = views.frames[spread(len(views), options.images)]
    parts: dict[str, list[np.ndarray]] = {
        k: [] for k in ("points", "origins", "rays", "depths", "images", "pixel")
    }
    descriptors = []
    with run.progress("Anchoring key points", len(chosen)) as progress:
        for number, frame in enumerate(chosen):
            query = views.dataset[int(frame)]
            pose = query.world_from_cam
            assert pose is not None
            found = detector.detect([query.image], options.keypoints)[0]
            target = pinhole(query.camera, views.short_side)
            drawn = snapshot(gaussians, target, pose, origin, background, run.runtime.threads)
            good = surface(drawn, _MIN_ALPHA, _EDGE)
            direction = unproject(query.camera, found.pixels)
            depth = lookup(target, direction, drawn.depth, good)
            kept = depth > 0
            length = np.linalg.norm(direction[kept], axis=1)
            world = direction[kept] @ pose[:3, :3].T
            center = pose[:3, 3] - origin
            parts["points"].append(world * depth[kept, None] + center)
            parts["origins"].append(np.broadcast_to(center, world.shape))
            parts["rays"].append(world / length[:, None])
            parts["depths"].append(depth[kept] * length)
            parts["images"].append(np.full(len(world), number))
            parts["pixel"].append(np.full(len(world), pixel_angle(query.camera, detector)))
            descriptors.append(found.descriptors.cpu()[torch.from_numpy(kept)])
            progress.advance()
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return Sightings(descriptors=torch.cat(descriptors), **joined)


def pixel_angle(camera: Camera, detector: KeypointDetector) -> float:
    """Angle in radians of a pixel of the image that the detector sees."""
    return min(camera.width, camera.height) / detector.resolution / camera.fx

"""Pictures of what the field shows at a pose, for reports."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from gsplat_loc.field.fieldmap import FieldMap
from gsplat_loc.field.render import Rendering, physical, snapshot, view_of
from reloc_core import rendering
from reloc_core.mapping import pinhole_camera, resample
from reloc_core.types import Float64Array, ImageArray, Query

_SIDE = 240
_SQUARES = 8  # of the checkerboard along the shorter side


def estimator_pictures(
    field: FieldMap, query: Query, world_from_cam: Float64Array, threads: int
) -> dict[str, ImageArray]:
    """The field's descriptors at a pose, by their principal components."""
    if field.descriptors is None:
        return {}
    camera = pinhole_camera(query.camera, _SIDE)
    colors = principal_colors(field.descriptors.features)
    out = rendering.rasterize(
        physical(field.gaussians),
        colors.to(field.gaussians.means),
        view_of(camera, world_from_cam, field.origin),
        near=field.near,
        threads=threads,
    )
    return {"field descriptors (principal components)": to_image(out.image.cpu().numpy())}


def principal_colors(features: torch.Tensor) -> torch.Tensor:
    """Colours (N, 3) in 0..1 of the first three principal components of descriptors (N, C)."""
    values = features.float()
    seen = values.any(1)
    if int(seen.sum()) < 3:
        return torch.zeros(len(values), 3)
    mean = values[seen].mean(0)
    centered = values[seen] - mean
    _, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    axes = vectors[:, -3:].flip(1)
    # The sign of an axis is arbitrary: fix it.
    axes = axes * torch.sign(axes[axes.abs().argmax(0), torch.arange(3)])
    scores = (values - mean) @ axes
    sample = scores[seen]
    low, high = sample.quantile(0.02, dim=0), sample.quantile(0.98, dim=0)
    scaled = ((scores - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return torch.where(seen[:, None], scaled, 0.0)


def refiner_pictures(
    field: FieldMap, query: Query, before: Float64Array, after: Float64Array, threads: int
) -> dict[str, ImageArray]:
    """Rendered against real, depth, and overlays before and after refinement."""
    camera = pinhole_camera(query.camera, _SIDE)
    real, _ = resample(query.image, query.camera, camera)
    shown = {
        name: snapshot(field.gaussians, camera, pose, field.placement(threads))
        for name, pose in (("before", before), ("after", after))
    }
    refined = to_image(shown["after"].image)
    return {
        "rendered at the refined pose": refined,
        "rendered depth": depth_picture(shown["after"]),
        "checkerboard before": checkerboard(real, to_image(shown["before"].image)),
        "checkerboard after": checkerboard(real, refined),
        "difference before": difference(real, to_image(shown["before"].image)),
        "difference after": difference(real, refined),
    }


def to_image(values: np.ndarray) -> ImageArray:
    """Colours in 0..1 as uint8."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def depth_picture(found: Rendering) -> ImageArray:
    """Depth in false colours, near warm and far cold; black where nothing was drawn."""
    drawn = found.alpha > 0.5
    if not drawn.any():
        return np.zeros((*found.depth.shape, 3), np.uint8)
    low, high = np.percentile(found.depth[drawn], [2, 98])
    near = np.clip((high - found.depth) / max(high - low, 1e-9), 0, 1)
    colored = cv2.applyColorMap(np.rint(near * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    colored[~drawn] = 0
    return np.ascontiguousarray(colored[..., ::-1])


def checkerboard(real: ImageArray, rendered: ImageArray) -> ImageArray:
    """Squares of the query and of the rendering in turn: edges run through where the pose fits."""
    size = max(min(real.shape[:2]) // _SQUARES, 1)
    rows, columns = np.indices(real.shape[:2]) // size
    odd = ((rows + columns) % 2).astype(bool)
    return np.where(odd[..., None], rendered, real)


def difference(real: ImageArray, rendered: ImageArray) -> ImageArray:
    """Absolute difference of brightness, three times enlarged."""
    grey = [cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.int16) for i in (real, rendered)]
    value = np.clip(3 * np.abs(grey[0] - grey[1]), 0, 255).astype(np.uint8)
    return np.repeat(value[..., None], 3, 2)

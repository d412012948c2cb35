"""A query, ready to be compared with renderings."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from nefes_refine.bundle import Bundle
from nefes_refine.field.training import render_map
from nefes_refine.field.views import View, exposure, make_view
from nefes_refine.refine.align import Template, feature_cost
from reloc_core.mapping.views import pixel_rays
from reloc_core.types import Float64Array, Query


class Target:
    """An image with its features.

    Attributes:
        view: the image at the working resolution.
        features: (C, rows, columns) extracted features of the cells.
    """

    def __init__(self, bundle: Bundle, query: Query) -> None:
        self.bundle = bundle
        self.view: View = make_view(query, bundle.config.view)
        self.features: Tensor = bundle.features(self.view.image).to(bundle.device)
        colours = self.view.colours()
        self.colours = torch.from_numpy(colours)
        bins = exposure(self.view, colours, bundle.config.field)
        self.histogram = torch.from_numpy(bins).to(bundle.device)
        rays = pixel_rays(self.view.cells).reshape(-1, 3)
        self.directions = torch.from_numpy(rays).float()

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.view.cells.height, self.view.cells.width

    @cached_property
    def detailed(self) -> Tensor:
        """(C, height, width) features as finely as their network has them; the cells' at the least."""
        return self.bundle.features.detailed(self.view.image).to(self.bundle.device)

    def locate(self) -> Float64Array:
        """The regressor's pose (4, 4)."""
        return self.bundle.regressor.locate(self.view, self.features)

    @torch.inference_mode()
    def render(self, world_from_cam: Float64Array) -> tuple[Template, float]:
        """The rendering at a pose and its feature cost."""
        pose = torch.from_numpy(world_from_cam)
        colours, features, depth = render_map(
            self.bundle.field, pose, self.directions, self.shape, self.histogram
        )
        fused = self.bundle.field.fuse(colours[None], features[None])[0]
        points = _points(self.directions, depth, pose)
        return Template(fused, points, world_from_cam), feature_cost(fused, self.features)

    @torch.inference_mode()
    def glimpse(self, world_from_cam: Float64Array) -> tuple[Template, float]:
        """A quarter of the cells of the rendering at a pose, and their feature cost.

        Before fusion, so that the cost is a little higher; enough to match with.
        """
        pose = torch.from_numpy(world_from_cam)
        directions = self.directions.unflatten(0, self.shape)[::2, ::2]
        shape = (directions.shape[0], directions.shape[1])
        directions = directions.flatten(0, 1)
        _, features, depth = render_map(self.bundle.field, pose, directions, shape, self.histogram)
        points = _points(directions, depth, pose)
        cost = feature_cost(features, self.features[:, ::2, ::2])
        return Template(features, points, world_from_cam), cost


def _points(directions: Tensor, depth: Tensor, pose: Tensor) -> Tensor:
    """Scene points (N, 3) float64 at depths (rows, columns) along rays (N, 3) of a camera (4, 4)."""
    local = directions.double() * depth.flatten()[:, None].cpu().double()
    return local @ pose[:3, :3].T + pose[:3, 3]

"""The refiner `nefes_refine`: any estimator's pose, improved by what a field renders there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from nefes_refine.bundle import Bundle, load_bundle
from nefes_refine.config import RefineConfig, check_refiner
from nefes_refine.field.training import render_map
from nefes_refine.refine.align import Template, align, covariance_at, match
from nefes_refine.refine.gradient_modes import refine_pose_mode, refine_weights_mode
from nefes_refine.target import Target
from reloc_core.errors import InputError, MapError
from reloc_core.interfaces import Refiner, Runtime
from reloc_core.maps import Map
from reloc_core.types import Evidence, Float64Array, ImageArray, Localization, Query

_LOG = logging.getLogger(__name__)
_LEAST_COST, _LARGEST_COST = 1e-3, 2.0


class NefesRefiner(Refiner):
    """See the module docstring; the modes are explained in `RefineConfig`.

    Args:
        config: options.

    Raises:
        ConfigError: an option has a value that makes no sense.
    """

    def __init__(self, config: RefineConfig) -> None:
        check_refiner(config)
        self.config = config
        self.bundle: Bundle | None = None

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Refiner.load`; reads the map of `nefes_regressor`.

        Raises:
            MapError: no field, or one of another feature network.
        """
        self.bundle = load_bundle(scene_map, runtime)

    def refine(
        self, query: Query, localization: Localization, evidence: Evidence | None = None
    ) -> Localization:
        """See `Refiner.refine`.

        A pose outside the field's volume comes back as it is, with a warning.
        """
        pose = localization.world_from_cam
        assert pose is not None
        bundle = self._bundle()
        try:
            bundle.scene.check_inside(pose)
        except InputError as error:
            _LOG.warning("%s: not refined. %s", query.name, error)
            return _with_likeness(localization, _LARGEST_COST)
        if self.config.mode == "align":
            return self._aligned(Target(bundle, query), localization)
        refine = refine_pose_mode if self.config.mode == "pose" else refine_weights_mode
        target = Target(bundle, query)
        found = refine(target, pose, self.config)
        by_cost = self.config.verify and not self.config.verify_ends
        if by_cost and target.render(found)[1] > target.render(pose)[1]:
            return localization
        return replace(localization, world_from_cam=found)

    @torch.inference_mode()
    def _aligned(self, target: Target, localization: Localization) -> Localization:
        """Refine from the given pose and, where that does not arrive, from mapped images.

        A mapped image is a start only if a glimpse from there leads to a pose or is like the query: it
        costs a sixth of a round of rendering and matching, and sees from farther away than the regressor
        errs. A pose whose cost is none of a true pose keeps the covariance that came with it.
        """
        pose, views = localization.world_from_cam, self._bundle().views
        assert pose is not None

        def matched(template: Template) -> Float64Array | None:
            if not self.config.match:
                return None
            return match(template, target.features, target.view.cells, target.view.camera)

        def aligned(template: Template) -> Float64Array:
            return align(template, target.features, target.view.cells, template.world_from_cam)[0]

        best, cost = target.render(pose)
        best, cost = self._climb(target, best, cost, matched, matched(best))
        starts: list[Float64Array] = []
        if not views.arrived(cost):
            count = self.config.starts
            starts = views.starts(target.features, pose, localization.covariance, count)
        for start in filter(self._plausible, starts):
            seen, unlike = target.glimpse(start)
            found = matched(seen)
            if found is None and not self._hopeless(unlike):
                found = start
            best, cost = self._climb(target, best, cost, matched, found)
            if views.arrived(cost):
                break
        if not (self._hopeless(cost) or (self.config.match and views.arrived(cost))):
            best, cost = self._climb(target, best, cost, aligned, aligned(best))
        localization = _with_likeness(localization, cost)
        if best.world_from_cam is pose:
            return localization
        covariance = localization.covariance
        if views.arrived(cost):
            covariance = covariance_at(best, target.features, target.view.cells)
        return replace(localization, world_from_cam=best.world_from_cam, covariance=covariance)

    def _climb(
        self,
        target: Target,
        best: Template,
        cost: float,
        propose: Callable[[Template], Float64Array | None],
        pose: Float64Array | None,
    ) -> tuple[Template, float]:
        """Render a pose, and what is proposed there, and so on, while the feature cost falls.

        It must fall by more than `min_gain`, or else noise would move poses that are better than what the
        field can tell. Where it has arrived and falls by less than unseen images differ in it, the next
        rendering would tell nothing; where it is hopeless, neither.

        Args:
            target: the query.
            best: rendering to improve on.
            cost: its cost.
            propose: the pose (4, 4) that a rendering leads to; None for none.
            pose: the first one.

        Returns:
            the best rendering, `best` itself when nothing was better, and its cost.
        """
        views = self._bundle().views
        for _ in range(self.config.iterations - 1):
            if pose is None or not self._plausible(pose):
                break
            template, found = target.render(pose)
            gain = cost - found
            if gain <= self.config.min_gain * cost or self._hopeless(found):
                break
            best, cost = template, found
            if views.arrived(cost) and gain < views.spread:
                break
            pose = propose(best)
        return best, cost

    def _hopeless(self, cost: float) -> bool:
        """Alignment alone is let try, as whoever switched matching off wants."""
        return self.config.match and self._bundle().views.hopeless(cost)

    def _plausible(self, pose: Float64Array) -> bool:
        try:
            self._bundle().scene.check_inside(pose)
        except InputError:
            return False
        return bool(np.isfinite(pose).all())

    def _bundle(self) -> Bundle:
        if self.bundle is None:
            raise MapError("nefes_refine has no map yet: call load first.")
        return self.bundle

    # -------------------------------------------------------------------------------- pictures

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """Query beside renderings before and after refinement, features as colours."""
        bundle = self._bundle()
        target = Target(bundle, query)
        stages = dict(localization.stages)
        after = stages.get("refine.nefes_refine", localization.world_from_cam)
        before = next((p for name, p in stages.items() if name == "solve"), None)
        assert after is not None
        shown = [_pixels(target.colours)]
        maps = [target.features]
        for pose in (before, after):
            if pose is not None:
                colour, features, _ = self._rendered(target, pose)
                shown.append(_pixels(colour.permute(1, 2, 0)))
                maps.append(features)
        size = (target.view.camera.width, target.view.camera.height)
        names = ["query", "rendered before", "rendered after"][: len(shown)]
        return {
            f"Colours: {', '.join(names)}": _side_by_side(shown, size),
            f"Features: {', '.join(names)}": _side_by_side(
                [_pixels(m) for m in principal_colours(maps)], size
            ),
        }

    @torch.inference_mode()
    def _rendered(self, target: Target, pose: Float64Array) -> tuple[Tensor, Tensor, Tensor]:
        colour, features, depth = render_map(
            target.bundle.field, torch.from_numpy(pose), target.directions, target.shape,
            target.histogram,
        )  # fmt: skip
        return colour, target.bundle.field.fuse(colour[None], features[None])[0], depth


def _with_likeness(localization: Localization, cost: float) -> Localization:
    """A localization that says how alike the query and its rendering are: minus the cost's logarithm."""
    likeness = -float(np.log(max(cost, _LEAST_COST)))
    return replace(localization, support={**localization.support, "likeness": likeness})


def principal_colours(maps: list[Tensor]) -> list[Tensor]:
    """Feature maps (C, H, W) as colours (H, W, 3) in 0..1: the first map's principal components."""
    flat = maps[0].flatten(1).T.float()
    mean = flat.mean(0)
    _, _, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    shown = [(m.flatten(1).T.float() - mean) @ axes[:3].T for m in maps]
    low, high = (torch.quantile(shown[0], q, dim=0) for q in (0.02, 0.98))
    return [
        ((s - low) / (high - low + 1e-9)).clamp(0, 1).unflatten(0, m.shape[1:])
        for s, m in zip(shown, maps, strict=True)
    ]


def _pixels(colours: Tensor) -> ImageArray:
    return (colours.clamp(0, 1) * 255).round().byte().cpu().numpy()


def _side_by_side(images: list[ImageArray], size: tuple[int, int]) -> ImageArray:
    large = [cv2.resize(image, size, interpolation=cv2.INTER_NEAREST) for image in images]
    return np.concatenate(large, axis=1)

"""Alignment: the field is rendered at the pose, and the query aligned with it by Gauss-Newton."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from gsplat_loc.config import MatchConfig, RefineConfig
from gsplat_loc.field.fieldmap import FieldMap
from gsplat_loc.field.pictures import to_image
from gsplat_loc.field.render import Rendering, lookup
from gsplat_loc.match import match
from gsplat_loc.refine.gauss_newton import (
    ColorLevel,
    PointMatches,
    Prior,
    fused,
    gauss_newton,
    map_covariance,
)
from gsplat_loc.refine.stage import Seen, Stage
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import inverse, unproject
from reloc_core.interfaces import Runtime
from reloc_core.types import Camera, Float64Array, Localization

LEAST = 200  # pixels
_LEAST_MATCHES = 12
_SAMPLED = 4000  # pixels that tell what the map's error does
_ERROR_SIDE = 480  # pixels, shorter side of the image that `map_error` is given for
_LARGEST_STDEV = 1.0  # of a prior; weaker ones are as good as none
_EXTRAPOLATION = 1.5  # power of the mapped share of a view by which the map's error falls


class Alignment(Stage):
    """Colours, or key points of the rendering, against those of the query.

    The cost by which poses are compared is the robust difference of brightness over the pixels whose
    depth can be trusted.

    Args:
        field: see `Stage`.
        config: see `Stage`.
        runtime: see `Stage`.
        keypoints: align key points instead of colours.
    """

    def __init__(
        self, field: FieldMap, config: RefineConfig, runtime: Runtime, keypoints: bool = False
    ) -> None:
        super().__init__(field, config, runtime)
        self._detector = None
        if keypoints:
            self._detector = KeypointDetector(config.resolution).to(runtime.device)

    def run(self, seen: Seen, localization: Localization) -> Localization:
        """Gauss-Newton from rendering to rendering; never worse by the difference of brightness."""
        given = localization.world_from_cam
        assert given is not None
        prior = _prior(localization) if self.config.use_prior else None
        pose, covariance, start_cost = given, None, None
        for _ in range(self.config.renderings):
            drawn, good = self.draw(seen, pose)
            levels = color_levels(seen, drawn, good, self.config)
            now = levels[-1].term(np.eye(4), self.config.redundancy, LEAST) if levels else None
            if now is None:
                return localization
            if start_cost is None:
                start_cost = now.cost
            elif now.cost > start_cost:
                return localization
            improved, found = self._improve(seen, drawn, good, levels, pose, prior)
            after = levels[-1].term(inverse(pose) @ improved, self.config.redundancy, LEAST)
            if after is None or after.cost > now.cost:
                break
            pose, covariance = improved, self._covariance(levels[-1], found, float(good.mean()))
        if covariance is None:
            return replace(localization, world_from_cam=pose)
        if prior is not None:
            # A field that shows things out of place pulls poses there, however well its colours fit.
            pose, covariance = fused(prior, pose, covariance)
        return replace(localization, world_from_cam=pose, covariance=covariance)

    def _improve(
        self, seen: Seen, drawn: Rendering, good: np.ndarray, levels: list[ColorLevel],
        pose: Float64Array, prior: Prior | None,
    ) -> tuple[Float64Array, Float64Array]:  # fmt: skip
        """One rendering's worth of steps: a better pose and the information at it."""
        options = self.config
        current, information = pose, np.zeros((6, 6))
        if self._detector is None:
            for level in levels:
                current, information, _ = gauss_newton(
                    pose, current, [level], [options.redundancy], prior, options.steps, LEAST
                )
            return current, information
        matches = self._matches(seen, drawn, good)
        if matches is not None:
            current, information, _ = gauss_newton(
                pose, current, [matches], [5.0], prior, options.steps, _LEAST_MATCHES
            )
        return current, information

    def _matches(self, seen: Seen, drawn: Rendering, good: np.ndarray) -> PointMatches | None:
        """Key points of the rendering, lifted, with those of the query that look alike."""
        assert self._detector is not None
        options = self.config
        ours, theirs = self._detector.detect([to_image(drawn.image), seen.image], options.keypoints)
        found = match(ours.descriptors, theirs.descriptors,
                      MatchConfig(min_similarity=options.min_similarity))  # fmt: skip
        rows = found.query.cpu().numpy()
        directions = unproject(seen.camera, ours.pixels[rows])
        depth = lookup(seen.camera, directions, drawn.depth, good)
        kept = depth > 0
        if int(kept.sum()) < _LEAST_MATCHES:
            return None
        pixels = theirs.pixels[found.map.cpu().numpy()]
        return PointMatches(
            seen.camera, directions[kept] * depth[kept, None], pixels[kept], options.keypoint_px
        )

    def _covariance(
        self, level: ColorLevel, information: Float64Array, share: float
    ) -> Float64Array | None:
        """What the observations leave open, and what the map's own error adds."""
        points = level.points[:: max(len(level.points) // _SAMPLED, 1)].astype(np.float64)
        try:
            found = np.linalg.inv(information)
            found += shown_error(level.camera, points, self.map_error, share)
        except np.linalg.LinAlgError:
            return None
        good = np.isfinite(found).all() and (np.diag(found) > 0).all()
        return (found + found.T) / 2 if good else None


def color_levels(
    seen: Seen, drawn: Rendering, good: np.ndarray, config: RefineConfig
) -> list[ColorLevel]:
    """Pyramid from coarse to fine; empty where too little of the field is seen."""
    if good.mean() < config.min_pixels:
        return []
    real = cv2.cvtColor(seen.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rendered = cv2.cvtColor(np.clip(drawn.image, 0, 1) * 255, cv2.COLOR_RGB2GRAY)
    inside = seen.inside.astype(np.float32)
    levels = []
    for number in range(config.levels):
        factor = 2**number
        size = (seen.camera.width // factor, seen.camera.height // factor)
        if min(size) < 24:
            break
        small = [
            cv2.resize(a, size, interpolation=cv2.INTER_AREA)
            for a in (real, rendered, inside, drawn.depth, good.astype(np.float32))
        ]
        levels.append(_level(seen.camera.scaled(*size), *small))
    return levels[::-1]


def shown_error(
    camera: Camera, points: Float64Array, map_error: float, share: float
) -> Float64Array:
    """What the map's own error adds to the covariance of a pose.

    A view that shows the map in a share of its pixels only looks at it from beyond the mapping images:
    surfaces there were seen by few of them, from one side, and are displaced together.

    Args:
        camera: of the rendering.
        points: (N, 3) surface points that it shows, in its axes.
        map_error: see `RefineConfig`.
        share: of the pixels that show trusted surface.
    """
    side = min(camera.width, camera.height) / _ERROR_SIDE
    return map_covariance(camera, points, map_error * side / share**_EXTRAPOLATION)


def _prior(localization: Localization) -> Prior | None:
    """The given pose with its covariance, where that says something."""
    covariance, pose = localization.covariance, localization.world_from_cam
    if covariance is None or pose is None or not np.isfinite(covariance).all():
        return None
    values = np.linalg.eigvalsh(covariance)
    if values[0] <= 0 or values[-1] > _LARGEST_STDEV**2:
        return None
    return Prior(pose, np.linalg.inv(covariance))


def _level(
    camera: Camera, real: np.ndarray, rendered: np.ndarray, inside: np.ndarray,
    depth: np.ndarray, good: np.ndarray,
) -> ColorLevel:  # fmt: skip
    """Points of the pixels that are good throughout."""
    rows, columns = np.nonzero(good > 0.99)
    z = depth[rows, columns]
    x = (columns.astype(np.float32) - np.float32(camera.cx)) / np.float32(camera.fx) * z
    y = (rows.astype(np.float32) - np.float32(camera.cy)) / np.float32(camera.fy) * z
    half = np.float32(0.5)
    kernel = np.array([[-half, 0, half]], np.float32)
    return ColorLevel(
        camera,
        np.stack([x, y, z], 1),
        rendered[rows, columns],
        real,
        cv2.filter2D(real, cv2.CV_32F, kernel),
        cv2.filter2D(real, cv2.CV_32F, kernel.T),
        inside,
    )

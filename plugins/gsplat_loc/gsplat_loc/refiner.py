"""The refiner `gsplat_loc`: render the field at a pose and align the query with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from gsplat_loc.align import ColorLevel, PointMatches, Prior, gauss_newton, map_covariance
from gsplat_loc.config import MatchConfig, RefineConfig, check_refine
from gsplat_loc.fieldmap import FieldMap, load_field
from gsplat_loc.match import match
from gsplat_loc.pictures import refiner_pictures, to_image
from gsplat_loc.render import Rendering, snapshot, surface
from gsplat_loc.sightings import lookup
from gsplat_loc.views import pinhole, resized
from gsplat_loc.warp import released_warp
from reloc_core.errors import MapError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import inverse, unproject
from reloc_core.interfaces import Refiner, Runtime
from reloc_core.maps import Map
from reloc_core.types import (
    BoolArray,
    Camera,
    Evidence,
    Float64Array,
    ImageArray,
    Localization,
    Query,
)

_LEAST = 200  # pixels
_LEAST_MATCHES = 12
_SAMPLED = 4000  # pixels that tell what the map's error does
_ERROR_SIDE = 480  # pixels, shorter side of the image that `map_error` is given for
_LARGEST_STDEV = 1.0  # of a prior; weaker ones are as good as none
_EXTRAPOLATION = 1.5  # power of the mapped share of a view by which the map's error falls


@dataclass(frozen=True)
class _Seen:
    """A query at the refiner's resolution.

    Attributes:
        camera: pinhole.
        image: (H, W, 3) uint8.
        inside: (H, W) where the image has content.
    """

    camera: Camera
    image: ImageArray
    inside: BoolArray


class GsplatRefiner(Refiner):
    """See the module docstring.

    The cost by which poses are compared is the robust difference of brightness over the pixels whose
    depth can be trusted; the result is never worse by it than the pose that was given.
    """

    def __init__(self, config: RefineConfig) -> None:
        check_refine(config)
        self.config = config
        self.map: FieldMap | None = None
        self.runtime = Runtime()
        self._detector: KeypointDetector | None = None

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Refiner.load`."""
        self.use(load_field(scene_map, runtime.device), runtime)

    def use(self, field: FieldMap, runtime: Runtime) -> None:
        """Refine against a field in memory."""
        self.map, self.runtime = field, runtime
        if self.config.mode in ("keypoints", "both"):
            self._detector = KeypointDetector(self.config.resolution).to(runtime.device)

    def refine(
        self, query: Query, localization: Localization, evidence: Evidence | None = None
    ) -> Localization:
        """See `Refiner.refine`. Where the field shows too little, the pose is returned as it is."""
        if self.map is None:
            raise MapError("gsplat_loc has no map yet: call load first.")
        if self.config.mode == "none" or localization.world_from_cam is None:
            return localization
        camera = pinhole(query.camera, self.config.resolution)
        image, inside = resized(query.camera, camera, query.image)
        seen = _Seen(camera, image, inside)
        if self.config.mode == "warp":
            return self._warp(seen, localization)
        return self._align(seen, localization)

    def pictures(self, query: Query, localization: Localization) -> dict[str, ImageArray]:
        """See `Refiner.pictures`."""
        if self.map is None or localization.world_from_cam is None:
            return {}
        before = next(
            (p for name, p in reversed(localization.stages) if not name.startswith("refine")),
            localization.world_from_cam,
        )
        return refiner_pictures(
            self.map, query, before, localization.world_from_cam, self.runtime.threads
        )

    # ---------------------------------------------------------------------------- alignment

    def _align(self, seen: _Seen, localization: Localization) -> Localization:
        """Gauss-Newton from rendering to rendering."""
        given = localization.world_from_cam
        assert given is not None
        prior = _prior(localization) if self.config.use_prior else None
        pose, covariance, start_cost = given, None, None
        for _ in range(self.config.renderings):
            drawn, good = self._draw(seen, pose)
            levels = self._levels(seen, drawn, good)
            now = levels[-1].term(np.eye(4), self.config.redundancy, _LEAST) if levels else None
            if now is None:
                return localization
            if start_cost is None:
                start_cost = now.cost
            elif now.cost > start_cost:
                return localization
            improved, found = self._improve(seen, drawn, good, levels, pose, prior)
            after = levels[-1].term(inverse(pose) @ improved, self.config.redundancy, _LEAST)
            if after is None or after.cost > now.cost:
                break
            pose, covariance = improved, self._covariance(levels[-1], found, float(good.mean()))
        if covariance is None:
            covariance = localization.covariance
        return replace(localization, world_from_cam=pose, covariance=covariance)

    def _improve(
        self, seen: _Seen, drawn: Rendering, good: np.ndarray, levels: list[ColorLevel],
        pose: Float64Array, prior: Prior | None,
    ) -> tuple[Float64Array, Float64Array]:  # fmt: skip
        """One rendering's worth of steps: a better pose and the information at it."""
        options = self.config
        current, information = pose, np.zeros((6, 6))
        if options.mode in ("keypoints", "both"):
            matches = self._matches(seen, drawn, good)
            if matches is not None:
                current, information, _ = gauss_newton(
                    pose, current, [matches], [5.0], prior, options.steps, _LEAST_MATCHES
                )
        if options.mode in ("photometric", "both"):
            for level in levels:
                current, information, _ = gauss_newton(
                    pose, current, [level], [options.redundancy], prior, options.steps, _LEAST
                )
        return current, information

    def _draw(self, seen: _Seen, pose: Float64Array) -> tuple[Rendering, np.ndarray]:
        field = self.map
        assert field is not None
        drawn = snapshot(field.gaussians, seen.camera, pose, field.origin, field.background,
                         self.runtime.threads)  # fmt: skip
        return drawn, surface(drawn, self.config.min_alpha, self.config.depth_edge)

    def _levels(self, seen: _Seen, drawn: Rendering, good: np.ndarray) -> list[ColorLevel]:
        """Pyramid from coarse to fine; empty where too little of the field is seen."""
        if good.mean() < self.config.min_pixels:
            return []
        real = cv2.cvtColor(seen.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        rendered = cv2.cvtColor(np.clip(drawn.image, 0, 1) * 255, cv2.COLOR_RGB2GRAY)
        inside = seen.inside.astype(np.float32)
        levels = []
        for number in range(self.config.levels):
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

    def _matches(self, seen: _Seen, drawn: Rendering, good: np.ndarray) -> PointMatches | None:
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

    # ------------------------------------------------------------------------------- results

    def _warp(self, seen: _Seen, localization: Localization) -> Localization:
        """The published refinement."""
        given = localization.world_from_cam
        assert given is not None
        drawn, good = self._draw(seen, given)
        pose = released_warp(
            seen.image, drawn, seen.camera, given, self.config.warp_lr, self.config.warp_iters
        )
        if self.config.warp_safe:
            levels = self._levels(seen, drawn, good)
            least, step = _LEAST, inverse(given) @ pose
            now = levels[-1].term(np.eye(4), 1.0, least) if levels else None
            after = levels[-1].term(step, 1.0, least) if levels else None
            if now is None or after is None or after.cost > now.cost:
                return localization
        return replace(localization, world_from_cam=pose)

    def _covariance(
        self, level: ColorLevel, information: Float64Array, share: float
    ) -> Float64Array | None:
        """What the observations leave open, and what the map's own error adds.

        A view that shows the map in a share of its pixels only looks at it from beyond the mapping
        images: surfaces there were seen by few of them, from one side, and are displaced together.
        """
        points = level.points[:: max(len(level.points) // _SAMPLED, 1)].astype(np.float64)
        side = min(level.camera.width, level.camera.height) / _ERROR_SIDE
        error_px = self.config.map_error * side / share**_EXTRAPOLATION
        try:
            found = np.linalg.inv(information) + map_covariance(level.camera, points, error_px)
        except np.linalg.LinAlgError:
            return None
        good = np.isfinite(found).all() and (np.diag(found) > 0).all()
        return (found + found.T) / 2 if good else None


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

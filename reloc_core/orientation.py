"""Photos that were taken with the camera held another way: queries turned upright, answers turned back.

Cameras store the pixels of the sensor and note in EXIF how to turn them. Poses and intrinsics belong to
the stored pixels; features of mapping images that were upright are recognised best in upright queries.
So a query is localized upright, and pose, covariance, evidence and camera are turned back.

Tags that mirror the image (2, 4, 5, 7) are left alone: no camera pose gives a mirrored view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from reloc_core.types import (
    CAMERA_MODELS,
    Camera,
    Correspondences,
    Evidence,
    Float64Array,
    FloatArray,
    Localization,
    PosePrior,
    Query,
    RelativePoses,
)

QUARTERS = {3: 2, 6: 1, 8: 3}
"""Clockwise quarter turns that make the stored pixels upright, by the value of the EXIF tag."""

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Turn:
    """Clockwise quarter turns of an image about the optical axis.

    Attributes:
        quarters: 0 to 3.
    """

    quarters: int

    @property
    def inverse(self) -> Turn:
        """The turn back."""
        return Turn(-self.quarters % 4)

    @property
    def rotation(self) -> Float64Array:
        """(3, 3) turned_from_given camera axes."""
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[self.quarters]
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float64)

    def camera(self, camera: Camera) -> Camera:
        """The camera of the turned image."""
        if not self.quarters:
            return camera
        values = dict(zip(CAMERA_MODELS[camera.model], camera.params, strict=True))
        cx, cy = self.pixels(np.array([[camera.cx, camera.cy]]), camera)[0]
        values["cx"], values["cy"] = float(cx), float(cy)
        odd = self.quarters % 2
        if odd and "fx" in values:
            values["fx"], values["fy"] = values["fy"], values["fx"]
        if "p1" in values:
            # Tangential distortion is 2 u (u . t) + |u|^2 t with the vector t = (p2, p1).
            t = self.rotation[:2, :2] @ [values["p2"], values["p1"]]
            values["p2"], values["p1"] = float(t[0]), float(t[1])
        size = (camera.height, camera.width) if odd else (camera.width, camera.height)
        params = tuple(values[name] for name in CAMERA_MODELS[camera.model])
        return replace(camera, width=size[0], height=size[1], params=params)

    def pixels(self, pixels: FloatArray, camera: Camera) -> Float64Array:
        """Where pixels (N, 2) of the given image, which `camera` took, lie in the turned one."""
        centre = np.array([camera.width - 1, camera.height - 1]) / 2
        turned = centre[::-1] if self.quarters % 2 else centre
        return np.asarray((pixels - centre) @ self.rotation[:2, :2].T + turned, np.float64)

    def pose(self, world_from_cam: Float64Array) -> Float64Array:
        """`world_from_cam` (..., 4, 4) of the turned image."""
        turned = np.array(world_from_cam, np.float64)
        turned[..., :3, :3] = turned[..., :3, :3] @ self.rotation.T
        return turned

    def covariance(self, covariance: Float64Array | None) -> Float64Array | None:
        """The covariance (..., 6, 6) in the axes of the turned camera."""
        if covariance is None:
            return None
        both = np.kron(np.eye(2), self.rotation)
        return np.asarray(both @ covariance @ both.T)

    def query(self, query: Query) -> Query:
        """The query with image, depth, camera and poses turned."""
        if not self.quarters:
            return query
        pose, prior, depth = query.world_from_cam, query.prior, query.depth
        return replace(
            query,
            image=np.ascontiguousarray(np.rot90(query.image, -self.quarters)),
            depth=None if depth is None else np.ascontiguousarray(np.rot90(depth, -self.quarters)),
            camera=self.camera(query.camera),
            world_from_cam=None if pose is None else self.pose(pose),
            prior=None if prior is None else self._prior(prior),
            orientation=1,
        )

    def localization(self, found: Localization) -> Localization:
        """The localization of the turned image."""
        if not self.quarters:
            return found
        pose = found.world_from_cam
        return replace(
            found,
            world_from_cam=None if pose is None else self.pose(pose),
            covariance=self.covariance(found.covariance),
            stages=tuple((name, self.pose(stage)) for name, stage in found.stages),
            camera=None if found.camera is None else self.camera(found.camera),
        )

    def evidence(self, evidence: Evidence, camera: Camera) -> Evidence:
        """The evidence of the turned image.

        Args:
            evidence: of the given image.
            camera: that took the given image.
        """
        if not self.quarters:
            return evidence
        if evidence.camera is not None:
            evidence = replace(evidence, camera=self.camera(evidence.camera))
        if isinstance(evidence, Correspondences):
            points = evidence.points_cam
            return replace(
                evidence,
                points2d=self.pixels(evidence.points2d, camera),
                points_cam=None if points is None else points @ self.rotation.T,
                grid_shape=None,  # no longer row by row
            )
        if isinstance(evidence, RelativePoses):
            return replace(
                evidence,
                ref_from_cam=self.pose(evidence.ref_from_cam),
                covariances=self.covariance(evidence.covariances),
            )
        return self._prior(evidence) if isinstance(evidence, PosePrior) else evidence

    def _prior(self, prior: PosePrior) -> PosePrior:
        return replace(
            prior,
            world_from_cam=self.pose(prior.world_from_cam),
            covariance=self.covariance(prior.covariance),
        )


def upright(query: Query) -> tuple[Query, Turn]:
    """The query turned as its EXIF orientation says, and the turn that undoes it.

    What was found for the upright query belongs to the stored pixels after `undo.localization(found)`.
    """
    turn = Turn(QUARTERS.get(query.orientation, 0))
    return turn.query(query), turn.inverse


def in_any_orientation(
    query: Query,
    first: tuple[Outcome, Localization],
    localize: Callable[[Query], tuple[Outcome, Localization]],
) -> tuple[Outcome, Localization, Turn]:
    """Try the three other orientations of a query that was not localized as it is.

    Args:
        query: without a sequence: trying would disturb the state of methods that have one.
        first: what `localize` gave for it.
        localize: gives something and the localization of a query.

    Returns:
        what `localize` gave for the best-scored orientation that was localized, or else for the query
        as it is, and the turn that undoes that orientation.
    """
    best = (*first, Turn(0))
    if first[1].localized:
        return best
    score = -1.0
    for quarters in (1, 3, 2):
        turn = Turn(quarters)
        outcome, found = localize(turn.query(query))
        if found.localized and found.score > score:
            best, score = (outcome, found, turn.inverse), found.score
    return best

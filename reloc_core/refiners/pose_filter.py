"""The refiner `pose_filter`: poses of a video filtered over time, after any estimator and solver."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from reloc_core.geometry import adjoint, inverse, project, transform
from reloc_core.interfaces import Refiner, Runtime
from reloc_core.refiners.config import PoseFilterConfig, check_pose_filter
from reloc_core.refiners.point_tracks import CONTRAST, PointTracks
from reloc_core.refiners.pose_belief import Belief, PoseBelief
from reloc_core.types import (
    Camera,
    Correspondences,
    Evidence,
    Float64Array,
    ImageArray,
    Localization,
    PosePrior,
    Query,
    Status,
)

_UNKNOWN_STD = 0.02
"""Radians, and share of the distance: standard deviation of a pose that comes without covariance."""
_TRUST = 0.5
"""Seconds in which the score of a pose that nothing confirms falls to 1 / e."""
_RUNTIME = Runtime(threads=1)

Sight = Literal["", "followed", "carried", "held", "blind", "changed"]
"""How a frame hangs together with the one before: "followed" by points, "carried" by odometry, "held" as a
copy of it, "blind" where nothing can be seen, "changed" where something else is; "" for the first one."""


@dataclass(frozen=True)
class Mark:
    """A frame whose pose comes later; see `PoseFilter.mark`.

    Attributes:
        number: of the points that were followed.
        anchor_from_cam: (4, 4) by them.
        covariance: (6, 6) of that.
        age: of the points in frames.
    """

    number: int
    anchor_from_cam: Float64Array
    covariance: Float64Array
    age: int


class PoseFilter(Refiner):
    """Fuses the poses of single frames along the camera's motion.

    Motion comes from points of the evidence that are followed in the images, else from the query's prior
    where that is odometry, else from the last velocity. Frames that are not localized get the
    predicted pose, whose covariance grows until `coast` seconds have passed.

    Args:
        config: options; see `PoseFilterConfig`.

    Attributes:
        sight: of the last frame.
        frames: since it began, or began anew.
    """

    history: ClassVar[int] = 40
    uses_prior: ClassVar[bool] = True
    takes_failures: ClassVar[bool] = True

    def __init__(self, config: PoseFilterConfig) -> None:
        check_pose_filter(config)
        self.config = config
        self.belief = PoseBelief(config)
        self.tracks = PointTracks(config.tracks, config.resolution)
        self.start_sequence()

    def start_sequence(self) -> None:
        """See `Refiner.start_sequence`."""
        self.belief.reset()
        self.tracks.reset()
        self._timestamp: float | None = None
        self._grey: ImageArray | None = None
        self._odometry: PosePrior | None = None
        self._unseen = 0.0  # seconds since the time that the belief is of
        self._score = 0.0
        self._repeated = 0
        self.sight: Sight = ""
        self.frames = 0

    def refine(
        self, query: Query, localization: Localization, evidence: Evidence | None = None
    ) -> Localization:
        """See `Refiner.refine`; also takes queries that are not localized."""
        elapsed = self._elapsed(query)
        if not 0 < elapsed <= self.config.max_gap:
            self.start_sequence()
            elapsed = 1 / self.config.rate
        self._timestamp = query.timestamp
        self.frames += 1
        self._unseen += elapsed
        self._score *= float(np.exp(-elapsed / _TRUST))
        grey = self.tracks.scaled(query.image)
        prior = query.prior if self.config.prior == "pose" else None
        if self._repeats(grey) and prior is None:
            unseen = self._unseen if self._repeated > self.config.hold else 0.0
            if self.sight == "changed":  # a copy of what the belief is not about
                return self._predicted(localization, self._unseen, True)
            self.sight = "held"
            return self._predicted(localization, unseen)
        found = evidence if isinstance(evidence, Correspondences) else None
        self._learn_distance(localization, found)
        followed = self._follow(query, localization, grey)
        if not followed:
            if not (localization.localized or (prior and self.belief.belief)):
                # The belief stays where it is: the points may come into view again.
                changed = self.tracks.started > 0 and self.tracks.shows_something(grey)
                self.sight = "changed" if changed else "blind"
                return self._predicted(localization, self._unseen, changed)
            self.sight = "blind"
            self.belief.coast(self._unseen)
            self._arrive(query)
            self.tracks.reset()
        if prior is not None and prior.covariance is not None:
            self.belief.inform(Belief(prior.world_from_cam, prior.covariance))
        if localization.localized:
            agreed = self._correct(localization, followed)
            self._renew(query.camera, localization, found, grey)
            if not agreed:
                # What supports the frame's own pose says nothing about the one that is kept against it.
                localization = replace(localization, support={})
        return self._predicted(localization, 0.0)

    # ------------------------------------------------------------------- poses that come later

    def fork(self) -> PoseFilter:
        """A copy with a state of its own."""
        other = copy.copy(self)
        # What they hold is replaced, never changed.
        other.belief, other.tracks = copy.copy(self.belief), copy.copy(self.tracks)
        return other

    def mark(self) -> Mark:
        """Remember the last frame, whose motion was followed, for `correct_later`."""
        tracks = self.tracks
        return Mark(tracks.number, tracks.anchor_from_last, tracks.covariance, tracks.age)

    def correct_later(
        self, mark: Mark, camera: Camera, localization: Localization, evidence: Evidence | None
    ) -> bool:
        """Take the pose of an earlier frame into the belief, moved along with the points followed since.

        Args:
            mark: of that frame.
            camera: intrinsics of the frames.
            localization: of that frame.
            evidence: that it comes from.

        Returns:
            whether it was taken; not where other points have been followed since, or the belief differs.
        """
        tracks = self.tracks
        pose, grey = localization.world_from_cam, tracks.grey
        if mark.number != tracks.number or pose is None or grey is None:
            return False
        motion = inverse(mark.anchor_from_cam) @ tracks.anchor_from_last
        turned, covariance = adjoint(motion), localization.covariance
        if covariance is not None:
            # Both poses are relative to the anchor and share most errors of its points.
            uncertain = np.abs(tracks.covariance - mark.covariance)
            noise = self.config.track_noise * np.diag(np.diag(uncertain))
            noise += self.belief.drift(tracks.age - mark.age)
            covariance = turned @ covariance @ turned.T + noise
        moved = replace(localization, world_from_cam=pose @ motion, covariance=covariance)
        found = evidence if isinstance(evidence, Correspondences) else None
        if found is not None:
            seen, front = project(camera, transform(inverse(pose @ motion), found.points3d))
            inside = front & (seen > -0.5).all(1) & (seen < [camera.width, camera.height]).all(1)
            found = replace(found, points2d=seen)
            if moved.inliers is not None and len(moved.inliers) == len(inside):
                moved = replace(moved, inliers=moved.inliers & inside)
        self._learn_distance(moved, found)
        agreed = self._correct(moved, True)
        self._renew(camera, moved, found, grey)
        return agreed

    # ------------------------------------------------------------------------------- motion

    def _elapsed(self, query: Query) -> float:
        if query.timestamp is None or self._timestamp is None:
            return 1 / self.config.rate
        return query.timestamp - self._timestamp

    def _repeats(self, grey: ImageArray) -> bool:
        """Whether a picture is exactly the last one; a black one may look the same anywhere."""
        same = self._grey is not None and np.array_equal(grey, self._grey)
        self._repeated = self._repeated + 1 if same and grey.std() >= CONTRAST else 0
        self._grey = grey
        return self._repeated > 0

    def _arrive(self, query: Query) -> None:
        """The belief is of this frame now."""
        self._unseen, self._odometry = 0.0, query.prior

    def _follow(self, query: Query, localization: Localization, grey: ImageArray) -> bool:
        """Move the belief along with the followed points, or else with the odometry."""
        last = self._odometry
        motion = self.tracks.follow(grey, query.camera, _RUNTIME, localization.world_from_cam)
        if motion is not None:
            covariance = self.config.track_noise * motion.covariance
            self.belief.move(motion.last_from_cam, covariance, self._unseen)
            self.sight = "followed"
        elif self.config.prior == "odometry" and last is not None and query.prior is not None:
            moved = inverse(last.world_from_cam) @ query.prior.world_from_cam
            covariance = _increment(last.covariance, query.prior.covariance, moved)
            self.belief.move(moved, covariance, self._unseen)
            self.tracks.reset()
            self.sight = "carried"
        else:
            return False
        self._arrive(query)
        return True

    def _learn_distance(self, localization: Localization, found: Correspondences | None) -> None:
        good = inliers(localization, found)
        if found is None or not good.any():
            return
        assert localization.world_from_cam is not None
        depth = transform(inverse(localization.world_from_cam), found.points3d[good])[:, 2]
        if float(np.median(depth)) > 0:
            self.belief.distance = float(np.median(depth))

    def _renew(
        self, camera: Camera, localization: Localization, found: Correspondences | None,
        grey: ImageArray,
    ) -> None:  # fmt: skip
        """Choose new points to follow, where it is time to."""
        tracks, options = self.tracks, self.config
        if tracks.age < options.max_age and tracks.share >= options.min_share:
            return
        good = inliers(localization, found)
        if found is None or options.tracks == 0:
            return
        assert localization.world_from_cam is not None
        tracks.start(
            grey, camera, localization.world_from_cam, found.points2d[good],
            found.points3d[good],
        )  # fmt: skip

    # ----------------------------------------------------------------------------- the pose

    def _correct(self, localization: Localization, followed: bool) -> bool:
        """Take a frame's own pose into the belief; whether they agree."""
        pose, covariance = localization.world_from_cam, localization.covariance
        assert pose is not None
        if covariance is None:
            std = np.array([_UNKNOWN_STD] * 3 + [_UNKNOWN_STD * self.belief.distance] * 3)
            covariance = np.diag(std**2)
        sure = not followed and localization.score >= self.config.sure_score
        agreed = self.belief.correct(Belief(pose, covariance), sure)
        if agreed:
            self._score = max(self._score, localization.score)
        return agreed

    def _predicted(
        self, localization: Localization, unseen: float, changed: bool = False
    ) -> Localization:
        """The believed pose `unseen` seconds ahead, or the frame's own where nothing is believed.

        Args:
            localization: of the frame.
            unseen: seconds since the time that the belief is of.
            changed: whether the frame shows something that the last one did not.
        """
        if unseen > self.config.coast:
            self.belief.reset()
            self.tracks.reset()
        belief = self.belief.ahead(unseen)
        if belief is None:
            return localization
        if changed:
            return replace(localization, reason=f"{localization.reason}; and the view has changed")
        return replace(
            localization, status=Status.LOCALIZED, reason="", score=self._score,
            world_from_cam=belief.world_from_cam, covariance=belief.covariance,
        )  # fmt: skip


def _increment(
    before: Float64Array | None, after: Float64Array | None, motion: Float64Array
) -> Float64Array:
    """Covariance (6, 6) that a motion adds to odometry; 0 where it is not given, or shrinks somewhere.

    Args:
        before: covariance of the pose at the start of the motion.
        after: of the one at its end.
        motion: (4, 4) start_from_end.
    """
    if before is None or after is None:
        return np.zeros((6, 6))
    turned = adjoint(motion)
    added = after - turned @ before @ turned.T
    added = (added + added.T) / 2
    # Rounding aside: large sums of small increments have it.
    least = -1e-9 * float(np.abs(after).max())
    if not np.isfinite(added).all() or float(np.linalg.eigvalsh(added).min()) < least:
        return np.zeros((6, 6))
    return np.asarray(added, np.float64)


def inliers(localization: Localization, found: Correspondences | None) -> np.ndarray:
    """The correspondences (N,) bool that support a pose; none where that is not known."""
    count = 0 if found is None else len(found.points2d)
    mask = localization.inliers
    if not localization.localized or mask is None or len(mask) != count:
        return np.zeros(count, bool)
    return np.asarray(mask, bool)

"""Typed configurations of the core's refiners."""

from __future__ import annotations

from dataclasses import dataclass

from reloc_core.checks import Checks

PRIORS = ("pose", "odometry", "ignore")


@dataclass
class PoseFilterConfig:
    """Options of the refiner `pose_filter`.

    Lengths are shares of the distance of what the camera sees, so that the unit of the scene does not
    matter.

    Attributes:
        tracks: points that are followed from frame to frame; 0 follows none.
        resolution: shorter side in pixels of the images that they are followed in.
        max_age: frames after which new points are chosen.
        min_share: of the points that must still be followed; with less new ones are chosen.
        track_noise: covariance of the camera's motion, as a factor on that of the followed points,
            whose distances share errors.
        drift: and `drift_rotation` (radians): error of the motion per frame at least.
        shared: seconds that an error of the measured pose lasts: after as many, its correlation has
            fallen to 1 / e.
        redundancy: factor on the covariance of the measured pose.
        floor: and `floor_rotation` (radians): standard deviation of the map's own errors.
        threshold: of the normalised innovation squared with six degrees of freedom (12.6: 5 %).
        confirm: measured poses that must contradict the belief and agree with each other before the
            filter follows them.
        sure_score: score of a measured pose that is followed at once when the motion was not seen.
        hold: frames for which a picture that is exactly the last one is taken for a copy of it, made
            by the recorder; then the camera is assumed to have moved on unseen.
        coast: seconds that the camera is assumed to keep its velocity when no motion can be seen.
        acceleration: per s^1.5; and `acceleration_rotation` (radians per s^1.5): spectral density of
            the accelerations that make a motion unseen uncertain.
        max_gap: seconds between frames beyond which the filter starts anew.
        rate: frames per second where there are no time stamps.
        distance: of what the camera sees where the evidence has no points.
        prior: what `Query.prior` is: "pose" (an independent measurement of the pose in the map),
            "odometry" (its motion between frames counts, and what that adds to its covariance, where
            points cannot be followed; it may lie in a world of its own) or "ignore".
    """

    tracks: int = 400
    resolution: int = 360
    max_age: int = 20
    min_share: float = 0.5
    track_noise: float = 8.0
    drift: float = 1e-3
    drift_rotation: float = 1e-3
    shared: float = 0.33
    redundancy: float = 1.0
    floor: float = 1.5e-3
    floor_rotation: float = 2e-3
    threshold: float = 12.6
    confirm: int = 5
    sure_score: float = 0.7
    hold: int = 2
    coast: float = 0.5
    acceleration: float = 0.1
    acceleration_rotation: float = 0.3
    max_gap: float = 0.5
    rate: float = 30.0
    distance: float = 2.0
    prior: str = "pose"


def check_pose_filter(config: PoseFilterConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config, "refiner.")
    options.at_least(64, "resolution")
    options.at_least(1, "max_age", "redundancy")
    options.share("min_share", "sure_score")
    options.not_negative(
        "tracks", "track_noise", "drift", "drift_rotation", "confirm", "hold", "coast",
        "acceleration", "acceleration_rotation",
    )  # fmt: skip
    options.positive(
        "floor", "floor_rotation", "threshold", "shared", "max_gap", "rate", "distance"
    )
    options.one_of("prior", PRIORS)

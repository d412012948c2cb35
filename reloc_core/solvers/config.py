"""Configurations of the solver components. Imports no native code.

Values are checked when a component is built, by the rules of `options.py` and `checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PnpConfig:
    """Options of `PnpSolver`.

    Attributes:
        residual: "auto" (ray for dense evidence, reprojection for sparse), "reprojection" or "ray".
        threshold: pixels; narrow radius of the search and first robust scale of the final fit.
        search_radius: pixels; wide radius of the search; None: 25 for ray, 12 for reprojection.
        confidence: of having drawn an outlier-free sample, at which the search stops.
        min_iterations: minimal samples drawn at least.
        max_iterations: minimal samples drawn at most; bounds the time per query.
        min_inliers: a pose with less support is "not localized".
        min_score: a pose less likely to be right than this is "not localized".
        local_noise: estimate the noise level per image region in place of once.
        pixel_noise: pixels; image part of the noise where evidence carries variances.
        estimate_focal: estimate the focal length with the pose, for images without calibration; the
            camera's own is left aside. Uses the reprojection residual.
        verify_focal: whether a camera's focal length is checked and treated as uncertain, by its
            `focal_sigma` and the floor below; otherwise it is taken as exact.
        focal_floor: standard deviation of the focal length of any camera, over the focal length, at
            least: calibrations differ by a few parts in a thousand from day to day.
        verify_camera: whether the rest of the camera is checked too: principal point, shape of the pixels,
            lens. What the evidence says against it is taken into the covariance, or corrected. Only where
            the focal length is checked.
        look_again: search sparse evidence again, from other seeds, where less than 60 % of it agrees
            with the pose; a second pose with as much support widens the covariance, or takes its place.
        use_variances: whether variances of the evidence are used.
        use_depth: solve RGB-D evidence (with camera-frame points) by 3D-3D alignment.
        depth_threshold: metres; narrow radius for RGB-D evidence.
        device: where batches of queries are solved: "cpu", "cuda" or "cuda:N" (a build with
            `RELOC_CUDA=ON`). Single queries, depth and cameras with lens distortion stay on the CPU.
        seed: random seed; None: the run's.
    """

    residual: str = "auto"
    threshold: float = 10.0
    search_radius: float | None = None
    confidence: float = 0.99
    min_iterations: int = 16
    max_iterations: int = 100_000
    min_inliers: int = 6
    min_score: float = 0.3
    local_noise: bool = True
    pixel_noise: float = 1.0
    estimate_focal: bool = False
    verify_focal: bool = True
    focal_floor: float = 0.003
    verify_camera: bool = True
    look_again: bool = True
    use_variances: bool = True
    use_depth: bool = True
    depth_threshold: float = 0.05
    device: str = "cpu"
    seed: int | None = None


@dataclass
class DsacConfig:
    """Options of `DsacSolver`; the defaults are the published ones.

    Attributes:
        hypotheses: number of hypotheses.
        threshold: pixels; inlier threshold.
        alpha: scale of the soft inlier score.
        max_error: pixels; larger reprojection errors count as this.
        max_tries: minimal sets drawn per hypothesis at most.
        refine_steps: rounds of refinement at most.
        reference_side: pixels; shorter side of the image in which `threshold` and `max_error` are
            measured, whatever size is stored (ACE and GLACE: 480). None: pixels of the stored image.
        seed: random seed; None: the run's.
    """

    hypotheses: int = 64
    threshold: float = 10.0
    alpha: float = 100.0
    max_error: float = 100.0
    max_tries: int = 1000
    refine_steps: int = 100
    reference_side: int | None = None
    seed: int | None = None


@dataclass
class AveragingConfig:
    """Options of `AveragingSolver`.

    Attributes:
        rotation_scale_deg: robust scale of rotations where the evidence brings no covariances.
        position_scale: the same for positions, relative to their median distance from the references.
        direction_scale_deg: the same for directions, where the scale is unknown.
        motion_exponent: variances grow with this power of how far a reference is from the query, as
            errors of relative poses do; relative to the nearest reference. 0 takes them as they are.
        gate: how many standard deviations a hypothesis may differ from the consensus (six degrees
            of freedom).
        min_confidence: references that are less certain to be right are left out.
        min_inliers: agreeing references that a pose needs; fewer are accepted where the evidence
            has fewer references, but never fewer than two where the scale is unknown.
        min_score: a pose less likely to be right than this is "not localized".
    """

    rotation_scale_deg: float = 3.0
    position_scale: float = 0.15
    direction_scale_deg: float = 5.0
    motion_exponent: float = 2.0
    gate: float = 4.0
    min_confidence: float = 0.1
    min_inliers: int = 2
    min_score: float = 0.2


@dataclass
class SingleReferenceConfig:
    """Options of `SingleReferenceSolver`.

    Attributes:
        reference: position of the reference whose relative pose is taken (published: 0, the first).
    """

    reference: int = 0

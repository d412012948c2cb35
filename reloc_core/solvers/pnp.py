"""Solver component `pnp`: locally optimised RANSAC with a robust final fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from reloc_core.errors import InputError
from reloc_core.interfaces import Runtime, Solver
from reloc_core.solvers.absolute import (
    PoseEstimate,
    estimate_absolute_pose,
    estimate_absolute_pose_batch,
)
from reloc_core.solvers.ambiguity import (
    LOOKS,
    reconciled,
    rival,
    samples_for_rival,
    unclear,
    worth_another_look,
)
from reloc_core.solvers.camera_doubt import with_camera_doubt
from reloc_core.solvers.checks import as_solver_options, options_of
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.device import check_supported, device_index
from reloc_core.solvers.located import with_located_points
from reloc_core.solvers.options import AbsolutePoseOptions, RgbdPoseOptions
from reloc_core.solvers.rgbd import estimate_rgbd_pose
from reloc_core.types import Camera, Correspondences, Evidence, Localization, Status

__all__ = ["PnpConfig", "PnpSolver", "to_localization"]


def to_localization(estimate: PoseEstimate, redundancy: float = 1.0) -> Localization:
    """The pipeline's view of an estimate; `redundancy` multiplies the covariance.

    Its `support`, larger is better: `focal`, how well the inliers agree with the camera's focal length,
    0 down to minus the change that they want of its logarithm beyond the noise; `alone`, the probability
    that no other pose explains the evidence better, given that one of the two is right; `camera`, minus the
    logarithm of by how much doubts of the camera widened the variance.
    """
    wanted = abs(estimate.focal_shift) - 2 * estimate.focal_shift_std
    details: dict[str, Any] = {
        "num_inliers": estimate.num_inliers,
        "inliers": estimate.inliers,
        "score": estimate.score * (1 - estimate.rival),
        "support": {
            "focal": -max(0.0, wanted),
            "alone": 1 - estimate.rival,
            "camera": -estimate.camera_doubt,
        },
    }
    if not estimate.success:
        # The score knows how well a pose fits, not that chance or a wrong focal length made it fit.
        return Localization.failure(estimate.message, **details | {"score": 0.0})
    return Localization(
        Status.LOCALIZED,
        world_from_cam=estimate.world_from_cam,
        covariance=estimate.covariance * redundancy,
        camera=estimate.camera if estimate.focal_std is not None else None,
        **details,
    )


def correspondences(evidence: Evidence, solver: str) -> Correspondences:
    """The evidence, if it is of the kind the PnP solvers take.

    Raises:
        InputError: it is of another kind.
    """
    if not isinstance(evidence, Correspondences):
        raise InputError(f"Solver '{solver}' takes Correspondences, got {evidence.kind_name}.")
    return evidence


class PnpSolver(Solver):
    """Accurate and fast absolute pose for scene coordinates and keypoint matches."""

    accepts: ClassVar[tuple[type[Evidence], ...]] = (Correspondences,)

    def __init__(self, config: PnpConfig) -> None:
        self.config = config
        # A nonsense value is reported now, not at the first query.
        with as_solver_options():
            options = self._options("dense", 0)
            if device_index(config.device) >= 0:
                check_supported(options, [])
        with as_solver_options(threshold="depth_threshold"):
            self._rgbd_options(0)

    def _options(
        self, kind: str, seed: int, threads: int = 1, redundancy: float = 1.0
    ) -> AbsolutePoseOptions:
        c = self.config
        residual = c.residual
        if residual == "auto":
            dense = kind == "dense" and not c.estimate_focal
            residual = "ray" if dense else "reprojection"
        return options_of(
            AbsolutePoseOptions,
            c,
            residual=residual,
            seed=seed if c.seed is None else c.seed,
            threads=threads,
            redundancy=redundancy,
        )

    def _rgbd_options(self, seed: int) -> RgbdPoseOptions:
        c = self.config
        # The search radius of the configuration is in pixels.
        return RgbdPoseOptions(
            threshold=c.depth_threshold,
            confidence=c.confidence,
            min_iterations=c.min_iterations,
            max_iterations=c.max_iterations,
            min_inliers=c.min_inliers,
            min_score=c.min_score,
            local_noise=c.local_noise,
            seed=seed if c.seed is None else c.seed,
        )

    def _uses_depth(self, evidence: Correspondences) -> bool:
        # Depth was lifted with the focal length that is to be estimated.
        c = self.config
        return c.use_depth and not c.estimate_focal and evidence.points_cam is not None

    def _variances(self, evidence: Correspondences) -> Any:
        return evidence.variances if self.config.use_variances else None

    def solve(self, evidence: Evidence, camera: Camera, runtime: Runtime) -> Localization:
        """See `Solver.solve`."""
        c = correspondences(evidence, "pnp")
        if self._uses_depth(c):
            estimate = estimate_rgbd_pose(
                c.points_cam,
                c.points3d,
                weights=c.weights,
                options=self._rgbd_options(runtime.seed),
            )
            return to_localization(estimate, c.redundancy)
        options = self._options(c.kind, runtime.seed, max(1, runtime.threads), c.redundancy)
        estimate = estimate_absolute_pose(
            c.points2d,
            c.points3d,
            camera,
            weights=c.weights,
            variances=self._variances(c),
            options=options,
        )
        return to_localization(self._concluded(estimate, c, camera, options))

    def _concluded(
        self,
        estimate: PoseEstimate,
        c: Correspondences,
        camera: Camera,
        options: AbsolutePoseOptions,
    ) -> PoseEstimate:
        """An estimate after what may speak against it: another pose, another camera."""
        estimate = self._look_again(estimate, c, camera, options)
        if self.config.verify_camera and self.config.verify_focal:
            estimate = with_camera_doubt(estimate, c, camera, options.residual == "ray")
        if self.config.use_variances and options.residual == "reprojection":
            estimate = with_located_points(estimate, c, camera)
        return estimate

    def _look_again(
        self,
        estimate: PoseEstimate,
        c: Correspondences,
        camera: Camera,
        options: AbsolutePoseOptions,
    ) -> PoseEstimate:
        """Search again where another pose may explain sparse evidence as well.

        From other seeds in all of it, and in what the pose leaves unexplained.
        """
        if c.kind != "sparse" or not self.config.look_again or not unclear(estimate):
            return estimate
        for look in range(1, LOOKS + 1) if worth_another_look(estimate) else ():
            again = estimate_absolute_pose(
                c.points2d,
                c.points3d,
                camera,
                weights=c.weights,
                variances=self._variances(c),
                options=replace(options, seed=options.seed + look),
            )
            estimate = reconciled(estimate, again)
        rest = ~estimate.inliers
        samples = samples_for_rival(estimate, options.min_iterations, options.max_iterations)
        variances = self._variances(c)
        other = estimate_absolute_pose(
            c.points2d[rest],
            c.points3d[rest],
            camera,
            weights=None if c.weights is None else c.weights[rest],
            variances=None if variances is None else variances[rest],
            options=replace(options, max_iterations=samples),
        )
        return replace(estimate, rival=rival(estimate, other))

    def solve_batch(
        self, evidence: Sequence[Evidence], cameras: Sequence[Camera], runtime: Runtime
    ) -> list[Localization]:
        """See `Solver.solve_batch`; over `runtime.threads` threads, or on the device of the options."""
        problems = [correspondences(e, "pnp") for e in evidence]
        if len(problems) != len(cameras):
            raise InputError(f"{len(problems)} problems came with {len(cameras)} cameras.")
        out: list[Localization | None] = [None] * len(problems)
        for i, (c, camera) in enumerate(zip(problems, cameras, strict=True)):
            if self._uses_depth(c):
                out[i] = self.solve(c, camera, runtime)
        groups: dict[tuple[str, str, float], list[int]] = {}
        for i, (c, camera) in enumerate(zip(problems, cameras, strict=True)):
            if out[i] is None:
                device = self.config.device if camera.is_pinhole else "cpu"
                groups.setdefault((c.kind, device, c.redundancy), []).append(i)
        for (kind, device, redundancy), chosen in groups.items():
            options = self._options(kind, runtime.seed, redundancy=redundancy)
            estimates = estimate_absolute_pose_batch(
                [problems[i].points2d for i in chosen],
                [problems[i].points3d for i in chosen],
                [cameras[i] for i in chosen],
                weights=[problems[i].weights for i in chosen],
                variances=[self._variances(problems[i]) for i in chosen],
                options=options,
                threads=runtime.threads,
                device=device,
            )
            for i, estimate in zip(chosen, estimates, strict=True):
                concluded = self._concluded(estimate, problems[i], cameras[i], options)
                out[i] = to_localization(concluded)
        return [localization for localization in out if localization is not None]

"""Solver component `dsac`: the soft-inlier scheme as published with DSAC*."""

from __future__ import annotations

from typing import ClassVar

from reloc_core.interfaces import Runtime, Solver
from reloc_core.solvers.absolute import estimate_pose_dsac
from reloc_core.solvers.checks import as_solver_options, check_integer, options_of
from reloc_core.solvers.config import DsacConfig
from reloc_core.solvers.options import DsacOptions
from reloc_core.solvers.pnp import correspondences, to_localization
from reloc_core.types import Camera, Correspondences, Evidence, Localization

__all__ = ["DsacConfig", "DsacSolver"]


class DsacSolver(Solver):
    """Fixed number of hypotheses, soft inlier counting, least squares on the winner's inliers.

    Brachmann and Rother, "Visual Camera Re-Localization from RGB and RGB-D Images Using DSAC", TPAMI 2021.
    The score is the share of inliers. For new work prefer `pnp`.
    """

    accepts: ClassVar[tuple[type[Evidence], ...]] = (Correspondences,)

    def __init__(self, config: DsacConfig) -> None:
        self.config = config
        with as_solver_options():
            if config.reference_side is not None:
                check_integer(config, "reference_side", 1)
            self._options(0, 1)  # a nonsense value is reported now, not at the first query

    def _options(self, seed: int, threads: int, camera: Camera | None = None) -> DsacOptions:
        c = self.config
        scale = 1.0
        if c.reference_side is not None and camera is not None:
            # Stored pixels per pixel of the reference image.
            scale = min(camera.width, camera.height) / c.reference_side
        return options_of(
            DsacOptions, c, seed=seed if c.seed is None else c.seed, threads=threads,
            threshold=c.threshold * scale, max_error=c.max_error * scale,
        )  # fmt: skip

    def solve(self, evidence: Evidence, camera: Camera, runtime: Runtime) -> Localization:
        """See `Solver.solve`."""
        c = correspondences(evidence, "dsac")
        options = self._options(runtime.seed, runtime.threads, camera)
        estimate = estimate_pose_dsac(c.points2d, c.points3d, camera, options=options)
        return to_localization(estimate, c.redundancy)

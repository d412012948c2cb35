"""Solver of `PosePrior` evidence: a regressed absolute pose, taken as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reloc_core.errors import InputError
from reloc_core.geometry import check_pose
from reloc_core.interfaces import Runtime, Solver
from reloc_core.solvers.checks import as_solver_options, require
from reloc_core.types import Camera, Evidence, Localization, PosePrior, Status


@dataclass
class PriorConfig:
    """Options of `PriorSolver`.

    Attributes:
        max_translation_std: refuse poses whose standard deviation of the position exceeds this, in
            metres; infinity accepts all.
    """

    max_translation_std: float = math.inf


class PriorSolver(Solver):
    """Turns a pose prior into a localization; the score falls with the position's uncertainty."""

    accepts = (PosePrior,)

    def __init__(self, config: PriorConfig) -> None:
        with as_solver_options():
            std = config.max_translation_std
            require(std > 0, "max_translation_std", std, "a positive number of metres")
        self.config = config

    def solve(self, evidence: Evidence, camera: Camera, runtime: Runtime) -> Localization:
        """See `Solver.solve`."""
        if not isinstance(evidence, PosePrior):
            raise InputError(f"Solver 'prior' takes PosePrior evidence, got {evidence.kind_name}.")
        problem = check_pose(evidence.world_from_cam)
        if problem:
            return Localization.failure(f"the regressed pose is unusable: {problem}")
        std = math.inf
        if evidence.covariance is not None:
            std = float(np.sqrt(max(np.trace(evidence.covariance[3:, 3:]), 0.0)))
            if not std <= self.config.max_translation_std:
                return Localization.failure(f"position uncertain by {std:.2f} m")
        return Localization(
            Status.LOCALIZED,
            world_from_cam=evidence.world_from_cam,
            covariance=evidence.covariance,
            # 1 when sure, 0.5 at a standard deviation of one metre, 0 when unknown.
            score=1.0 / (1.0 + std),
        )

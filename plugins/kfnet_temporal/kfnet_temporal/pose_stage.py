"""From the cells' posterior to evidence whose pose is the filtered one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kfnet_temporal.config import PoseConfig
from kfnet_temporal.grid import FeatureGrid
from kfnet_temporal.pose_filter import Belief, PoseFilter
from kfnet_temporal.tracks import PointTracks
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Runtime
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Camera, Correspondences, Float64Array, Localization

NEW_SEQUENCE = ("start", "gap", "size")
_REMEMBERED, _FEWEST = 300, 20


class PoseStage:
    """Point tracks and pose filter over a sequence; its memory does not grow.

    The whole coordinate map is moved by the rigid motion between the pose that it gives and the
    filtered one, so that any solver finds the filtered pose. Where the map gives no pose, points that
    were seen before stand in, where the belief says that they are.

    Args:
        config: options.
        output: factor on the covariance, so that it is as large as the errors are.
        typical_std: metres; of the measured coordinates of a frame for which `output` was found. The
            standard deviation of the pose is taken to grow with theirs: far from the mapped views
            the errors of all cells have more in common than the solver sees in their residuals.

    Attributes:
        measured: pose of the last frame by its coordinates alone; None where they give none.
        growth: factor on the covariance for how sure the coordinates are that the pose rests on.
    """

    def __init__(
        self, config: PoseConfig, output: float = 1.0, typical_std: float | None = None
    ) -> None:
        self.config, self.output, self.typical_std = config, output, typical_std
        self.tracks = PointTracks(config.tracks)
        self.filter = PoseFilter(config)
        self.solver = PnpSolver(PnpConfig())
        self.measured: Belief | None = None
        self.growth = 1.0
        self.repeated = 0
        self.seen: Float64Array = np.zeros((0, 3))

    def reset(self) -> None:
        """Forget everything."""
        self.repeated = 0
        self.seen = self.seen[:0]
        self.measured = None
        self.growth = 1.0
        self.tracks.reset()
        self.filter.reset()

    def step(
        self, evidence: Correspondences, grid: FeatureGrid, camera: Camera, event: str,
        runtime: Runtime, measured_std: float = np.nan,
    ) -> Correspondences:  # fmt: skip
        """Advance by one frame.

        Args:
            evidence: posterior of the cells that are known, in the order of the grid.
            grid: of the frame.
            camera: its intrinsics.
            event: of the cells' filter.
            runtime: for the solver.
            measured_std: metres; median of the frame's measured coordinates. NaN if there are none.
        """
        if event in NEW_SEQUENCE:
            self.reset()
        if event == "frozen":
            # Recorders repeat single pictures; when it goes on, the camera is assumed to have moved
            # unseen from where it was seen last.
            self.repeated += 1
            unseen = self.repeated if self.repeated > self.config.hold else 0
            solved = self.solver.solve(evidence, camera, runtime)
            return self._evidence(evidence, solved, self.filter.ahead(unseen), camera)
        self.repeated = 0
        solved = self.solver.solve(evidence, camera, runtime)
        relative = self.tracks.follow(grid, camera, runtime, solved.world_from_cam)
        self.filter.predict(relative)
        self.measured = None
        if solved.localized and event != "doubted":
            assert solved.world_from_cam is not None
            assert solved.covariance is not None
            covariance = solved.covariance / evidence.redundancy
            self.measured = Belief(solved.world_from_cam, covariance)
            if self.typical_std is not None and np.isfinite(measured_std):
                self.growth = float(np.square(measured_std / self.typical_std))
            sure = event == "cut" and solved.score >= self.config.sure_score
            self.filter.update(self.measured, sure)
            self._remember(evidence, solved)
            self._renew(evidence, grid, camera, solved)
        return self._evidence(evidence, solved, self.filter.belief, camera)

    def _remember(self, evidence: Correspondences, solved: Localization) -> None:
        """Keep some of the points that agree with the pose, moved as the map is."""
        belief = self.filter.belief
        assert belief is not None
        assert solved.world_from_cam is not None
        good = np.flatnonzero(solved.inliers) if solved.inliers is not None else np.zeros(0, int)
        chosen = good[:: max(1, len(good) // _REMEMBERED)]
        motion = belief.world_from_cam @ inverse(solved.world_from_cam)
        self.seen = transform(motion, evidence.points3d[chosen])

    def _renew(
        self, evidence: Correspondences, grid: FeatureGrid, camera: Camera, solved: Localization
    ) -> None:
        tracks, options = self.tracks, self.config
        if tracks.age < options.max_age and tracks.share >= options.min_share:
            return
        count = grid.shape[0] * grid.shape[1]
        x, y = grid.cells(evidence.points2d.astype(np.float64)).T
        cells = y * grid.shape[1] + x
        points, known = np.zeros((count, 3)), np.zeros(count, bool)
        points[cells], known[cells] = evidence.points3d, True
        assert solved.world_from_cam is not None
        tracks.start(grid, camera, solved.world_from_cam, points, known)

    def _evidence(
        self, evidence: Correspondences, solved: Localization, belief: Belief | None,
        camera: Camera,
    ) -> Correspondences:  # fmt: skip
        if belief is None:
            return evidence
        covariance = belief.covariance * self.output * self.growth
        if not solved.localized:
            return self._predicted(belief.world_from_cam, covariance, camera) or evidence
        assert solved.world_from_cam is not None
        assert solved.covariance is not None
        motion = belief.world_from_cam @ inverse(solved.world_from_cam)
        claimed = solved.covariance / evidence.redundancy
        return replace(
            evidence,
            points3d=transform(motion, evidence.points3d),
            redundancy=redundancy(claimed, covariance),
        )

    def _predicted(
        self, world_from_cam: Float64Array, covariance: Float64Array, camera: Camera
    ) -> Correspondences | None:
        """The last points that were seen, where they must be in the image by the belief."""
        pixels, good = project(camera, transform(inverse(world_from_cam), self.seen))
        last = np.array([camera.width, camera.height]) - 1
        good = good & ((pixels >= 0) & (pixels <= last)).all(1)
        if good.sum() < _FEWEST:
            return None
        # Whole pixels: without residuals the solver could not state a covariance.
        found = Correspondences(np.rint(pixels[good]), self.seen[good], kind="sparse")
        claimed = self.solver.solve(found, camera, Runtime(threads=1)).covariance
        if claimed is None:
            return None
        return replace(found, redundancy=redundancy(claimed, covariance))


def redundancy(claimed: Float64Array, wanted: Float64Array) -> float:
    """Factor, at least 1, on a covariance (6, 6) for errors that have another one.

    With it errors of the covariance `wanted` have the mean normalised squared error that they should
    have. A ratio of the positions' variances would leave rotations and correlations aside.
    """
    return max(1.0, float(np.trace(np.linalg.solve(claimed, wanted))) / len(claimed))

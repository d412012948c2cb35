"""The covariance that a filtered pose is reported with."""

from dataclasses import replace

import numpy as np
import pytest
from kfnet_temporal.config import PoseConfig
from kfnet_temporal.grid import FeatureGrid
from kfnet_temporal.pose_stage import PoseStage, redundancy

from reloc_core.geometry import inverse, transform
from reloc_core.interfaces import Runtime
from reloc_core.solvers.pnp import PnpConfig, PnpSolver
from reloc_core.types import Camera, Correspondences

CAMERA = Camera.pinhole(170.0, 192, 144)
POSE = np.block([[np.eye(3), np.array([[0.3], [-0.2], [0.1]])], [np.zeros(3), 1.0]])


def grid():
    import torch

    y, x = np.mgrid[0:18, 0:24] * 8 + 3.5
    pixels = np.stack([x, y], -1).reshape(-1, 2)
    return FeatureGrid(
        torch.zeros(1, 18, 24), pixels, np.zeros((144, 192), np.uint8), 0.0, np.ones(2)
    )


def evidence(noise=0.02, share=1.0):
    """Scene coordinates of a slope; a share of them is right."""
    rng = np.random.default_rng(0)
    pixels = grid().pixels
    depth = 2 + pixels[:, 1] / 144
    rays = np.concatenate([(pixels - CAMERA.matrix[:2, 2]) / 170.0, np.ones((len(pixels), 1))], 1)
    points = transform(POSE, rays * depth[:, None]) + rng.normal(0, noise, (len(pixels), 3))
    wrong = rng.random(len(pixels)) >= share
    points[wrong] = rng.uniform(-9, 9, (int(wrong.sum()), 3))
    return Correspondences(
        pixels, points, variances=np.full(len(pixels), noise**2), grid_shape=(18, 24)
    )


def reported(found, **options):
    return PnpSolver(PnpConfig(**options)).solve(found, CAMERA, Runtime(threads=1))


def expected_square(claimed, actual):
    """Mean normalised squared error of errors that have another covariance than claimed."""
    rng = np.random.default_rng(1)
    errors = rng.multivariate_normal(np.zeros(6), actual, 20_000)
    return np.mean(np.einsum("ni,ij,nj->n", errors, np.linalg.inv(claimed), errors))


def test_errors_have_the_mean_square_that_they_should_have():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 6, 6))
    claimed, actual = a @ a.T + 0.1 * np.eye(6), 50 * (b @ b.T + 0.1 * np.eye(6))
    factor = redundancy(claimed, actual)
    assert expected_square(claimed * factor, actual) == pytest.approx(6, rel=0.05)
    assert redundancy(claimed, 1e-6 * claimed) == 1.0


def test_the_solver_reports_the_covariance_of_the_belief():
    stage = PoseStage(PoseConfig(), output=1.3)
    found = reported(stage.step(evidence(), grid(), CAMERA, "start", Runtime(threads=1)))
    belief = stage.filter.belief
    assert expected_square(found.covariance, 1.3 * belief.covariance) == pytest.approx(6, rel=0.1)


def test_a_pose_that_is_only_predicted_has_the_covariance_of_the_belief():
    """Where nothing of the map is seen, points on exact pixels stand in for it."""
    stage = PoseStage(PoseConfig())
    stage.step(evidence(), grid(), CAMERA, "start", Runtime(threads=1))
    lost = stage.step(evidence(share=0.0), grid(), CAMERA, "", Runtime(threads=1))
    assert lost.kind == "sparse"
    assert lost.redundancy < 1e5  # without residuals the solver's covariance is numerical noise
    # Whatever the options of the pipeline's solver are.
    found, belief = reported(lost, local_noise=False, threshold=5.0), stage.filter.belief
    np.testing.assert_allclose(
        transform(inverse(found.world_from_cam), POSE[:3, 3][None]), 0, atol=0.02
    )
    assert expected_square(found.covariance, belief.covariance) == pytest.approx(6, rel=0.1)


def test_unsure_coordinates_widen_the_covariance():
    found = {}
    for std in (0.02, 0.04, np.nan):
        stage = PoseStage(PoseConfig(), typical_std=0.02)
        found[std] = stage.step(evidence(), grid(), CAMERA, "start", Runtime(threads=1), std)
    assert found[0.04].redundancy == pytest.approx(4 * found[0.02].redundancy)
    assert reported(found[0.04]).covariance == pytest.approx(4 * reported(found[0.02]).covariance)
    # A frame without coordinates does not say how sure they are: the last ones count.
    stage = PoseStage(PoseConfig(), typical_std=0.02)
    stage.step(evidence(), grid(), CAMERA, "start", Runtime(threads=1), 0.04)
    nothing = replace(evidence(share=0.0), variances=np.full(432, 1.0))
    stage.step(nothing, grid(), CAMERA, "", Runtime(threads=1), 1.0)
    assert stage.growth == pytest.approx(4)

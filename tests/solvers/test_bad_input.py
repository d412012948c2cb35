"""Caller mistakes raise typed errors; bad data never does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reloc_core.errors import ConfigError, InputError, RelocError
from reloc_core.solvers import (
    AbsolutePoseOptions,
    DsacOptions,
    estimate_absolute_pose,
    estimate_absolute_pose_batch,
    estimate_pose_dsac,
)
from reloc_core.types import Camera

CAMERA = Camera.pinhole(525.0, 640, 480)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points2d": np.zeros((5, 3)), "points3d": np.zeros((5, 3))}, "points2d"),
        ({"points2d": np.zeros((5, 2)), "points3d": np.zeros((5, 2))}, "points3d"),
        ({"points2d": np.zeros((4, 2)), "points3d": np.zeros((5, 3))}, "points2d"),
        (
            {"points2d": np.zeros((5, 2)), "points3d": np.zeros((5, 3)), "weights": np.zeros(4)},
            "weights",
        ),
        (
            {
                "points2d": np.zeros((5, 2)),
                "points3d": np.zeros((5, 3)),
                "variances": np.zeros((5, 1)),
            },
            "variances",
        ),
        ({"points2d": np.full((5, 2), "a"), "points3d": np.zeros((5, 3))}, "numeric"),
        ({"points2d": np.zeros((5, 2), complex), "points3d": np.zeros((5, 3))}, "numeric"),
        ({"points2d": np.zeros((5, 2)), "points3d": np.array(3.0)}, "points3d"),
    ],
)
def test_wrong_arrays(arguments, message):
    with pytest.raises(InputError, match=message):
        estimate_absolute_pose(**arguments, camera=CAMERA)


def test_wrong_camera():
    with pytest.raises(InputError, match="camera"):
        estimate_absolute_pose(np.zeros((5, 2)), np.zeros((5, 3)), "PINHOLE")
    with pytest.raises(RelocError):
        Camera("PINHOLE", 640, 480, (np.nan, 1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    "options",
    [
        {"treshold": 3.0},
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"threshold": "wide"},
        {"threshold": 30.0, "search_radius": 10.0},
        {"confidence": 1.0},
        {"min_iterations": 0},
        {"min_iterations": 10, "max_iterations": 5},
        {"max_iterations": True},
        {"min_inliers": 3},
        {"residual": "rays"},
        {"kernels": "sse9"},
        {"seed": -1},
        {"seed": 1.5},
        {"threads": 0},
        {"pixel_noise": -1.0},
        {"local_noise": 1},
        {"estimate_focal": 1},
        {"estimate_focal": True, "residual": "ray"},
    ],
)
def test_nonsense_options(options):
    with pytest.raises(ConfigError):
        estimate_absolute_pose(np.zeros((5, 2)), np.zeros((5, 3)), CAMERA, options=options)


def test_unknown_option_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'threshold'"):
        estimate_pose_dsac(np.zeros((5, 2)), np.zeros((5, 3)), CAMERA, options={"treshold": 1.0})
    with pytest.raises(ConfigError):
        DsacOptions(hypotheses=0)


def test_batch_lengths_must_agree():
    a, b = np.zeros((5, 2)), np.zeros((5, 3))
    with pytest.raises(InputError):
        estimate_absolute_pose_batch([a], [b, b], CAMERA)
    with pytest.raises(ConfigError):
        estimate_absolute_pose_batch([a], [b], CAMERA, threads=0)
    assert estimate_absolute_pose_batch([], [], CAMERA) == []


@pytest.mark.parametrize("solve", [estimate_absolute_pose, estimate_pose_dsac])
@pytest.mark.parametrize(
    "points3d",
    [
        np.zeros((0, 3)),
        np.zeros((3, 3)),
        np.zeros((50, 3)),
        np.full((50, 3), np.nan),
        np.full((50, 3), 1e300),
        np.full((50, 3), 1e-300),
        np.column_stack([np.arange(50.0)] * 3),
        np.repeat(np.eye(3), 20, 0),
    ],
)
def test_degenerate_points_are_not_localized(solve, points3d):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 480, (len(points3d), 2))
    e = solve(pixels, points3d, CAMERA, options={"threshold": 2.0})
    assert not e.success
    assert e.message
    assert np.isfinite(e.world_from_cam).all()


def test_copies_of_three_points_do_not_determine_a_pose():
    pixels = np.array([[100.0, 80.0], [400.0, 120.0], [250.0, 400.0]]).repeat(5, 0)
    points = np.array([[-1.0, -0.8, 3.0], [1.1, -0.5, 2.5], [0.1, 1.0, 3.5]]).repeat(5, 0)
    estimate = estimate_absolute_pose(pixels, points, CAMERA)
    assert not estimate.success
    assert "do not determine" in estimate.message


WILD = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.sampled_from(
    [0.0, 1.0, float(np.float32(1e-30)), float(np.float32(1e30)), -1.0]
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_input_crashes_or_gives_a_non_finite_success(data):
    n = data.draw(st.integers(0, 40))
    points2d = data.draw(hnp.arrays(np.float32, (n, 2), elements=WILD))
    points3d = data.draw(hnp.arrays(np.float32, (n, 3), elements=WILD))
    weights = data.draw(st.none() | hnp.arrays(np.float32, (n,), elements=WILD))
    variances = data.draw(st.none() | hnp.arrays(np.float32, (n,), elements=WILD))
    residual = data.draw(st.sampled_from(["auto", "ray", "reprojection"]))
    options = {
        "residual": residual,
        "estimate_focal": residual != "ray" and data.draw(st.booleans()),
        "max_iterations": 64,
        "seed": data.draw(st.integers(0, 2**64 - 1)),
    }
    e = estimate_absolute_pose(
        points2d,
        points3d,
        CAMERA,
        weights=weights,
        variances=variances,
        options=AbsolutePoseOptions(**options),
    )
    d = estimate_pose_dsac(points2d, points3d, CAMERA, options={"hypotheses": 4, "max_tries": 16})
    for estimate in (e, d):
        assert np.isfinite(estimate.world_from_cam).all()
        assert 0 <= estimate.score <= 1
        if estimate.success:
            R = estimate.world_from_cam[:3, :3]
            assert np.allclose(R @ R.T, np.eye(3), atol=1e-6)
            assert np.isfinite(estimate.covariance).all()
            # Up to the rounding of the decomposition itself.
            eigenvalues = np.linalg.eigvalsh(estimate.covariance)
            assert eigenvalues.min() >= -1e-14 * eigenvalues.max()
            assert estimate.num_inliers == estimate.inliers.sum()

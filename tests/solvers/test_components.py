"""The solver components as the pipeline uses them."""

from __future__ import annotations

import numpy as np
import pytest

from reloc_core.errors import ConfigError, InputError
from reloc_core.interfaces import Runtime
from reloc_core.solvers import estimate_absolute_pose_batch, pnp
from reloc_core.solvers.config import DsacConfig, PnpConfig
from reloc_core.solvers.dsac import DsacSolver
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences, PosePrior


@pytest.mark.parametrize(
    "solver", [PnpSolver(PnpConfig()), DsacSolver(DsacConfig())], ids=["pnp", "dsac"]
)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_localizes(scene, solver, kind):
    s = scene(1, n=1000, pixel_noise=0.5, outliers=0.4)
    result = solver.solve(Correspondences(s.points2d, s.points3d, kind=kind), s.camera, Runtime())
    assert result.localized
    assert s.error(result.world_from_cam)[0] < 0.02
    assert result.num_inliers == result.inliers.sum() > 500
    assert 0 < result.score <= 1


@pytest.mark.parametrize(
    "solver", [PnpSolver(PnpConfig()), DsacSolver(DsacConfig())], ids=["pnp", "dsac"]
)
def test_empty_evidence_is_not_localized(scene, solver):
    camera = scene(0).camera
    result = solver.solve(Correspondences(np.zeros((0, 2)), np.zeros((0, 3))), camera, Runtime())
    assert not result.localized
    assert result.reason


@pytest.mark.parametrize(
    "solver", [PnpSolver(PnpConfig()), DsacSolver(DsacConfig())], ids=["pnp", "dsac"]
)
def test_batch_and_threads_change_nothing(scene, solver):
    scenes = [scene(k, n=400, pixel_noise=1.0, outliers=0.5) for k in range(4)]
    evidence = [
        Correspondences(s.points2d, s.points3d, kind=k)
        for s, k in zip(scenes, ["dense", "sparse"] * 2, strict=True)
    ]
    cameras = [s.camera for s in scenes]
    one = [solver.solve(e, c, Runtime(threads=1)) for e, c in zip(evidence, cameras, strict=True)]
    many = solver.solve_batch(evidence, cameras, Runtime(threads=3))
    for a, b in zip(one, many, strict=True):
        assert np.array_equal(a.world_from_cam, b.world_from_cam)
        assert np.array_equal(a.covariance, b.covariance)


def test_batches_go_to_the_device_but_for_distorted_lenses(scene, monkeypatch):
    """What is asked of the batch call, with a device that is not there."""
    scenes = [scene(k, n=200, pixel_noise=0.5) for k in range(3)]
    bent = Camera("SIMPLE_RADIAL", 640, 480, (525.0, 319.5, 239.5, -0.1))
    scenes.append(scene(3, n=200, pixel_noise=0.5, camera=bent))
    kinds = ["dense", "sparse", "dense", "dense"]
    asked = {}

    def batch(points2d, points3d, cameras, *, device, **keywords):
        for p in points2d:
            asked[id(p)] = device
        return estimate_absolute_pose_batch(points2d, points3d, cameras, **keywords)

    monkeypatch.setattr(pnp, "device_index", lambda device: 0)
    monkeypatch.setattr(pnp, "estimate_absolute_pose_batch", batch)
    evidence = [
        Correspondences(s.points2d, s.points3d, kind=k) for s, k in zip(scenes, kinds, strict=True)
    ]
    on_device = PnpSolver(PnpConfig(device="cuda:0"))
    found = on_device.solve_batch(evidence, [s.camera for s in scenes], Runtime())
    assert [asked[id(e.points2d)] for e in evidence] == ["cuda:0"] * 3 + ["cpu"]
    for s, localization in zip(scenes, found, strict=True):
        assert s.error(localization.world_from_cam)[0] < 0.01
    with pytest.raises(ConfigError, match=r"^solver\.estimate_focal is not there on CUDA"):
        PnpSolver(PnpConfig(device="cuda:0", estimate_focal=True))


def test_dsac_refinement_matches_opencv_on_the_same_inliers(scene):
    import cv2

    s = scene(3, n=1500, pixel_noise=2.0, outliers=0.4)
    result = DsacSolver(DsacConfig()).solve(
        Correspondences(s.points2d, s.points3d), s.camera, Runtime()
    )
    inliers = result.inliers
    _, rvec, tvec = cv2.solvePnP(s.points3d[inliers], s.points2d[inliers], s.camera.matrix, None)
    rotation = cv2.Rodrigues(rvec)[0]
    assert np.allclose(result.world_from_cam[:3, 3], (-rotation.T @ tvec).ravel(), atol=2e-4)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1296, 972), (320, 240), (480, 640)])
def test_dsac_inliers_do_not_depend_on_the_stored_size(scene, width, height):
    # The same errors in the image of 480 pixels, whatever size is stored: published thresholds.
    s = scene(3, n=1500, pixel_noise=6.0, outliers=0.4)
    camera = Camera.pinhole(s.camera.fx, 640, 480)
    factor = min(width, height) / 480
    stored = Camera.pinhole(s.camera.fx * factor, width, height)
    rays = (s.points2d - [s.camera.cx, s.camera.cy]) * (
        s.camera.fx / np.array([s.camera.fx, s.camera.fy])
    )

    def inliers(camera, pixels, **options):
        evidence = Correspondences(np.add(pixels, (camera.cx, camera.cy)), s.points3d)
        return DsacSolver(DsacConfig(**options)).solve(evidence, camera, Runtime()).num_inliers

    expected = inliers(camera, rays)
    assert 500 < expected < 900
    assert abs(inliers(stored, rays * factor, reference_side=480) - expected) <= 2
    if factor != 1.0:  # the option is what makes it so
        assert abs(inliers(stored, rays * factor) - expected) > 10


def test_seed_of_the_run_or_of_the_config(scene):
    s = scene(5, n=600, pixel_noise=1.0, outliers=0.9)
    evidence = Correspondences(s.points2d, s.points3d, kind="sparse")
    free, fixed = DsacSolver(DsacConfig(max_tries=20)), DsacSolver(DsacConfig(max_tries=20, seed=1))

    def poses(solver):
        out = [solver.solve(evidence, s.camera, Runtime(seed=k)) for k in range(4)]
        return {r.num_inliers if r.localized else None for r in out}

    assert len(poses(fixed)) == 1
    assert len(poses(free)) > 1


def test_min_score_turns_weak_poses_into_failures(scene):
    s = scene(6, n=500, pixel_noise=1.0, outliers=0.9)
    result = PnpSolver(PnpConfig(min_score=1.0)).solve(
        Correspondences(s.points2d, s.points3d, kind="sparse"), s.camera, Runtime()
    )
    assert not result.localized
    assert "score" in result.reason


def test_what_chance_may_have_found_has_no_score():
    rng = np.random.default_rng(9)
    camera = Camera.pinhole(500.0, 640, 480)
    for _ in range(20):
        given = Correspondences(
            rng.uniform((0, 0), (639, 479), (60, 2)), rng.uniform(-1, 1, (60, 3)), kind="sparse"
        )
        result = PnpSolver(PnpConfig()).solve(given, camera, Runtime())
        assert result.localized == (result.score > 0)


def test_wrong_evidence_and_wrong_config():
    with pytest.raises(InputError):
        PnpSolver(PnpConfig()).solve(PosePrior(np.eye(4)), None, Runtime())
    with pytest.raises(ConfigError, match=r"^solver\.threshold must be"):
        PnpSolver(PnpConfig(threshold=-1.0))
    with pytest.raises(ConfigError, match=r"^solver\.min_score must be"):
        PnpSolver(PnpConfig(min_score=2.0))
    with pytest.raises(ConfigError, match=r"^solver\.residual is 'rai'"):
        PnpSolver(PnpConfig(residual="rai"))
    with pytest.raises(ConfigError, match=r"^solver\.depth_threshold must be"):
        PnpSolver(PnpConfig(depth_threshold=0.0))
    with pytest.raises(ConfigError, match=r"^solver\.device must be 'cpu', 'cuda' or"):
        PnpSolver(PnpConfig(device="gpu"))
    with pytest.raises(ConfigError, match=r"^solver\.hypotheses must be"):
        DsacSolver(DsacConfig(hypotheses=0))
    with pytest.raises(ConfigError, match=r"^solver\.reference_side must be"):
        DsacSolver(DsacConfig(reference_side=0))


@pytest.mark.parametrize(
    "solver", [PnpSolver(PnpConfig(focal_floor=0.0)), DsacSolver(DsacConfig())], ids=["pnp", "dsac"]
)
def test_shared_errors_widen_the_covariance(scene, solver):
    s = scene(0)
    plain = Correspondences(s.points2d, s.points3d, kind="sparse")
    shared = Correspondences(s.points2d, s.points3d, kind="sparse", redundancy=4.0)
    one, many = (solver.solve(e, s.camera, Runtime()) for e in (plain, shared))
    np.testing.assert_array_equal(many.world_from_cam, one.world_from_cam)
    np.testing.assert_allclose(many.covariance, 4 * one.covariance, rtol=1e-12)
    (batched,) = solver.solve_batch([shared], [s.camera], Runtime())
    np.testing.assert_allclose(batched.covariance, many.covariance, rtol=1e-9)

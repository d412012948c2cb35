"""The CUDA solver against the CPU's: emulated on the host, and on a device where there is one."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reloc_core import _native
from reloc_core.errors import ConfigError, InputError
from reloc_core.solvers import (
    AbsolutePoseOptions,
    PoseEstimate,
    cuda_devices,
    estimate_absolute_pose_batch,
)
from reloc_core.solvers.device import check_supported
from reloc_core.types import Camera

ROOT = Path(__file__).parents[2]
CAMERA = Camera("PINHOLE", 640, 480, (525.0, 520.0, 319.5, 239.5))
Solve = Callable[..., list[PoseEstimate]]


def _cmake(source: Path, build: Path, *arguments: str, target: str) -> None:
    for command in (
        ["cmake", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", *arguments],
        ["cmake", "--build", str(build), "--target", target, "-j", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def _solvers(*arguments: str, build: str = "solvers", target: str = "reloc_solvers") -> Path:
    """Build a target of the library alone; kept in build/, so that a second run compiles nothing."""
    folder = ROOT / "build" / build
    python = f"-DPython_EXECUTABLE={sys.executable}"
    _cmake(ROOT, folder, "-DRELOC_PYTHON=OFF", python, *arguments, target=target)
    return folder / "libreloc_solvers.a"


@pytest.fixture(scope="session")
def emulation_build(built_solvers: Path | None) -> Path:
    """The programs of the emulation, linked with the solvers that the installed module has."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    solvers = built_solvers or _solvers()
    eigen = ";".join(str(p) for p in (Path(p) / "cmeel.prefix" for p in sys.path) if p.is_dir())
    build = ROOT / "build" / "cuda_emulation"
    source = Path(__file__).parent / "cuda_emulation"
    _cmake(
        source, build, f"-DRELOC_SOLVERS={solvers}", f"-DCMAKE_PREFIX_PATH={eigen}", target="all"
    )
    return build


@pytest.fixture(params=["emulation", "cuda"])
def solve(request: pytest.FixtureRequest) -> Solve:
    if request.param == "cuda":
        if cuda_devices() == 0:
            pytest.skip("no CUDA device, or a build without RELOC_CUDA=ON")
        return functools.partial(estimate_absolute_pose_batch, device="cuda")
    from cuda_emulation_tools import Emulation

    return Emulation(request.getfixturevalue("emulation_build") / "libcuda_emulation.so").solve


def make_problem(
    seed: int,
    n: int,
    pixel_noise: float = 0.0,
    point_noise: float = 0.0,
    outliers: float = 0.0,
    tails: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, scene points and the true world_from_cam; half of the noise is `tails` times larger."""
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = 2 * rng.standard_normal(3)
    pixels = rng.uniform((0, 0), (639, 479), (n, 2))
    z = rng.uniform(1, 4, (n, 1))
    rays = np.column_stack(
        [(pixels - CAMERA.matrix[:2, 2]) / np.diag(CAMERA.matrix)[:2], np.ones(n)]
    )
    world = rays * z @ pose[:3, :3].T + pose[:3, 3]
    # The noise differs over the image, which is what the cells of the fit are for.
    size = point_noise * np.exp(np.sin(pixels[:, :1] / 100))
    world += size * rng.standard_normal((n, 3))
    bad = rng.permutation(n) < round(outliers * n)
    world[bad] = rng.uniform(-4, 4, (bad.sum(), 3)) + pose[:3, 3]
    noise = pixel_noise * rng.choice([1, tails], (n, 1)) * rng.standard_normal((n, 2))
    return pixels + noise, world, pose


def tangent(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    d = np.linalg.inv(a) @ b
    return np.concatenate([Rotation.from_matrix(d[:3, :3]).as_rotvec(), d[:3, 3]])


def sigmas(cpu: PoseEstimate, other: PoseEstimate) -> float:
    d = tangent(cpu.world_from_cam, other.world_from_cam)
    return float(np.sqrt(d @ np.linalg.solve(cpu.covariance, d)))


def assert_agree(cpu: list[PoseEstimate], other: list[PoseEstimate]) -> None:
    """Same decisions, poses and covariances equal up to what rounding of float sums explains.

    What the fit decides, one more pass or heavy tails, may be on the edge; of a batch in one problem.
    """
    assert [e.success for e in other] == [e.success for e in cpu]
    on_edge = 0
    for a, b in zip(cpu, other, strict=True):
        if not a.success:
            continue
        # A pose that is better by rounding may end the search one chunk earlier or later.
        assert abs(a.iterations - b.iterations) <= max(32, 0.02 * a.iterations)
        if sigmas(a, b) > 0.02:
            on_edge += 1
            assert sigmas(a, b) < 2
            continue
        np.testing.assert_allclose(
            b.covariance, a.covariance, rtol=0.01, atol=1e-3 * np.trace(a.covariance)
        )
        assert b.noise == pytest.approx(a.noise, rel=5e-3)
        assert b.score == pytest.approx(a.score, abs=1e-3)
        assert b.effective_points == pytest.approx(a.effective_points, rel=5e-3)
        assert np.mean(a.inliers != b.inliers) <= 0.002
    assert on_edge <= 1


CLASSES: dict[str, dict[str, Any]] = {
    "dense": {"n": 1600, "point_noise": 0.02, "outliers": 0.3},
    "dense, most are outliers": {"n": 1203, "point_noise": 0.01, "outliers": 0.85},
    "keypoints": {"n": 505, "pixel_noise": 1.0, "outliers": 0.5},
    "noise with heavy tails": {"n": 405, "pixel_noise": 1.0, "outliers": 0.3, "tails": 4.0},
    "few keypoints": {"n": 41, "pixel_noise": 1.0, "outliers": 0.3},
    "nearly exact": {"n": 257, "pixel_noise": 0.02},
    "nothing fits": {"n": 200, "outliers": 1.0},
}


@pytest.mark.parametrize("residual", ["ray", "reprojection", "auto"])
@pytest.mark.parametrize("name", CLASSES)
def test_agrees_with_the_cpu(solve: Solve, name: str, residual: str):
    problems = [make_problem(seed, **CLASSES[name]) for seed in range(6)]
    options = AbsolutePoseOptions(residual=residual, max_iterations=4000, seed=7)
    arrays = [p[0] for p in problems], [p[1] for p in problems], CAMERA
    cpu = estimate_absolute_pose_batch(*arrays, options=options)
    assert_agree(cpu, solve(*arrays, options=options))
    if name != "nothing fits":
        assert all(e.success for e in cpu)  # or there was nothing to compare


@pytest.mark.parametrize("residual", ["ray", "reprojection"])
def test_weights_and_variances_agree_with_the_cpu(solve: Solve, residual: str):
    rng = np.random.default_rng(0)
    problems = [make_problem(s, 300 + 500 * (s % 3), 0.5, 0.01, 0.4) for s in range(6)]
    arrays = [p[0] for p in problems], [p[1] for p in problems], CAMERA
    weights = [rng.uniform(0, 2, len(p[0])) for p in problems]
    weights[0][::5] = 0  # left out
    variances = [rng.uniform(0.5e-4, 2e-4, len(p[0])) for p in problems]
    for extra in (
        {"weights": weights},
        {"variances": variances},
        {"weights": weights, "variances": variances},
    ):
        options = AbsolutePoseOptions(residual=residual)
        cpu = estimate_absolute_pose_batch(*arrays, options=options, **extra)
        assert all(e.success for e in cpu)
        assert_agree(cpu, solve(*arrays, options=options, **extra))


def test_poses_are_true_and_the_covariance_tells_their_error(solve: Solve):
    problems = [make_problem(s, 1100, point_noise=0.02, outliers=0.3) for s in range(24)]
    out = solve(
        [p[0] for p in problems],
        [p[1] for p in problems],
        CAMERA,
        options=AbsolutePoseOptions(residual="ray"),
    )
    errors = [tangent(e.world_from_cam, p[2]) for e, p in zip(out, problems, strict=True)]
    assert np.median([np.linalg.norm(e[3:]) for e in errors]) < 0.01
    nees = [d @ np.linalg.solve(e.covariance, d) for e, d in zip(out, errors, strict=True)]
    assert 3.5 < np.mean(nees) < 9  # 6 is exact; the mean of 24 scatters by 0.7


def test_hopeless_queries_do_not_disturb_others(solve: Solve):
    good = make_problem(1, 400, pixel_noise=1.0, outliers=0.2)
    few = good[0][:3], good[1][:3]
    nan = good[0], np.full_like(good[1], np.nan)
    same = np.repeat(good[0][:1], 50, 0), np.repeat(good[1][:1], 50, 0)
    three = np.repeat(good[0][:3], 20, 0), np.repeat(good[1][:3], 20, 0)
    behind = good[0], 1e9 * good[1]
    empty = np.zeros((0, 2)), np.zeros((0, 3))
    batch = [few, nan, good[:2], same, three, behind, empty, good[:2]]
    options = AbsolutePoseOptions(max_iterations=800)
    arrays = [b[0] for b in batch], [b[1] for b in batch], CAMERA
    cpu = estimate_absolute_pose_batch(*arrays, options=options)
    out = solve(*arrays, options=options)
    assert [e.success for e in out] == [e.success for e in cpu]
    assert out[2].success
    for a in out:
        assert np.isfinite(a.world_from_cam).all()
        np.testing.assert_allclose(out[7].world_from_cam, out[2].world_from_cam, atol=0)


def test_a_long_search_is_the_serial_one(solve: Solve):
    problems = [make_problem(s, 1000, pixel_noise=1.0, outliers=0.87) for s in range(3)]
    options = AbsolutePoseOptions(residual="reprojection")
    arrays = [p[0] for p in problems], [p[1] for p in problems], CAMERA
    cpu = estimate_absolute_pose_batch(*arrays, options=options)
    assert min(e.iterations for e in cpu) > 1500
    assert_agree(cpu, solve(*arrays, options=options))


def test_a_search_among_few_inliers_finds_the_same_pose(solve: Solve):
    """Under 12 % of inliers several bounds on the noise are tried, and rounding may decide a tie."""
    problems = [make_problem(s, 1000, pixel_noise=1.0, outliers=0.93) for s in range(4)]
    options = AbsolutePoseOptions(residual="reprojection")
    arrays = [p[0] for p in problems], [p[1] for p in problems], CAMERA
    cpu = estimate_absolute_pose_batch(*arrays, options=options)
    for a, b in zip(cpu, solve(*arrays, options=options), strict=True):
        assert a.success
        assert b.success
        assert a.iterations == b.iterations
        assert sigmas(a, b) < 0.1


def test_an_emulated_block_gives_the_same_with_any_number_of_threads(emulation_build: Path):
    from cuda_emulation_tools import Emulation

    emulation = Emulation(emulation_build / "libcuda_emulation.so")
    problems = [make_problem(s, 330, pixel_noise=1.0, outliers=0.4) for s in range(3)]
    arrays = [p[0] for p in problems], [p[1] for p in problems], CAMERA
    serial = emulation.solve(*arrays)
    for threads in (2, 5):
        assert_agree(serial, emulation.solve(*arrays, threads=threads))
    # More than fit one part, over two backends.
    many = emulation.solve([arrays[0][0]] * 600, [arrays[1][0]] * 600, CAMERA, backends=2)
    assert {e.world_from_cam.tobytes() for e in many} == {serial[0].world_from_cam.tobytes()}


def test_threads_of_an_emulated_block_do_not_race(emulation_build: Path):
    command = [str(emulation_build / "cuda_emulation_threads")]
    if shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # the thread sanitizer dislikes some address layouts
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    assert done.stdout.count("status 0") >= 6


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_cuda_sources_compile():
    options = ("-DRELOC_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90")
    _solvers(*options, build="cuda_compile", target="reloc_cuda")


def test_a_build_without_cuda_says_how_to_get_it():
    if _native.cuda_built():
        pytest.skip("this build has CUDA")
    assert cuda_devices() == 0
    with pytest.raises(ConfigError, match="RELOC_CUDA=ON"):
        estimate_absolute_pose_batch([], [], CAMERA, device="cuda")


@pytest.mark.skipif(not _native.cuda_built(), reason="a build without RELOC_CUDA=ON")
def test_a_missing_device_is_named():
    with pytest.raises(ConfigError, match="CUDA device"):
        estimate_absolute_pose_batch([], [], CAMERA, device="cuda:77")


def test_what_the_cuda_solver_does_not_do_is_refused():
    check_supported(
        AbsolutePoseOptions(),
        [CAMERA, Camera("SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, 0.0))],
    )
    for distorted in (
        Camera("SIMPLE_RADIAL", 640, 480, (525.0, 319.5, 239.5, -0.1)),
        Camera("OPENCV_FISHEYE", 640, 480, (400.0, 400.0, 319.5, 239.5, 0.0, 0.0, 0.0, 0.0)),
    ):
        with pytest.raises(InputError, match="Undistort"):
            check_supported(AbsolutePoseOptions(), [CAMERA, distorted])


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "", None, 0])
def test_unknown_devices_are_refused(device: Any):
    with pytest.raises(ConfigError, match="device must be"):
        estimate_absolute_pose_batch([], [], CAMERA, device=device)

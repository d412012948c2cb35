"""The C++ library is found by `find_package(reloc)`, and the example program solves a pose with it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EIGEN = [p for p in map(Path, sys.path) if (p / "cmeel.prefix").is_dir()]


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=["build of the module", pytest.param("own build", marks=pytest.mark.long)])
def prefix(request, built_solvers, tmp_path_factory):
    """The installed library."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    prefix = tmp_path_factory.mktemp("prefix")
    if request.param == "build of the module":
        if built_solvers is None:
            pytest.skip("the module was not built in place")
        run("cmake", "--install", built_solvers.parent, "--component", "cpp", "--prefix", prefix)
        return prefix
    # Kept in build/, so that a second run compiles nothing; without what the example does not use.
    build = ROOT / "build" / "cmake_package"
    run("cmake", "-S", ROOT, "-B", build, "-DRELOC_PYTHON=OFF", "-DRELOC_RASTERIZER=OFF",
        "-DRELOC_WIDE_KERNELS=OFF", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
        f"-DPython_EXECUTABLE={sys.executable}")  # fmt: skip
    run("cmake", "--build", build, "-j", "2")
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix


def test_the_example_finds_the_package_and_the_pose(prefix, tmp_path):
    paths = ";".join(map(str, [prefix, *(p / "cmeel.prefix" for p in EIGEN)]))
    run("cmake", "-S", ROOT / "examples" / "cpp", "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={paths}")
    run("cmake", "--build", tmp_path)
    printed = run(tmp_path / "solve_pose")
    inliers = int(re.search(r"(\d+) of 500 matches agree", printed)[1])
    assert 330 <= inliers <= 350, printed
    error, expected, degrees = map(float, re.search(
        r"error ([\d.]+) \(expected ([\d.]+)\), ([\d.]+) degrees", printed).groups())  # fmt: skip
    assert error < 0.02
    assert degrees < 0.2
    assert error < 5 * expected

"""Seeded pose problems with known truth, made from the depth and poses of real frames.

Classes, by name:

* `dense-s{1,2,5}-o{0,30,60,80,90}`: 60x80 scene coordinates of a 640x480 frame. Isotropic Gaussian noise of
  1, 2 or 5 cm whose size varies smoothly over the image; the given share of outliers, half in blobs that
  hold the coordinates of other frames and half uniform in the scene's box.
* `sparse-o{20,50,80,95}`: 500 to 2,000 keypoint matches, 1 px noise, the rest mismatches.
* `rgbd-s2-o{0,60,90}`: the dense classes with camera-frame points from a depth sensor.
* `corr-s2-o{0,30}`: as dense, with noise that is itself smooth over the image (correlated neighbours).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

FOCAL, WIDTH, HEIGHT, STRIDE = 525.505, 640, 480, 8
CENTER = (319.5, 239.5)
DENSE = [f"dense-s{s}-o{o}" for s in (1, 2, 5) for o in (0, 30, 60, 80, 90)]
SPARSE = [f"sparse-o{o}" for o in (20, 50, 80, 95)]
RGBD = [f"rgbd-s2-o{o}" for o in (0, 60, 90)]
CORRELATED = ["corr-s2-o0", "corr-s2-o30"]


@dataclass
class Problem:
    """One problem; `points_cam` only for RGB-D. `world_from_cam` is the exact truth.

    `sigma` is the true noise, for analysis; `weights` and `variances` are what an estimator says.
    """

    points2d: np.ndarray
    points3d: np.ndarray
    world_from_cam: np.ndarray
    is_inlier: np.ndarray
    points_cam: np.ndarray | None = None
    sigma: np.ndarray | None = None
    weights: np.ndarray | None = None
    variances: np.ndarray | None = None


class Frames:
    """Depth (holes filled from the nearest pixel) and poses of one split."""

    def __init__(self, root: Path, step: int = 10, offset: int = 0) -> None:
        import cv2

        self.depth, self.pose = [], []
        for path in sorted((root / "depth").glob("*.png"))[offset::step]:
            stem = path.name.split(".")[0]
            pose = np.loadtxt(root / "poses" / f"{stem}.pose.txt")
            depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float64) / 1000
            nearest = ndimage.distance_transform_edt(
                depth == 0, return_distances=False, return_indices=True
            )
            self.depth.append(depth[tuple(nearest)])
            self.pose.append(pose)

    def __len__(self) -> int:
        return len(self.depth)

    def lift(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """Camera-frame points of pixels (N, 2), at the depth of the nearest whole pixel."""
        x = np.clip(np.rint(pixels[:, 0]).astype(int), 0, WIDTH - 1)
        y = np.clip(np.rint(pixels[:, 1]).astype(int), 0, HEIGHT - 1)
        z = self.depth[index][y, x]
        return np.column_stack([(pixels - CENTER) / FOCAL * z[:, None], z])


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(shape), scale, mode="reflect")
    return (field - field.mean()) / field.std()


def _move(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ pose[:3, :3].T + pose[:3, 3]


def make(name: str, frames: Frames, number: int) -> Problem:
    """Problem `number` of class `name`; the same arguments give the same problem."""
    kind, *_ = name.split("-")
    outliers = int(re.search(r"-o(\d+)", name).group(1)) / 100
    rng = np.random.default_rng([number, *name.encode()])
    index = int(rng.integers(len(frames)))
    pose = frames.pose[index]
    if kind == "sparse":
        n = int(rng.integers(500, 2001))
        pixels = rng.uniform((0, 0), (WIDTH - 1, HEIGHT - 1), (n, 2))
        cam = frames.lift(index, pixels)
        world = _move(pose, cam)
        bad = rng.permutation(n) < round(outliers * n)
        world[bad] = world[rng.integers(0, n, bad.sum())]
        pixels = pixels + rng.standard_normal((n, 2))
        return Problem(pixels, world, pose, ~bad)

    sigma = int(re.search(r"-s(\d+)", name).group(1)) / 100
    rows, cols = HEIGHT // STRIDE, WIDTH // STRIDE
    gy, gx = np.mgrid[0:rows, 0:cols]
    pixels = np.column_stack([gx.ravel() * 8.0 + 4, gy.ravel() * 8.0 + 4])
    cam = frames.lift(index, pixels)
    world = _move(pose, cam)
    n = len(world)
    size = sigma * np.exp(0.5 * _smooth_field(rng, (rows, cols), 10)).ravel()
    if kind == "corr":
        noise = np.column_stack([_smooth_field(rng, (rows, cols), 1.5).ravel() for _ in range(3)])
    else:
        noise = rng.standard_normal((n, 3))
    points = world + size[:, None] * noise

    # Blobs: discs of cells that hold what another frame has in the same cells, each disc from a frame
    # of its own, until half of the outliers are placed.
    bad = np.zeros(n, bool)
    while bad.sum() < round(outliers / 2 * n):
        y, x, radius = rng.uniform(0, rows), rng.uniform(0, cols), rng.uniform(2, 6)
        disc = np.flatnonzero(((gy - y) ** 2 + (gx - x) ** 2).ravel() < radius**2)
        disc = disc[~bad[disc]][: round(outliers / 2 * n) - bad.sum()]
        bad[disc] = True
        source = int(rng.choice(np.delete(np.arange(len(frames)), index)))
        elsewhere = _move(frames.pose[source], frames.lift(source, pixels[disc]))
        points[disc] = elsewhere + size[disc, None] * rng.standard_normal((len(disc), 3))
    blobs = bad.copy()
    rest = np.flatnonzero(~bad)
    loose = rng.choice(rest, round(outliers * n) - blobs.sum(), replace=False)
    bad[loose] = True
    low, high = world.min(0) - 0.5, world.max(0) + 0.5
    points[loose] = rng.uniform(low, high, (len(loose), 3))
    problem = Problem(pixels, points, pose, ~bad, sigma=size)
    if kind == "rgbd":
        z = cam[:, 2:3]
        problem.points_cam = cam * (1 + 0.0025 * z * rng.standard_normal((n, 1)))
    return problem


def pose_error(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Translation in cm and rotation in degrees."""
    cosine = (np.trace(estimate[:3, :3].T @ truth[:3, :3]) - 1) / 2
    # The chord is exact where the arc cosine loses digits.
    chord = np.linalg.norm(estimate[:3, :3] - truth[:3, :3]) / np.sqrt(8)
    angle = 2 * np.arcsin(min(1.0, chord)) if cosine > 0 else np.arccos(np.clip(cosine, -1, 1))
    return 100 * float(np.linalg.norm(estimate[:3, 3] - truth[:3, 3])), float(np.degrees(angle))

"""The picture of `reloc data check`: paths from above, coverage, an epipolar example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.datasets.epipolar import Pair, relative
from reloc_core.geometry import project, skew, unproject
from reloc_core.interfaces import Dataset
from reloc_core.io.files import atomic_write
from reloc_core.types import Float64Array

_TRAIN, _TEST = "#3465a4", "#d9700f"
_WIDEST = 10.0  # tangent of the angle to the optical axis that is drawn, 84 degrees


def draw(
    path: Path,
    train: Dataset,
    test: Dataset | None,
    pairs: Sequence[Pair],
    coverage: tuple[Float64Array, Float64Array] | None,
) -> Path:
    """Draw the picture.

    Args:
        path: PNG file to write; its folder is created.
        train: mapping frames.
        test: queries, or None.
        pairs: matched neighbours; the first with the most matches is shown.
        coverage: distance and angle (deg) of each test frame to its nearest training view.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    rows: Any = figure.subfigures(2, 1, height_ratios=(1.05, 1))
    top, bottom = rows
    left, right = top.subplots(1, 2, width_ratios=(1.5, 1))
    _paths(left, train, test)
    _coverage(right, coverage, "m" if train.unit == "metre" else "scene units")
    _epipolar(bottom, pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")
    return path


def _paths(axes: Any, train: Dataset, test: Dataset | None) -> None:
    """Camera positions and viewing directions, seen along the cameras' mean up direction."""
    axes.set_title("Cameras from above (ticks: viewing direction)", loc="left")
    sets = [(train, _TRAIN, "train")] + ([(test, _TEST, "test")] if test is not None else [])
    posed = [
        (
            np.array([f.world_from_cam for f in d.frames if f.world_from_cam is not None]),
            c,
            label,
            d,
        )
        for d, c, label in sets
    ]
    posed = [entry for entry in posed if len(entry[0])]
    if not posed:
        axes.text(0.5, 0.5, "no poses", ha="center", transform=axes.transAxes)
        return
    everything = np.concatenate([entry[0] for entry in posed])
    basis = _ground(everything)
    span = float(np.ptp(everything[:, :3, 3] @ basis.T, axis=0).max()) or 1.0
    for poses, color, label, dataset in posed:
        xy = poses[:, :3, 3] @ basis.T
        directions = poses[:, :3, 2] @ basis.T * 0.05 * span
        for start, stop in _runs(dataset):
            axes.plot(*xy[start:stop].T, "-", color=color, lw=0.8, alpha=0.5)
        axes.plot(*xy.T, ".", color=color, ms=3, label=f"{label} ({len(xy)})")
        step = max(len(xy) // 60, 1)
        ends = xy + directions
        for a, b in zip(xy[::step], ends[::step], strict=True):
            axes.plot([a[0], b[0]], [a[1], b[1]], "-", color=color, lw=1.2)
    origin = np.array([0.0, 0.0])
    low, high = (everything[:, :3, 3] @ basis.T).min(0), (everything[:, :3, 3] @ basis.T).max(0)
    if np.all(origin > low - span) and np.all(origin < high + span):
        for i, (name, color) in enumerate(zip("xyz", ("#c00", "#080", "#00c"), strict=True)):
            tip = basis[:, i] * 0.12 * span
            axes.plot([0, tip[0]], [0, tip[1]], "-", color=color, lw=2)
            if np.linalg.norm(tip) > 0.03 * span:
                axes.annotate(name, tip, color=color)
    axes.set_aspect("equal", adjustable="datalim")
    unit = "m" if train.unit == "metre" else "scene units"
    axes.set_xlabel(unit)
    axes.set_ylabel(unit)
    axes.legend(loc="best", frameon=False)
    axes.grid(alpha=0.25)


def _ground(poses: Float64Array) -> Float64Array:
    """(2, 3) basis of the plane perpendicular to the cameras' mean up direction."""
    up = -poses[:, :3, 1].mean(0)
    up /= max(float(np.linalg.norm(up)), 1e-9)
    axis = np.eye(3)[int(np.argmin(np.abs(up)))]
    first = axis - up * (axis @ up)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(up, first)])


def _runs(dataset: Dataset) -> list[tuple[int, int]]:
    """Ranges of posed frames that belong to one sequence and may be joined by a line."""
    sequences = [f.sequence for f in dataset.frames if f.world_from_cam is not None]
    cuts = [0, *(i for i in range(1, len(sequences)) if sequences[i] != sequences[i - 1])]
    ends = [*cuts[1:], len(sequences)]
    return [(a, b) for a, b in zip(cuts, ends, strict=True) if sequences[a] is not None]


def _coverage(axes: Any, coverage: tuple[Float64Array, Float64Array] | None, unit: str) -> None:
    axes.set_title("Test frames: nearest training view", loc="left")
    if coverage is None:
        axes.text(0.5, 0.5, "no test frames", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    distance, angle = coverage
    axes.hist(distance, bins=24, color=_TEST, alpha=0.85)
    axes.set_xlabel(f"distance in {unit}")
    axes.set_ylabel("test frames")
    other = axes.twiny()
    other.hist(angle, bins=24, histtype="step", color="#444444", lw=1.3)
    other.set_xlabel("angle in degrees (outline)")


def _epipolar(figure: Any, pairs: Sequence[Pair]) -> None:
    """Matches of one pair, and where the poses say they lie in the second image."""
    if not pairs:
        axes = figure.subplots()
        axes.text(0.5, 0.5, "no matched neighbours", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    pair = max(pairs, key=lambda p: p.pixels.shape[1])
    motion = relative(pair)
    essential = skew(motion[:3, 3]) @ motion[:3, :3]
    axes = figure.subplots(1, 2)
    for ax, query in zip(axes, (pair.first, pair.second), strict=True):
        ax.imshow(query.image)
        ax.set_xlim(-0.5, query.camera.width - 0.5)
        ax.set_ylim(query.camera.height - 0.5, -0.5)
        ax.set_axis_off()
    for ax, query in zip(axes, (pair.first, pair.second), strict=True):
        ax.set_title(query.name, loc="left", fontsize=9)
    figure.suptitle(
        "Matches must lie on the lines that poses and intrinsics predict", x=0.01, ha="left"
    )
    count = pair.pixels.shape[1]
    rng = np.random.default_rng(0)
    for k, i in enumerate(rng.choice(count, min(12, count), replace=False)):
        color = f"C{k % 10}"
        axes[0].plot(*pair.pixels[0, i], "o", ms=6, mfc="none", mec=color, mew=1.8)
        line = _line(pair, essential @ pair.rays[0, i])
        axes[1].plot(line[:, 0], line[:, 1], "-", color=color, lw=1)
        axes[1].plot(*pair.pixels[1, i], "o", ms=6, mfc="none", mec=color, mew=1.8)


def _line(pair: Pair, line: Float64Array) -> Float64Array:
    """(N, 2) pixels along an epipolar line given in normalised coordinates, lens distortion applied."""
    camera = pair.second.camera
    normal = line[:2] / max(float(np.linalg.norm(line[:2])), 1e-12)
    foot = -normal * line[2] / max(float(np.linalg.norm(line[:2])), 1e-12)
    width, height = camera.width - 1.0, camera.height - 1.0
    corners = unproject(camera, np.array([(0, 0), (width, 0), (0, height), (width, height)]))
    reach = np.linalg.norm(corners[:, :2], axis=1)
    # Lens models fold back beyond the field of view: points there must not be projected. Corners of a
    # fisheye's image may see nothing, or what lies beside the camera.
    reach = reach[np.isfinite(reach) & (reach < _WIDEST)]
    field = 1.02 * float(reach.max()) if len(reach) else _WIDEST
    t = np.linspace(-field, field, 300)
    points = foot + t[:, None] * np.array([-normal[1], normal[0]])
    points[np.linalg.norm(points, axis=1) > field] = np.nan
    pixels, _ = project(camera, np.column_stack([points, np.ones(len(t))]))
    inside = (pixels >= -1).all(1) & (pixels <= [camera.width, camera.height]).all(1)
    return np.where(np.asarray(inside)[:, None], pixels, np.nan)

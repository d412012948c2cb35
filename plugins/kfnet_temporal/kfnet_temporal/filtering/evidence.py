"""Evidence of an estimator as a state of the filter, and the state as evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kfnet_temporal.filtering.kalman import State
from reloc_core.errors import InputError
from reloc_core.types import Correspondences, Evidence, Float64Array


def measured_state(
    evidence: Evidence,
    grid_pixels: Float64Array,
    shape: tuple[int, int],
    origin: Float64Array,
    default_std: float,
) -> State:
    """Evidence as a state on a grid; cells without a scene coordinate know nothing.

    Where the evidence lies on another grid, every cell takes the coordinate whose pixel is nearest to
    its centre among those within it.

    Args:
        evidence: dense correspondences.
        grid_pixels: (h * w, 2) centres of the grid's cells in pixels.
        shape: h, w.
        origin: (3,) subtracted from the coordinates.
        default_std: metres; where the evidence has no variances.

    Raises:
        InputError: the evidence is no dense scene coordinates.
    """
    if not isinstance(evidence, Correspondences) or evidence.kind != "dense":
        raise InputError(
            "The measurement of kfnet_temporal must give dense scene coordinates; this one gives "
            "other evidence. Choose another estimator.measurement.name."
        )
    count = shape[0] * shape[1]
    points = np.asarray(evidence.points3d, np.float64) - origin
    variances = (
        np.full(len(points), default_std**2)
        if evidence.variances is None
        else np.asarray(evidence.variances, np.float64)
    )
    mean, variance = np.zeros((count, 3)), np.full(count, np.inf)
    good = np.isfinite(points).all(1) & np.isfinite(variances) & (variances > 0)
    if len(points) == count and np.allclose(evidence.points2d, grid_pixels, atol=0.01):
        cells = np.arange(count)
        take = np.flatnonzero(good)
    else:
        cells, take = _assign(np.asarray(evidence.points2d, np.float64), grid_pixels, shape, good)
    mean[cells[take]] = points[take]
    variance[cells[take]] = variances[take]
    return State(
        torch.from_numpy(mean).float().T.reshape(3, *shape),
        torch.from_numpy(variance).float().reshape(shape),
    )


def _assign(
    pixels: Float64Array, centres: Float64Array, shape: tuple[int, int], good: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cell (N,) of each pixel, and the indices of the pixels that win their cell."""
    rows, columns = shape
    grid = centres.reshape(rows, columns, 2)
    step = np.array([
        grid[0, 1, 0] - grid[0, 0, 0] if columns > 1 else 1.0,
        grid[1, 0, 1] - grid[0, 0, 1] if rows > 1 else 1.0,
    ])  # fmt: skip
    place = (pixels - grid[0, 0]) / step
    nearest = np.rint(np.nan_to_num(place, nan=-1e6)).astype(np.int64)
    x, y = nearest.T
    cells = y * columns + x
    usable = good & (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    distance = np.square(place - nearest).sum(1)
    # The nearest comes last, so it stays when written over.
    take = np.flatnonzero(usable)
    take = take[np.argsort(-distance[take], kind="stable")]
    return np.where(usable, cells, 0), take


def correspondences(
    posterior: State, pixels: Float64Array, origin: Float64Array, factor: float,
    redundancy: float = 1.0,
) -> Correspondences:  # fmt: skip
    """Evidence of the cells that are known.

    Args:
        posterior: relative to the origin.
        pixels: (h * w, 2) centres of the cells.
        origin: (3,) metres.
        factor: on the variances.
        redundancy: of the cells.
    """
    known = posterior.known.flatten().cpu().numpy()
    points = posterior.mean.flatten(1).T.cpu().double().numpy() + origin
    variances = posterior.variance.flatten().cpu().double().numpy() * factor
    shape = (int(posterior.variance.shape[0]), int(posterior.variance.shape[1]))
    return Correspondences(
        points2d=pixels[known],
        points3d=points[known],
        variances=variances[known],
        grid_shape=shape if bool(known.all()) else None,
        redundancy=redundancy,
    )


def inflate(state: State, factor: float) -> State:
    """A state with its variance multiplied."""
    return replace(state, variance=state.variance * factor)

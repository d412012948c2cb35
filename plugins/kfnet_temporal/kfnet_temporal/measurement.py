"""Any dense estimator as the filter's measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kfnet_temporal.config import MeasurementConfig
from kfnet_temporal.kalman import State
from kfnet_temporal.labels import Labels
from reloc_core.config import typed_config
from reloc_core.errors import ConfigError, InputError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import MapWriter
from reloc_core.registry import default_registry
from reloc_core.types import Correspondences, Evidence, Float64Array, Frame, Query


@dataclass
class InnerRun:
    """A run for a component within a component: its own part of the map.

    Attributes:
        labels: of the outer component, for inner ones that learn from the same; None for none.
    """

    runtime: Runtime
    map: MapWriter
    extra_datasets: Sequence[Dataset]
    outer: Run
    labels: Labels | None = None

    def progress(self, title: str, total: int) -> Any:
        """See `Run.progress`."""
        return self.outer.progress(title, total)

    def log(self, event: str, **values: Any) -> None:
        """See `Run.log`."""
        self.outer.log(event, **values)


class Subset(Dataset):
    """Some frames of a dataset."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)
        self._frames = [dataset.frames[i] for i in self.indices]

    @property
    def name(self) -> str:
        """Name of the whole."""
        return self.dataset.name

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata of the chosen frames."""
        return self._frames

    @property
    def has_depth(self) -> bool:
        """As the whole."""
        return self.dataset.has_depth

    @property
    def unit(self) -> str:
        """As the whole."""
        return self.dataset.unit

    def __getitem__(self, index: int) -> Query:
        """See `Dataset`."""
        return self.dataset[self.indices[index]]


def build_measurement(config: MeasurementConfig) -> Estimator:
    """The estimator that a config names.

    Raises:
        ConfigError: unknown, of another kind of evidence, or this plugin's filter itself.
    """
    component = default_registry().get("estimator", config.name)
    if component.name == "kfnet_temporal":
        raise ConfigError("estimator.measurement.name must be a per-frame estimator.")
    if component.produces != "Correspondences":
        raise ConfigError(
            f"estimator.measurement.name={config.name} produces {component.produces}; the filter "
            "needs scene coordinates (Correspondences)."
        )
    built: Estimator = component.load()(typed_config(component, config.options))
    return built


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

"""Components within a component: the measurement that the filter's map contains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kfnet_temporal.common.labels import Labels
from kfnet_temporal.config import MeasurementConfig
from reloc_core.config import typed_config
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import MapWriter
from reloc_core.registry import default_registry
from reloc_core.types import Float64Array, Query, ScenePoints


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

    def note(self, text: str) -> None:
        """See `Run.note`."""
        self.outer.note(text)

    def show(self, title: str, points: Callable[[], ScenePoints]) -> None:
        """See `Run.show`."""
        self.outer.show(title, points)


class SubsetLabels:
    """The labels of a `reloc_core.datasets.subset.Subset`, which are numbered as it is."""

    def __init__(self, labels: Labels, indices: Sequence[int]) -> None:
        self.labels, self.indices = labels, list(indices)

    def at(self, index: int, query: Query, pixels: Float64Array) -> Float64Array:
        """See `Labels.at`."""
        return self.labels.at(self.indices[index], query, pixels)


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

"""reloc: plugin-based camera relocalization.

The core defines what flows through a pipeline (`types`), the four interfaces (`interfaces`), the
registry of components, typed configuration, maps and runs. Methods are plugins. Importing this
package imports neither PyTorch nor Hydra.
"""

import importlib
from typing import TYPE_CHECKING, Any

from reloc_core.errors import (
    ConfigError,
    DataError,
    InputError,
    MapError,
    PluginError,
    RelocError,
)
from reloc_core.hooks import hookimpl
from reloc_core.interfaces import Dataset, Estimator, Refiner, Run, Runtime, Solver
from reloc_core.registry import Component, Registry
from reloc_core.types import (
    Camera,
    Correspondences,
    Evidence,
    Frame,
    Localization,
    PosePrior,
    Query,
    RelativePoses,
    ScenePoints,
    Status,
)

if TYPE_CHECKING:
    from reloc_core.engine import Evaluation, evaluate, train
    from reloc_core.localizer import Localizer
    from reloc_core.pipeline import Pipeline
    from reloc_core.tracker import Tracker, TrackerConfig

__version__ = "0.1.0"

__all__ = [
    "Camera",
    "Component",
    "ConfigError",
    "Correspondences",
    "DataError",
    "Dataset",
    "Estimator",
    "Evaluation",
    "Evidence",
    "Frame",
    "InputError",
    "Localization",
    "Localizer",
    "MapError",
    "Pipeline",
    "PluginError",
    "PosePrior",
    "Query",
    "Refiner",
    "Registry",
    "RelativePoses",
    "RelocError",
    "Run",
    "Runtime",
    "ScenePoints",
    "Solver",
    "Status",
    "Tracker",
    "TrackerConfig",
    "__version__",
    "evaluate",
    "hookimpl",
    "train",
]


_LATE = {
    "Evaluation": "reloc_core.engine",
    "Localizer": "reloc_core.localizer",
    "Pipeline": "reloc_core.pipeline",
    "Tracker": "reloc_core.tracker",
    "TrackerConfig": "reloc_core.tracker",
    "evaluate": "reloc_core.engine",
    "train": "reloc_core.engine",
}


def __getattr__(name: str) -> Any:
    # They need more than the types do, so they are imported when they are asked for.
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

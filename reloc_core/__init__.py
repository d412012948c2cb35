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
    from reloc_core.localizer import Localizer

__version__ = "0.1.0"

__all__ = [
    "Camera",
    "Component",
    "ConfigError",
    "Correspondences",
    "DataError",
    "Dataset",
    "Estimator",
    "Evidence",
    "Frame",
    "InputError",
    "Localization",
    "Localizer",
    "MapError",
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
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    # Needs more than the types do, so it is imported when it is asked for.
    if name == "Localizer":
        return importlib.import_module("reloc_core.localizer").Localizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

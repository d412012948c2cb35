"""reloc: plugin-based camera relocalization.

The core defines what flows through a pipeline (`types`), the four interfaces (`interfaces`), the
registry of components, typed configuration, maps and runs. Methods are plugins. Importing this
package imports neither PyTorch nor Hydra.
"""

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
    Status,
)

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
    "Solver",
    "Status",
    "__version__",
    "hookimpl",
]

"""Conformance suites: subclass one in a test module, name the component, and pytest does the rest.

    from reloc_core.testing import EstimatorConformance

    class TestMyMethod(EstimatorConformance):
        component = "my_method"

A suite holds a component to what its interface promises and the framework relies upon: it composes,
recovers known poses, repeats itself with the same seed, gives the same in batches, survives bad
input, comes back from its map unchanged and writes nowhere else. The fixtures that the suites use
come with an installed reloc by themselves (a pytest plugin).
"""

from reloc_core.datasets.subset import Subset
from reloc_core.testing.dataset import DatasetConformance
from reloc_core.testing.estimator import EstimatorConformance
from reloc_core.testing.refiner import RefinerConformance, RefinerContract
from reloc_core.testing.solver import SolverConformance
from reloc_core.testing.tools import RecordedRun, room, start_run, write_ace

__all__ = [
    "DatasetConformance",
    "EstimatorConformance",
    "RecordedRun",
    "RefinerConformance",
    "RefinerContract",
    "SolverConformance",
    "Subset",
    "room",
    "start_run",
    "write_ace",
]

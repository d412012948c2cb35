"""Fixtures of the conformance suites; pytest loads this from an installed reloc by itself.

Imports nothing of reloc until a suite runs, as every pytest run of the environment loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from reloc_core.testing.estimator import TrainedEstimator
    from reloc_core.testing.refiner import TrainedRefiner

pytest.register_assert_rewrite("reloc_core.testing")


@pytest.fixture(scope="class")
def reloc_trained_estimator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TrainedEstimator:
    """The estimator of an `EstimatorConformance` class, trained once."""
    trained: TrainedEstimator = request.cls.train(tmp_path_factory.mktemp("estimator"))
    return trained


@pytest.fixture(scope="class")
def reloc_trained_refiner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TrainedRefiner:
    """The refiner of a `RefinerContract` class, ready to refine."""
    trained: TrainedRefiner = request.cls.train(tmp_path_factory.mktemp("refiner"))
    return trained

"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nefes_refine.config import NefesConfig, RefineConfig
from nefes_refine.weights import DFNET, NEFES, VGG16
from reloc_core.hooks import hookimpl
from reloc_core.registry import Component, Registry

_PAPER = (
    "Chen et al., Neural Refinement for Absolute Pose Regression with Feature Synthesis, CVPR 2024; "
    "Chen et al., DFNet: Enhance Absolute Pose Regression with Direct Feature Matching, ECCV 2022"
)


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The regressor, which trains the field too, and the refiner."""
    registry.add(
        Component(
            interface="estimator",
            name="nefes_regressor",
            target="nefes_refine.estimator:NefesEstimator",
            config=NefesConfig,
            produces="PosePrior",
            solver="prior",
            refiners=("nefes_refine",),
            needs_map=True,
            reads_depth=False,
            summary="absolute pose regression with views synthesised by a feature field",
            paper=_PAPER,
            licence="Apache-2.0",
            published={
                "7Scenes SfM, mean of medians": "6.34 cm / 1.92 deg (DFNet, from its result files)",
                "Cambridge, mean of medians": "119.3 cm / 2.90 deg (DFNet, from its result files)",
            },
            weights=(NEFES, DFNET, VGG16),
            importer="nefes_refine.published.importing:import_weights",
        )
    )
    registry.add(
        Component(
            interface="refiner",
            name="nefes_refine",
            target="nefes_refine.refine.refiner:NefesRefiner",
            config=RefineConfig,
            reads_maps_of=("nefes_regressor",),
            needs_map=True,
            reads_depth=False,
            summary="aligns the query's features with those a field renders; any estimator's pose",
            paper=_PAPER,
            licence="Apache-2.0",
            published={
                "7Scenes SfM, mean of medians": "2.31 cm / 0.79 deg (DFNet + NeFeS50, result files)",
                "Cambridge, mean of medians": "35.2 cm / 0.77 deg (DFNet + NeFeS50, result files)",
            },
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets lie."""
    return [Path(__file__).parent / "conf"]

"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kfnet_temporal.config import TemporalConfig
from kfnet_temporal.measurement_config import MemoryConfig, NarrowConfig, ScoordnetConfig
from kfnet_temporal.published.weights import KFNET
from reloc_core.hooks import hookimpl
from reloc_core.registry import Component, Registry

_PAPER = (
    "Zhou et al., KFNet: Learning Temporal Camera Relocalization using Kalman Filtering, CVPR 2020"
)


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The estimators."""
    registry.add(
        Component(
            interface="estimator",
            name="kfnet_temporal",
            target="kfnet_temporal.estimator:TemporalEstimator",
            config=TemporalConfig,
            produces="Correspondences",
            solver="pnp",
            refiners=("pose_filter",),
            needs_map=True,
            requires=("sequence",),
            summary="Kalman filter over the scene coordinates of a video, on any dense estimator",
            paper=_PAPER,
            licence="Apache-2.0 (published weights: MIT)",
            published={
                "7Scenes, mean of per-frame coordinate errors": "16.8 cm (SCoordNet), 15.3 cm (KFNet)"
            },
            weights=(KFNET,),
        )
    )
    registry.add(
        Component(
            interface="estimator",
            name="kfnet_memory",
            target="kfnet_temporal.memory.estimator:MemoryEstimator",
            config=MemoryConfig,
            produces="Correspondences",
            solver="pnp",
            needs_map=True,
            reads_depth=False,
            summary="dense scene coordinates with variances by attention to RGB-D key frames",
            paper="per-frame measurement for the filter, on features of Potje et al., XFeat, CVPR 2024",
            licence="Apache-2.0",
        )
    )
    registry.add(
        Component(
            interface="estimator",
            name="kfnet_narrow",
            target="kfnet_temporal.compact.measurement:NarrowEstimator",
            config=NarrowConfig,
            produces="Correspondences",
            solver="pnp",
            needs_map=True,
            reads_depth=False,
            summary="a narrow SCoordNet on frozen features: dense scene coordinates with variances",
            paper=_PAPER,
            licence="Apache-2.0",
        )
    )
    registry.add(
        Component(
            interface="estimator",
            name="kfnet_scoordnet",
            target="kfnet_temporal.published.measurement:ScoordnetEstimator",
            config=ScoordnetConfig,
            produces="Correspondences",
            solver="pnp",
            needs_map=True,
            summary="SCoordNet: dense scene coordinates with variances by a convolutional network",
            paper=_PAPER,
            licence="Apache-2.0 (published weights: MIT)",
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets lie."""
    return [Path(__file__).parent / "conf"]

"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gnn_relpose.compact.config import CompactConfig
from gnn_relpose.matched.config import MatchedConfig
from gnn_relpose.published.config import PublishedConfig
from gnn_relpose.weights import NETVLAD, PUBLISHED, RESNET34
from reloc_core.hooks import hookimpl
from reloc_core.registry import Component, Registry

_PAPER = (
    "Turkoglu et al., Visual Camera Re-Localization Using Graph Neural Networks and Relative Pose "
    "Supervision (RelPose-GNN), 3DV 2021"
)


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The estimators."""
    registry.add(
        Component(
            interface="estimator",
            name="gnn_regressor",
            target="gnn_relpose.compact.estimator:CompactEstimator",
            config=CompactConfig,
            produces="RelativePoses",
            solver="averaging",
            needs_map=True,
            reads_depth=False,
            summary="retrieved references and a graph network that regresses poses relative to them",
            paper=f"{_PAPER}, on features of Potje et al., XFeat, CVPR 2024",
            licence="Apache-2.0",
        )
    )
    registry.add(
        Component(
            interface="estimator",
            name="gnn_matched",
            aliases=("gnn_relpose",),
            target="gnn_relpose.matched.estimator:MatchedEstimator",
            config=MatchedConfig,
            produces="RelativePoses",
            solver="averaging",
            needs_map=True,
            reads_depth=False,
            summary="retrieved references, matched cells and their depth, weighed by a graph network",
            paper=f"after {_PAPER}, on features of Potje et al., XFeat, CVPR 2024",
            licence="Apache-2.0",
        )
    )
    registry.add(
        Component(
            interface="estimator",
            name="gnn_published",
            target="gnn_relpose.published.estimator:PublishedEstimator",
            config=PublishedConfig,
            produces="RelativePoses",
            solver="single_reference",
            needs_map=True,
            reads_depth=False,
            summary="RelPose-GNN as published: ResNet-34 nodes, trained end to end; wants a GPU",
            paper=_PAPER,
            licence="Apache-2.0 (official checkpoints: non-commercial)",
            published={
                "7Scenes, mean of medians": "0.16 or 0.17 m / 5.2 deg (trained on all seven; two "
                "printed revisions)",
            },
            weights=(*PUBLISHED, RESNET34, NETVLAD),
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets lie."""
    return [Path(__file__).parent / "conf"]

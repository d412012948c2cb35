"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reloc_core.hooks import hookimpl
from reloc_core.registry import Component, Registry
from reloc_core.weights import XFEAT
from scr_glace.config import GlaceConfig
from scr_glace.official.weights import ACE_HEADS, ENCODER, GLACE_HEAD, R2FORMER


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The estimator."""
    registry.add(
        Component(
            interface="estimator",
            name="scr_glace",
            target="scr_glace.estimator:GlaceEstimator",
            config=GlaceConfig,
            produces="Correspondences",
            solver="pnp",
            needs_map=True,
            reads_depth=False,
            summary="scene coordinate regression with a global encoding; the map is a small MLP",
            paper="Wang et al., GLACE: Global Local Accelerated Coordinate Encoding, CVPR 2024; "
            "Brachmann et al., Accelerated Coordinate Encoding (ACE), CVPR 2023",
            licence="Apache-2.0 (official ACE encoder and heads: non-commercial)",
            published={
                "7Scenes SfM, mean of medians": "1.17 cm / 0.36 deg (GLACE, from the LoGS paper's table), "
                "1.10 / 0.34 (ACE, from STDLoc's)",
                "7Scenes SfM, 5cm_5deg": "95.6 % (GLACE, as listed by GS-CPR), 97.1 % (ACE, by STDLoc)",
                "Cambridge, mean of medians": "13.7 cm / 0.28 deg (GLACE, by STDLoc), "
                "25 / 0.4 (ACE, by NeRFMatch)",
            },
            weights=(XFEAT, ENCODER, R2FORMER, ACE_HEADS, GLACE_HEAD),
            importer="scr_glace.official.exchange:import_weights",
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets lie."""
    return [Path(__file__).parent / "conf"]

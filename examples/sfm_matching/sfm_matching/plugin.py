"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reloc_core import Component, Registry, hookimpl
from sfm_matching.config import MatchingConfig


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The estimator."""
    registry.add(
        Component(
            interface="estimator",
            name="sfm_matching",
            target="sfm_matching.estimator:MatchingEstimator",
            config=MatchingConfig,
            summary="keypoint matching with the most similar mapped images and their triangulated points",
            produces="Correspondences",
            solver="pnp",
            needs_map=True,
            paper="Sattler et al., Efficient & Effective Prioritized Matching for Large-Scale "
            "Image-Based Localization, TPAMI 2017; Sarlin et al., From Coarse to Fine: Robust "
            "Hierarchical Localization at Large Scale, CVPR 2019; features: Potje et al., XFeat, "
            "CVPR 2024",
            licence="Apache-2.0",
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets are."""
    return [Path(__file__).parent / "conf"]

"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from landmarks.config import LandmarkConfig
from landmarks.softmax.config import SoftmaxConfig
from reloc_core.hooks import hookimpl
from reloc_core.registry import Component, Registry
from reloc_core.weights import XFEAT


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The estimator."""
    component = Component(
        interface="estimator",
        name="landmarks",
        target="landmarks.estimator:LandmarkEstimator",
        config=LandmarkConfig,
        produces="Correspondences",
        solver="pnp",
        needs_map=True,
        reads_depth=False,
        summary="key points matched with triangulated landmarks, guided by a first pose; maps any place in "
        "a minute on a CPU",
        paper="features: Potje et al., XFeat, CVPR 2024; Lowe, SIFT, IJCV 2004",
        licence="Apache-2.0",
        weights=(XFEAT,),
    )
    registry.add(component)
    # The name in maps that were made before the estimator had a plugin of its own.
    registry.add(
        replace(
            component,
            name="scr_landmarks",
            target="landmarks.softmax.estimator:SoftmaxLandmarks",
            config=SoftmaxConfig,
            summary="the softmax of landmarks alone, with all its options; use landmarks",
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets lie."""
    return [Path(__file__).parent / "conf"]

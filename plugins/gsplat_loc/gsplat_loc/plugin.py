"""Entry point of the plugin: what it offers, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gsplat_loc.config import GsplatConfig, RefineConfig
from reloc_core.errors import PluginError
from reloc_core.hooks import hookimpl
from reloc_core.registry import Component, Registry
from reloc_core.weights import XFEAT

_PAPER = (
    "Sidorov et al., GSplatLoc: Grounding Keypoint Descriptors into 3D Gaussian Splatting for "
    "Improved Visual Localization, arXiv 2409.16502"
)


@hookimpl
def reloc_register_components(registry: Registry) -> None:
    """The estimator and the refiner."""
    registry.add(
        Component(
            interface="estimator",
            name="gsplat_loc",
            target="gsplat_loc.estimator:GsplatEstimator",
            config=GsplatConfig,
            produces="Correspondences",
            solver="pnp",
            refiners=("gsplat_loc",),
            needs_map=True,
            reads_depth=False,
            summary="XFeat key points against a 3D Gaussian feature field",
            paper=_PAPER,
            licence="Apache-2.0",
            published={
                "7Scenes SfM, mean of medians": "4.7 cm / 0.94 deg (coarse), 2.53 / 0.68 (base), "
                "1.40 / 0.37 (fine); GSplatLoc, table I",
                "Cambridge, mean of medians of four scenes": "29 cm / 0.62 deg (coarse), "
                "17 / 0.53 (base), 16 / 0.48 (fine); GSplatLoc",
            },
            weights=(XFEAT,),
            importer="gsplat_loc.exchange:import_field",
        )
    )
    registry.add(
        Component(
            interface="refiner",
            name="gsplat_loc",
            target="gsplat_loc.refiner:GsplatRefiner",
            config=RefineConfig,
            reads_maps_of=("gsplat_loc",),
            needs_map=True,
            reads_depth=False,
            summary="render at the pose and align colours, or match rendered descriptors",
            paper=_PAPER,
            licence="Apache-2.0",
        )
    )


@hookimpl
def reloc_config_dirs() -> Sequence[Path]:
    """Where the presets lie."""
    return [Path(__file__).parent / "conf"]


@hookimpl
def reloc_health_checks() -> dict[str, str]:
    """Where there is a GPU: whether fields can be rendered on it."""
    import torch

    from reloc_core.rendering.cuda import renderer

    if not torch.cuda.is_available():
        return {}
    try:
        renderer()
    except PluginError as error:
        return {"rendering on CUDA": str(error)}
    return {"rendering on CUDA": "ok"}

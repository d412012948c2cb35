"""What a map of `nefes_regressor` holds, ready for use: field, feature network and regressor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nefes_refine.compact.posenet import PoseNet
from nefes_refine.config import FieldConfig, NefesConfig, ViewConfig
from nefes_refine.field.compact_field import CompactField
from nefes_refine.field.features import FeatureNetwork, XFeatFeatures
from nefes_refine.field.rendering import Field
from nefes_refine.field.scene import Scene
from nefes_refine.refine.mapped_views import MappedViews
from nefes_refine.refine.novelty import Novelty
from nefes_refine.regressor import Regressor
from reloc_core.errors import MapError
from reloc_core.interfaces import Run, Runtime
from reloc_core.maps import Map

_FP16 = ("field.grid.table", "field.occupancy", "field.guide")


@dataclass
class Bundle:
    """Everything of a map.

    Attributes:
        config: with the view, features, field and regressor that were trained.
        field: the field.
        features: network whose features the field renders.
        regressor: the pose regressor.
        covariance: (6, 6) of the regressor's errors.
        views: the training images in short.
        device: where they are.
        novelty: what is usual for images that the regressor has not seen; None in older maps.
    """

    config: NefesConfig
    field: Field
    features: FeatureNetwork
    regressor: Regressor
    covariance: Tensor
    views: MappedViews
    device: torch.device
    novelty: Novelty | None = None

    @property
    def shared_network(self) -> bool:
        """Whether the features need no weights beside the regressor's and those of an installed package."""
        return self.features.network is self.regressor or self.config.regressor.name == "posenet"

    @property
    def scene(self) -> Scene:
        """The field's volume and frame."""
        return self.field.scene


def build_field(config: FieldConfig, scene: Scene, channels: int) -> Field:
    """A new field of the configured kind."""
    if config.name == "hashgrid":
        return CompactField(config, scene, channels)
    from nefes_refine.published.mlp_field import PaperField

    return PaperField(config, scene, channels)


def save_bundle(run: Run, bundle: Bundle) -> None:
    """Write the map. The hash table is rounded to fp16; networks keep fp32."""
    tensors = {f"field.{k}": v for k, v in bundle.field.state_dict().items()}
    tensors |= {f"regressor.{k}": v for k, v in bundle.regressor.state_dict().items()}
    if not bundle.shared_network:
        tensors |= {f"feature_network.{k}": v for k, v in bundle.features.state().items()}
    tensors["covariance"] = bundle.covariance
    tensors["views.descriptors"] = bundle.views.descriptors
    tensors["views.poses"] = bundle.views.poses
    tensors |= {k: tensors[k].half() for k in _FP16 if k in tensors}
    run.map.save(
        "nefes",
        tensors,
        {
            "scene": bundle.scene.metadata(),
            "field": asdict(bundle.config.field),
            "view": asdict(bundle.config.view),
            "regressor": bundle.config.regressor.name,
            "novelty": bundle.novelty.metadata() if bundle.novelty else None,
            "views": {"cost": bundle.views.cost, "spread": bundle.views.spread},
            "features": {
                "name": bundle.features.name, "channels": bundle.features.channels,
                "identity": bundle.features.identity,
            },
        },
    )  # fmt: skip


def load_bundle(scene_map: Map, runtime: Runtime) -> Bundle:
    """Read a map.

    Raises:
        MapError: it holds no field of this version, or one of another feature network.
    """
    tensors, metadata = scene_map.tensors("nefes")
    device = torch.device(runtime.device)
    config = NefesConfig()
    try:
        config.field = FieldConfig(**metadata["field"])
        config.view = ViewConfig(**metadata["view"])
        config.features, config.regressor.name = metadata["features"]["name"], metadata["regressor"]
        scene = Scene.from_metadata(metadata["scene"])
        field = build_field(config.field, scene, metadata["features"]["channels"])
        field.load_state_dict(_part(tensors, "field."))
        regressor, features = _networks(config, tensors, metadata, runtime)
        covariance = tensors["covariance"].double()
        views = MappedViews(
            tensors["views.descriptors"], tensors["views.poses"].double(),
            float(metadata["views"]["cost"]), float(metadata["views"]["spread"]),
        )  # fmt: skip
        known = metadata.get("novelty")
        novelty = Novelty(**known) if known else None
    except (KeyError, TypeError, RuntimeError) as error:
        raise MapError(
            f"{scene_map.path} holds no feature field of this version ({str(error)[:200]}). "
            "Train it again."
        ) from error
    if features.identity != metadata["features"]["identity"]:
        raise MapError(
            f"{scene_map.path}: the field was trained for other weights of the feature network "
            f"'{features.name}' than those installed. Install the version that made the map, or train "
            "again."
        )
    field = field.to(device).eval().requires_grad_(False)
    return Bundle(config, field, features, regressor.to(device), covariance, views, device, novelty)


def _networks(
    config: NefesConfig, tensors: dict[str, Tensor], metadata: dict[str, Any], runtime: Runtime
) -> tuple[Regressor, FeatureNetwork]:
    """The regressor and the feature network of a map."""
    state = _part(tensors, "regressor.")
    if config.regressor.name == "posenet":
        network = PoseNet(metadata["features"]["channels"])
        network.load_state_dict(state)
        return network.eval().requires_grad_(False), XFeatFeatures(runtime.device)
    from nefes_refine.published.dfnet import DFNet, DFNetFeatures

    def dfnet(tensors: dict[str, Tensor]) -> DFNet:
        network = DFNet()
        network.load_state_dict(tensors)
        return network.to(runtime.device).eval().requires_grad_(False)

    regressor = dfnet(state)
    regressor.scene = Scene.from_metadata(metadata["scene"])
    other = _part(tensors, "feature_network.")
    seeing = dfnet(other) if other else regressor
    return regressor, DFNetFeatures(seeing, config.view.stride, config.view.grid)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        k[len(prefix) :]: v.float() if v.is_floating_point() else v
        for k, v in tensors.items()
        if k.startswith(prefix)
    }

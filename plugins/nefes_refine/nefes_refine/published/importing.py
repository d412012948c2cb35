"""Fields that NeFeS trained, with their DFNets, as maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nefes_refine.config import NefesConfig, check
from nefes_refine.published.checkpoints import import_field
from nefes_refine.published.dfnet import DFNetFeatures, load_dfnet
from nefes_refine.published.mlp_field import PaperField
from nefes_refine.published.recipe import (
    feature_dfnet,
    field_of,
    finished,
    mapping_images,
    with_focal,
)
from reloc_core.errors import ConfigError
from reloc_core.interfaces import Dataset, Run


def import_weights(file: Path, config: NefesConfig, dataset: Dataset, run: Run) -> None:
    """Write the map of a published field in the place of a training; see `Component.importer`.

    The grid of rays and the histogram are those of the official programs, whatever the configuration has.

    Args:
        file: the official `nefes.tar`.
        config: with the official networks (`experiment=nefes_refine/paper`), the regressor's checkpoint
            (`regressor.weights`), that of the features where it is another one (`feature_weights`), and
            the scene's constants.
        dataset: mapping images of the scene, in the world of its constants. Some of them measure errors;
            the official networks may have been trained on these, so errors are too small.
        run: whose map is written.

    Raises:
        ConfigError: networks, checkpoints or constants are not given.
        MapError: a file holds other weights.
        DataError: too few images.
    """
    if config.field.name != "mlp" or config.features != "dfnet":
        raise ConfigError("Official fields have other networks: add experiment=nefes_refine/paper.")
    if not config.regressor.weights:
        raise ConfigError(
            "An official field refines an official DFNet: add "
            "estimator.regressor.weights=apr/DFNet_SCENE/checkpoint-SCENE.pt."
        )
    if not (config.scene.constants or config.scene.world_setup):
        raise ConfigError(
            "Official weights belong to the frames of their scene: add, for example, "
            "estimator.scene.constants=7scenes_sfm/chess."
        )
    view, options = replace(config.view, grid="published"), config.field
    options = replace(options, histogram_of_image=True)
    config = with_focal(replace(config, view=view, field=options))
    check(config)
    device = torch.device(run.runtime.device)
    network = load_dfnet(config.regressor.weights).to(device).eval().requires_grad_(False)
    other = config.feature_weights
    seeing = feature_dfnet(other).to(device) if other else network
    features = DFNetFeatures(seeing, view.stride, view.grid)
    _, _, images, unseen = mapping_images(config, dataset, features, run)
    field = field_of(config, dataset, images, network, features.channels, run)
    assert isinstance(field, PaperField)
    import_field(field, file)
    finished(config, dataset, field, network, features, images, unseen, run)
    run.map.details.update(images=len(images), imported=True)

"""Fields that other programs trained, as maps."""

from __future__ import annotations

import copy
from pathlib import Path

from gsplat_loc.config import GsplatConfig
from gsplat_loc.estimator import GsplatEstimator
from reloc_core.interfaces import Dataset, Run


def import_field(file: Path, config: GsplatConfig, dataset: Dataset, run: Run) -> None:
    """Make a map of a file of 3D Gaussians (see `gsplat_loc.field.ply`) without training it further.

    Anchors come from the dataset's images; so do descriptors, unless the file brings them as
    `semantic_0..63` of XFeat, as GSplatLoc writes them.

    Args:
        file: the PLY file, in the world of the dataset's poses.
        config: of the map; where to start from and how long to train are not looked at.
        dataset: posed images of the same scene.
        run: where the map goes.

    Raises:
        DataError: no file of Gaussians, or the images do not see them.
        MapError: values that are not finite.
    """
    config = copy.deepcopy(config)
    config.init.source, config.init.path = "ply", str(file)
    config.train.iterations = 0
    GsplatEstimator(config).fit(dataset, run)

"""A second small estimator for the test of the matrix, and presets of both."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from toy import ToyEstimator

from reloc_core import Component, Correspondences, Query, hookimpl
from reloc_core.geometry import lift, transform


@dataclass
class ToyPointsConfig:
    """Options as those of the toy estimator."""

    size: int = 16
    stop_at: int = -1


class ToyPoints(ToyEstimator):
    """The pose of the most similar mapped image, said by points before its camera."""

    produces = Correspondences

    def estimate(self, query: Query) -> Correspondences:
        pose = super().estimate(query).world_from_cam
        generator = np.random.default_rng(0)
        camera = query.camera
        pixels = generator.uniform(0, (camera.width - 1, camera.height - 1), (60, 2))
        points = transform(pose, lift(camera, pixels, generator.uniform(1, 4, 60)))
        return Correspondences(pixels, points, kind="sparse")


@hookimpl
def reloc_register_components(registry) -> None:
    registry.add(
        Component(
            interface="estimator",
            name="toy_points",
            target="matrix_tools:ToyPoints",
            config=ToyPointsConfig,
            summary="the same as points",
            produces="Correspondences",
            needs_map=True,
        )
    )


@hookimpl
def reloc_config_dirs():
    return [Path(__file__).parent / "matrix_conf"]

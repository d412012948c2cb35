"""The published step counts of each scene (the public code's step values)."""

from __future__ import annotations

from dataclasses import replace

from kfnet_temporal.config import TemporalConfig
from reloc_core.errors import ConfigError, did_you_mean

STEP_VALUES = {
    "chess": 100_000, "fire": 30_000, "heads": 60_000, "office": 100_000, "pumpkin": 100_000,
    "redkitchen": 100_000, "stairs": 100_000,
}  # fmt: skip
"""Steps in which the learning rate of stages 1 and 3 is halved, by scene of 7-Scenes."""
_FIRST = 5


def scheduled(config: TemporalConfig) -> TemporalConfig:
    """The config with the step counts of its `published_scene`; itself where that is "".

    Stage 1 takes five step values and stage 3 one; stage 2 learns from all scenes together and has the
    same schedule for each.

    Raises:
        ConfigError: no such scene.
    """
    scene = config.published_scene
    if not scene:
        return config
    if scene not in STEP_VALUES:
        raise ConfigError(
            f"estimator.published_scene is '{scene}'.{did_you_mean(scene, STEP_VALUES)} Leave it out for a "
            "scene without published step counts."
        )
    steps = STEP_VALUES[scene]
    options = {"iterations": _FIRST * steps, "halve_every": steps}
    measurement = replace(config.measurement, options={**config.measurement.options, **options})
    joint = replace(config.joint, iterations=steps, halve_every=steps)
    return replace(config, measurement=measurement, joint=joint)

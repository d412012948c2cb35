"""The presets for CPUs."""

import dataclasses

from scr_glace.config import GlaceConfig, check

from reloc_core.composition import compose
from reloc_core.config import default_registry, typed_config


def estimator(*options):
    cfg = compose("train", [*options, "dataset=synthetic", "map_dir=M"]).estimator
    found = typed_config(default_registry().get("estimator", "scr_glace"), cfg)
    assert isinstance(found, GlaceConfig)
    check(found)
    return found


def test_the_preset_for_rooms_is_the_compact_one_with_another_schedule():
    compact = estimator("experiment=scr_glace/compact")
    rooms = estimator("experiment=scr_glace/rooms")
    assert rooms.optimizer.learning_rate_max == compact.optimizer.learning_rate_max / 2
    assert rooms.train.iterations == 2 * compact.train.iterations
    same = dataclasses.replace(
        rooms,
        optimizer=dataclasses.replace(
            rooms.optimizer, learning_rate_max=compact.optimizer.learning_rate_max
        ),
        train=dataclasses.replace(rooms.train, iterations=compact.train.iterations),
    )
    assert same == compact
    chosen = estimator("experiment=scr_glace/rooms", "estimator.train.iterations=7")
    assert chosen.train.iterations == 7

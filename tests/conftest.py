import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from reloc_core import hookimpl, registry
from reloc_core.cli.main import main
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.hooks import ENTRY_POINT_GROUP


def _with_toy():
    installed = registry._entry_points()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            registry,
            "_entry_points",
            lambda: [*installed, EntryPoint("toy", "toy", ENTRY_POINT_GROUP)],
        )
        registry.default_registry.cache_clear()
        yield
    registry.default_registry.cache_clear()


@pytest.fixture
def toy_plugin():
    """The installed plugins plus tests/toy.py, as if it were installed."""
    yield from _with_toy()


@pytest.fixture(scope="module")
def toy_plugin_of_module():
    """The same for all tests of a module."""
    yield from _with_toy()


@pytest.fixture(scope="class")
def toy_plugin_of_class():
    """The same for all tests of a class."""
    yield from _with_toy()


@pytest.fixture
def toy_map(toy_plugin, ace_scene, tmp_path):
    """A map of `ace_scene` by the plugin of tests/toy.py."""
    arguments = ["train", "estimator=toy", "dataset=ace", f"dataset.root={ace_scene}"]
    assert main([*arguments, f"map_dir={tmp_path}/map", f"output_dir={tmp_path}/run"]) == 0
    return tmp_path / "map"


@pytest.fixture
def observer(toy_plugin):
    """A plugin that keeps what its hooks hear of in `events`."""

    class Observer:
        def __init__(self):
            self.events = []

        @hookimpl
        def reloc_run_started(self, verb, config):
            self.events.append(("started", verb, config))

        @hookimpl
        def reloc_query_localized(self, query, localization):
            self.events.append(("query", query.name, localization))

        @hookimpl
        def reloc_run_finished(self, verb, result):
            self.events.append(("finished", verb, result))

    found = Observer()
    registry.default_registry().manager.register(found)
    return found


@pytest.fixture(scope="session")
def ace_scene(tmp_path_factory):
    """A small synthetic room written in the ACE layout: train (12 frames) and test (4)."""
    from reloc_core.datasets.synthetic import SyntheticDataset

    root = tmp_path_factory.mktemp("scene") / "room"
    for split, count in (("train", 12), ("test", 4)):
        dataset = SyntheticDataset(
            SyntheticConfig(split=split, width=160, height=120, train_frames=12, test_frames=4)
        )
        for folder in ("rgb", "poses", "calibration"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            query = dataset[i]
            stem = f"seq-01-frame-{i:06d}"
            cv2.imwrite(str(root / split / "rgb" / f"{stem}.color.png"), query.image[..., ::-1])
            np.savetxt(root / split / "poses" / f"{stem}.pose.txt", query.world_from_cam)
            (root / split / "calibration" / f"{stem}.calibration.txt").write_text(
                f"{query.camera.fx}\n"
            )
    return root

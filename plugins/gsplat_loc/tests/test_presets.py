"""Presets compose, and the plugin stays free of PyTorch until it is used."""

import subprocess
import sys

import pytest

from reloc_core.composition import compose
from reloc_core.config import plain, typed_config
from reloc_core.registry import default_registry


@pytest.mark.parametrize("preset", ["compact", "paper"])
def test_presets_compose(preset):
    from gsplat_loc.config import RefineConfig, check, check_refine

    overrides = [f"experiment=gsplat_loc/{preset}", "dataset=synthetic", "map_dir=unused"]
    cfg = compose("train", overrides)
    registry = default_registry()
    check(typed_config(registry.get("estimator", "gsplat_loc"), cfg.estimator))
    for choice in plain(cfg.refiners) or []:
        assert choice.pop("name") == "gsplat_loc"
        check_refine(RefineConfig(**choice))


def test_the_entry_point_imports_no_torch():
    code = "import sys, gsplat_loc.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

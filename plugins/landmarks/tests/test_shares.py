"""Mapping in shares: the map is the one that a single process makes."""

import pytest

import reloc_core
from reloc_core import ConfigError, MapError
from reloc_core.calibration import CalibrationConfig
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.runs import Reporter

OPTIONS = {"keypoints": {"kind": "sift", "mapping": 400}, "readout": "matching"}


@pytest.fixture(scope="module")
def room():
    return SyntheticDataset(SyntheticConfig(width=160, height=120, train_frames=40))


def train(room, folder, **options):
    return reloc_core.train(
        room, folder, {"name": "landmarks", **OPTIONS}, threads=1, reporter=Reporter(quiet=True),
        calibration=CalibrationConfig(enabled=False), **options,
    )  # fmt: skip


def test_any_number_of_shares_makes_the_same_map(room, tmp_path):
    whole = train(room, tmp_path / "whole")
    # Described and matched; a killed share is a missing one, and is made in the end by the last run.
    for share in ((2, 3), (1, 3), (3, 3), (1, 3), (2, 3)):
        assert train(room, tmp_path / "shared", share=share) is None
    with pytest.raises(MapError, match="interrupted run with another dataset or seed"):
        train(room, tmp_path / "shared", share=(3, 3), seed=7)
    shared = train(room, tmp_path / "shared")
    for name in ("landmarks", "frames"):
        one, other = ((m.path / f"{name}.safetensors").read_bytes() for m in (whole, shared))
        assert one == other
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shared", "whole"]


def test_what_cannot_be_shared_is_refused(room, tmp_path):
    with pytest.raises(ConfigError, match="from 1 to N, got 3/2"):
        train(room, tmp_path / "map", share=(3, 2))
    with pytest.raises(ConfigError, match="'kfnet_temporal' cannot be shared"):
        reloc_core.train(room, tmp_path / "map", "kfnet_temporal", share=(1, 2), threads=1)
    assert not list(tmp_path.iterdir())

"""The importer behind `reloc weights`: a bundle with the official names and shapes, written here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from kfnet_temporal.published.oflownet import OFlowNet
from kfnet_temporal.published.weights import KFNET, check_bundle
from test_tf_checkpoint import variables, write_bundle

from reloc_core.errors import MapError
from reloc_core.io.weights import get_weights


def test_an_official_folder_is_taken_over(tmp_path):
    source = tmp_path / "download" / "fire" / "OFlowNet"
    source.mkdir(parents=True)
    write_bundle(source / "model.ckpt-500000", variables(OFlowNet(), "Temporal"))
    (source / "checkpoint").write_text("text")
    (found,) = get_weights(KFNET, tmp_path / "weights", source=str(tmp_path / "download"))
    assert found.content == "KFNet checkpoint: oflownet"
    assert found.path.name == "model.ckpt-500000.index"
    data = found.path.with_name("model.ckpt-500000.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[4000] ^= 1
    data.write_bytes(content)
    with pytest.raises(MapError, match="checksum"):
        check_bundle(found.path)


def test_other_bundles_and_pickles_are_refused(tmp_path):
    write_bundle(tmp_path / "other", {"global_step": np.array(1, np.int64)})
    with pytest.raises(MapError, match="neither of ScoreNet, Temporal"):
        check_bundle(tmp_path / "other.index")
    torch.save({"a": torch.zeros(1)}, tmp_path / "torch.index")
    with pytest.raises(MapError, match="no readable"):
        check_bundle(tmp_path / "torch.index")

"""The covisibility graph of `benchmarks/scr_encodings.py`."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from reloc_core.testing import Subset, room

PATH = Path(__file__).parents[2] / "benchmarks" / "scr_encodings.py"


@pytest.fixture(scope="module")
def encodings():
    pytest.importorskip("scr_glace")
    spec = importlib.util.spec_from_file_location("reloc_scr_encodings", PATH)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_images_overlap_with_themselves_most(encodings):
    views = Subset(room(frames=12), [0, 1, 6])
    found = encodings.overlaps(views, np.random.default_rng(0))
    assert np.allclose(found, found.T)
    # A pixel that falls on the border may be lost to rounding; two equal lines of sight count as one.
    assert (np.diag(found) > 0.99).all()
    assert (found <= np.diag(found)[:, None] + 1e-9).all()
    assert found[0, 1] > found[0, 2]


def test_nodes_near_in_the_graph_have_similar_vectors(encodings):
    # Two chains that share no image: neighbours are alike, ends of a chain less, chains not at all.
    chain = np.exp(-np.abs(np.subtract.outer(np.arange(20), np.arange(20))))
    weights = np.kron(np.eye(2), chain)
    vectors = encodings.embedding(weights, 8)
    assert vectors.shape == (40, 8)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    near = np.mean([likeness[i, i + 1] for i in range(19)])
    assert near > likeness[0, 19] + 0.2
    assert np.abs(likeness[:20, 20:]).max() < 0.1

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from reloc_core.errors import ConfigError, InputError  # noqa: E402
from reloc_core.features.retrieval import NetVlad, RetrievalIndex  # noqa: E402


def units(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_netvlad_is_the_triple_loop():
    local, words = units(2, 30, 8), units(4, 8, seed=1)
    layer = NetVlad(words, units(100, 8, seed=2))
    x, w, c = local.double().numpy(), layer.assignment.double().numpy(), words.double().numpy()
    for image in range(2):
        v = np.zeros((4, 8))
        for n in range(30):
            logits = w @ x[image, n]
            share = np.exp(logits - logits.max())
            share /= share.sum()
            for k in range(4):
                v[k] += share[k] * (x[image, n] - c[k])
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        expected = v.ravel() / np.linalg.norm(v)
        assert np.allclose(layer(local)[image].numpy(), expected, atol=1e-5)


def test_netvlad_winner_has_a_hundred_times_the_weight_of_the_runner_up():
    words, sample = units(16, 64), units(2000, 64, seed=1)
    logits = (sample @ NetVlad(words, sample).assignment.T).topk(2, dim=1).values
    assert float((logits[:, 0] - logits[:, 1]).mean()) == pytest.approx(np.log(100), rel=1e-4)


def test_netvlad_of_constant_and_empty_images():
    layer = NetVlad(units(4, 8))
    constant = layer(units(1, 1, 8).expand(1, 20, 8))
    assert constant.isfinite().all()
    assert float(constant.norm()) == pytest.approx(1, abs=1e-5)
    assert not layer(torch.zeros(1, 20, 8)).any()
    padded = torch.cat([units(1, 10, 8), torch.zeros(1, 5, 8)], 1)
    assert torch.allclose(layer(padded), layer(units(1, 10, 8)), atol=1e-6)


def test_exact_search_is_brute_force_and_keeps_order_of_equals():
    base, queries = units(500, 16), units(7, 16, seed=1)
    found, similarity = RetrievalIndex(base.half()).search(queries, 9)
    expected = np.argsort(-(queries.numpy() @ base.half().float().numpy().T), axis=1, kind="stable")
    assert np.array_equal(found, expected[:, :9])
    assert np.all(np.diff(similarity, axis=1) <= 0)
    copies = units(1, 16).expand(5, 16)
    assert RetrievalIndex(copies).search(units(1, 16), 10)[0].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("kind", "recall"), [("flat", 1.0), ("ivf", 0.9), ("hnsw", 0.9), ("pq", 0.5), ("ivfpq", 0.5)]
)
def test_faiss_finds_what_the_exact_index_finds(kind, recall):
    pytest.importorskip("faiss")
    centers = units(50, 32, seed=1)[torch.arange(4000) % 50]
    base = F.normalize(centers + 0.1 * units(4000, 32), dim=-1)
    queries = F.normalize(base[::200] + 0.02 * units(20, 32, seed=2), dim=-1)
    exact, likeness = RetrievalIndex(base).search(queries, 10)
    found, similarity = RetrievalIndex(base, kind, probes=32, code_bytes=16).search(queries, 10)
    np.testing.assert_allclose(similarity, likeness, atol=0.02)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)]
    assert np.mean(shared) >= recall


def test_bad_input(monkeypatch):
    with pytest.raises(ConfigError, match="exact, flat"):
        RetrievalIndex(units(3, 4), "tree")
    with pytest.raises(InputError, match="at least one"):
        RetrievalIndex(torch.zeros(0, 4))

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("reloc_core.features.retrieval.importlib.import_module", missing)
    with pytest.raises(ConfigError, match="reloc\\[retrieval\\]"):
        RetrievalIndex(units(3, 4), "flat")

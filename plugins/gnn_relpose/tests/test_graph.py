"""Topology, aggregation, thinning."""

import sys
import types

import numpy as np
import pytest
import torch
from gnn_relpose.shared.config import GraphConfig
from gnn_relpose.shared.layers import ChannelAttention, GnnLayer
from gnn_relpose.shared.scatter import (
    scatter_mean,
    scatter_sum,
    torch_scatter_module,
)
from gnn_relpose.shared.selection import pose_distances, spaced, spread, thin
from gnn_relpose.shared.topology import batch_edges, fully_connected, nearest_edges

from reloc_core.geometry import so3_exp


def test_edges_of_eight_nodes_are_the_published_table():
    edges = fully_connected(8)
    assert edges.shape == (2, 56)
    into = (edges[1] == 0).nonzero()[:, 0]
    assert into.tolist() == [28, 35, 41, 46, 50, 53, 55]
    assert edges[0, into].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_batches_of_different_sizes_do_not_mix():
    edges, graph = batch_edges([3, 5, 1])
    assert edges.shape[1] == 6 + 20
    assert torch.equal(graph[edges[0]], graph[edges[1]])
    assert graph.tolist() == [0] * 3 + [1] * 5 + [2]


def test_nearest_edges_are_a_brute_force_search():
    features, graph = torch.randn(13, 4), torch.tensor([0] * 8 + [1] * 3 + [2] * 2)
    edges = nearest_edges(features, graph, 4)
    for node in range(13):
        others = [o for o in range(13) if graph[o] == graph[node] and o != node]
        others.sort(key=lambda o: float((features[o] - features[node]).norm()))
        assert edges[0, edges[1] == node].tolist() == others[:4]


def loop_mean(source, index, size):
    result = np.zeros((size, source.shape[1]))
    for node in range(size):
        rows = source[index == node]
        if len(rows):
            result[node] = rows.mean(0)
    return result


def fake_torch_scatter():
    """`torch_scatter.scatter` by its documentation, as a loop."""

    def scatter(src, index, dim, dim_size, reduce):
        assert dim == 0
        result = torch.zeros(dim_size, *src.shape[1:], dtype=src.dtype)
        for row, node in zip(src, index.tolist(), strict=True):
            result[node] += row
        if reduce == "mean":
            count = torch.tensor([max(int((index == n).sum()), 1) for n in range(dim_size)])
            result /= count[:, None]
        return result

    module = types.ModuleType("torch_scatter")
    module.scatter = scatter
    return module


@pytest.mark.parametrize("backend", ["native", "torch_scatter"])
def test_aggregation_is_a_loop_and_isolated_nodes_are_zero(backend, monkeypatch):
    if backend == "torch_scatter" and torch_scatter_module() is None:
        monkeypatch.setitem(sys.modules, "torch_scatter", fake_torch_scatter())
    source, index = torch.randn(40, 6, dtype=torch.float64), torch.randint(0, 7, (40,))
    found = scatter_mean(source, index, 9, backend)
    assert np.allclose(found.numpy(), loop_mean(source.numpy(), index.numpy(), 9))
    assert not found[7:].any()
    total = scatter_sum(source, index, 9, backend)
    assert torch.allclose(total.sum(0), source.sum(0))


def test_both_backends_give_the_layer_the_same_gradients(monkeypatch):
    if torch_scatter_module() is None:
        monkeypatch.setitem(sys.modules, "torch_scatter", fake_torch_scatter())
    torch.manual_seed(0)
    layer = GnnLayer(16, "native").double()
    nodes, edges = torch.randn(8, 16).double(), torch.randn(56, 16).double()
    index, gradients = fully_connected(8), []
    for backend in ("native", "auto"):
        layer.backend = backend
        layer.zero_grad()
        new_nodes, new_edges = layer(nodes, edges, index)
        (new_nodes.square().sum() + new_edges.square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in layer.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-10)


def test_attention_mixes_channels_of_one_message_only():
    torch.manual_seed(0)
    block = ChannelAttention(16)
    message = torch.randn(3, 16)
    changed = message.clone()
    changed[1] += 1
    assert torch.equal(block(message)[[0, 2]], block(changed)[[0, 2]])
    g, theta, phi = (layer(message[0]) for layer in (block.g, block.theta, block.phi))
    y = torch.softmax(torch.outer(phi, theta), dim=1) @ g
    assert torch.allclose(block(message)[0], message[0] + block.W(y), atol=1e-6)


def test_published_thinning_has_the_published_ranks():
    options, rng = GraphConfig(7, 5, 0.5, True), np.random.default_rng(0)
    ranking = np.arange(400)
    ranks = np.stack([thin(ranking, options, rng) for _ in range(10_000)]) + 1
    # Survivors have ranks of about 2 k, starts are uniform in 0 .. 4.
    assert np.allclose(ranks.mean(0), [6, 16, 26, 36, 46, 56, 66], atol=0.4)
    assert np.mean(ranks[:, 0] == 1) == pytest.approx(0.1, abs=0.02)


def test_small_databases_give_all_they_have():
    rng = np.random.default_rng(0)
    for size in (1, 3, 7):
        chosen = thin(np.arange(size), GraphConfig(7, 5, 0.5, True), rng)
        assert sorted(chosen) == list(range(size))
    kept = thin(np.arange(9), GraphConfig(7, 5, 0.5, True), rng)
    assert len(kept) == 7
    assert np.all(np.diff(kept) > 0)  # best first


def test_spacing_skips_near_duplicates():
    poses = np.repeat(np.eye(4)[None], 6, 0)
    poses[:, 0, 3] = [0, 0.01, 0.02, 0.5, 0.51, 1.0]
    chosen = spaced(np.arange(6), poses, 2.0, 0.1, 7)
    assert chosen.tolist() == [0, 3, 5]
    turned = poses.copy()
    turned[1, :3, :3] = so3_exp([0, 0.2, 0])
    assert pose_distances(turned[0], turned[1:2], 2.0)[0] == pytest.approx(0.2 + 0.005)
    # Identical references: one, and the others only fill up.
    same = np.repeat(np.eye(4)[None], 6, 0)
    assert spaced(np.arange(6), same, 2.0, 0.1, 7).tolist() == [0]
    options = GraphConfig(4, 1, 0, False, 0.1)
    chosen = thin(np.arange(6), options, np.random.default_rng(0), same, 2.0)
    assert chosen.tolist() == [0, 1, 2, 3]


def test_spread_views_are_far_apart():
    centers = np.array([[0.0, 0, 0], [0.1, 0, 0], [1, 0, 0], [0.9, 0, 0], [0, 1, 0]])
    assert set(spread(centers, np.arange(1, 5), 0, 2)) == {2, 4}
    assert len(spread(np.zeros((5, 3)), np.arange(1, 5), 0, 3)) == 0

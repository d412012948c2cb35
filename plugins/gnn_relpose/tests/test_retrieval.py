"""The published retrieval: layout of its file, the layer in NumPy, and its place in a map."""

import numpy as np
import pytest
import torch
from gnn_relpose.published.config import PublishedConfig
from gnn_relpose.published.estimator import PublishedEstimator
from gnn_relpose.published.retrieval import VggNetVlad, published_input, read_netvlad
from gnn_relpose.weights import check_netvlad

from reloc_core.errors import MapError
from reloc_core.interfaces import Runtime


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As released: `state_dict` with torchvision's numbers of layers, a convolution and the centres."""
    torch.manual_seed(0)
    network = VggNetVlad()
    with torch.no_grad():
        network.pool.centroids.normal_()
    path = tmp_path_factory.mktemp("weights") / "netvlad_vgg16.tar"
    torch.save({"state_dict": network.state_dict(), "epoch": 30}, path)
    return path


def test_layout_is_the_released_one(file):
    state = read_netvlad(file)
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert shapes["pool.conv.weight"] == (64, 512, 1, 1)
    assert shapes["pool.centroids"] == (64, 512)
    convolutions = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert {k for k in shapes if k.startswith("encoder.")} == {
        f"encoder.{n}.{part}" for n in convolutions for part in ("weight", "bias")
    }
    assert "64 centres" in check_netvlad(file)


def test_other_files_are_refused(tmp_path):
    torch.save({"state_dict": {"encoder.0.weight": torch.zeros(1)}}, tmp_path / "x.tar")
    with pytest.raises(MapError, match="NetVLAD"):
        read_netvlad(tmp_path / "x.tar")


def test_descriptors_are_their_numpy_evaluation(file):
    network = VggNetVlad()
    network.load_state_dict(read_netvlad(file))
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    shown = published_input(image)
    assert shown.shape == (1, 3, 192, 256)
    with torch.no_grad():
        maps = network.encoder(shown)[0].numpy()
        found = network.vlad()(network(shown))[0].numpy()
    assert maps.shape == (512, 12, 16)
    assert maps.min() == 0  # the activation after the last convolution is kept
    local = maps.reshape(512, -1).T
    local = local / np.linalg.norm(local, axis=1, keepdims=True)
    weight = network.pool.conv.weight.detach().numpy()[:, :, 0, 0]
    centres = network.pool.centroids.detach().numpy()
    rows = np.zeros((64, 512))
    for x in local:
        share = np.exp(weight @ x - (weight @ x).max())
        rows += (share / share.sum())[:, None] * (x - centres)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found, rows.ravel() / np.linalg.norm(rows), atol=1e-5)


def test_a_map_brings_its_retrieval(file, tmp_path, make_walls, start_run):
    walls = make_walls(6)
    config = PublishedConfig(height=32, retrieval_weights=str(file))
    config.network.channels, config.graph.neighbours = 16, 3
    config.train.epochs, config.train.batch_size = 1, 2
    run = start_run(tmp_path / "map", config, walls, component="gnn_published")
    estimator = PublishedEstimator(config)
    estimator.fit(walls, run)
    query = walls[2].without_ground_truth()
    loaded = PublishedEstimator(config)
    loaded.load(run.map.finish(), Runtime(threads=1, seed=1))
    one, two = (e.retrieval.describe(query.image) for e in (estimator, loaded))
    assert one.shape == (1, 32768)
    assert torch.allclose(one, two, atol=2e-2)  # weights are stored in half precision
    assert len(loaded.estimate(query).world_from_ref) == 3

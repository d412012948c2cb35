"""RelPose-GNN as published: sizes, checkpoints, files, and a run of the estimator."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from gnn_relpose.published.config import PublishedConfig
from gnn_relpose.published.estimator import PublishedEstimator
from gnn_relpose.published.exchange import (
    RetrievalGraph,
    export_predictions,
    read_graph,
    read_graphs,
    write_graph,
    write_graphs,
    write_predictions,
)
from gnn_relpose.published.network import (
    PublishedNetwork,
    load_checkpoint,
    load_node_weights,
)
from gnn_relpose.published.resnet import ResNet34
from gnn_relpose.shared.topology import fully_connected

from reloc_core.errors import DataError, MapError
from reloc_core.geometry import so3_exp
from reloc_core.interfaces import Runtime


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        network, small = PublishedNetwork(2048), PublishedNetwork(1024)
    assert sum(p.numel() for p in network.parameters()) == 74_805_836
    assert sum(p.numel() for p in network.gnn1.parameters()) == 44_055_296
    assert sum(p.numel() for p in small.parameters()) == 34_938_060
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert len(shapes) == 248
    assert sum(k.startswith("feature_extractor.") for k in shapes) == 218
    assert shapes["gnn1.edge_model.edge_mlp.0.weight"] == (2048, 6144)
    assert shapes["gnn1.mlp_updating.2.weight"] == (2048, 2048)
    assert shapes["gnn1.att.theta.weight"] == (256, 2048)
    assert shapes["fc_wpqr_R.bias"] == (3,)
    assert sum(p.numel() for p in ResNet34(1000).parameters()) == 21_797_672  # torchvision's


def test_resnet_is_torchvisions():
    models = pytest.importorskip("torchvision.models")
    theirs, ours = models.resnet34(weights=None, num_classes=10).eval(), ResNet34(10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 85)
    assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def official_file(path, network):
    state = dict(network.state_dict())
    # Files of 7-Scenes hold a second module that is never called.
    state |= {k.replace("gnn1", "gnn2"): v for k, v in state.items() if k.startswith("gnn1.")}
    torch.save(
        {"epoch": 39, "model_state_dict": state, "optim_state_dict": {"state": {}, "param_groups": []},
         "criterion_state_dict": {"sax": torch.zeros(1)}}, path)  # fmt: skip


def test_official_checkpoints_load_by_name(tmp_path):
    torch.manual_seed(0)
    source, target = PublishedNetwork(64), PublishedNetwork(64)
    official_file(tmp_path / "a.pth.tar", source)
    load_checkpoint(target, tmp_path / "a.pth.tar")
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    with pytest.raises(MapError, match="channels=64"):
        load_checkpoint(PublishedNetwork(32), tmp_path / "a.pth.tar")


def test_other_files_are_refused(tmp_path):
    torch.save({"model_state_dict": {"weight": torch.zeros(1)}}, tmp_path / "b.pth.tar")
    with pytest.raises(MapError, match=r"proj_edge\.bias"):
        load_checkpoint(PublishedNetwork(32), tmp_path / "b.pth.tar")
    (tmp_path / "c.pth.tar").write_bytes(pickle.dumps(Unwelcome()))
    with pytest.raises(MapError):
        load_checkpoint(PublishedNetwork(32), tmp_path / "c.pth.tar")


class Unwelcome:
    def __reduce__(self):
        return (pytest.fail, ("code from a file was run",))


def test_node_weights_replace_all_but_the_last_layer(tmp_path):
    imagenet, network = ResNet34(1000), PublishedNetwork(32)
    before = network.feature_extractor.fc.weight.clone()
    torch.save(imagenet.state_dict(), tmp_path / "resnet34.pth")
    load_node_weights(network, tmp_path / "resnet34.pth")
    assert torch.equal(
        network.feature_extractor.layer4[2].conv2.weight, imagenet.layer4[2].conv2.weight
    )
    assert torch.equal(network.feature_extractor.fc.weight, before)


def test_last_node_update_does_not_matter_and_batches_do_not_mix():
    torch.manual_seed(1)
    network = PublishedNetwork(32, recursions=1)
    nodes, index = torch.randn(8, 32), fully_connected(8)
    graph = torch.zeros(8, dtype=torch.long)
    alone, _ = network.relative(nodes, index, graph, False)
    with torch.no_grad():
        network.gnn1.mlp_updating[2].weight.add_(1)
    assert torch.equal(alone, network.relative(nodes, index, graph, False)[0])
    network = PublishedNetwork(32, recursions=3)
    alone, _ = network.relative(nodes, index, graph, False)
    both = torch.cat([nodes, torch.randn(8, 32)])
    double = torch.cat([index, index + 8], 1)
    found, _ = network.relative(both, double, torch.cat([graph, graph + 1]), False)
    assert torch.allclose(found[:56], alone, atol=1e-5)


def test_dropout_at_test_time_averages_to_the_plain_output():
    torch.manual_seed(2)
    network = PublishedNetwork(32)
    nodes, index, graph = torch.randn(8, 32), fully_connected(8), torch.zeros(8, dtype=torch.long)
    with torch.no_grad():
        plain, _ = network.relative(nodes, index, graph, False)
        runs = torch.stack([network.relative(nodes, index, graph, True)[0] for _ in range(200)])
    error = runs.std(0) / 200**0.5
    assert not torch.equal(runs[0], runs[1])
    assert ((runs.mean(0) - plain).abs() < 5 * error + 1e-6).all()


def poses(n, seed=0):
    rng = np.random.default_rng(seed)
    result = np.repeat(np.eye(4)[None], n, 0)
    result[:, :3, :3] = so3_exp(rng.normal(0, 0.6, (n, 3)))
    result[:, :3, 3] = rng.normal(0, 1, (n, 3))
    return result


def graph(seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(8, 6, generator=g)
    edges = fully_connected(8)
    return RetrievalGraph(
        torch.rand(8, 3 * 8 * 12, generator=g), y, edges, y[edges[1]] - y[edges[0]]
    )


def same(a, b):
    return all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("x", "y", "edge_index", "edge_attr")
    )


def test_graph_archives_round_trip_in_order(tmp_path):
    graphs = [graph(i) for i in range(12)]
    write_graphs(tmp_path / "chess_fc8_sp5_test.tar", graphs)
    again = list(read_graphs(tmp_path / "chess_fc8_sp5_test.tar"))
    assert len(again) == 12
    assert all(same(a, b) for a, b in zip(graphs, again, strict=True))
    assert again[0].images(8).shape == (8, 3, 8, 12)
    with tarfile.open(tmp_path / "chess_fc8_sp5_test.tar") as archive:
        assert archive.getnames()[3] == "chess_fc8_sp5_test/processed/data_000003.pt"
        archive.extractall(tmp_path / "x", filter="data")
    # Names without padding are ordered by number, not by letter.
    folder = tmp_path / "x" / "chess_fc8_sp5_test" / "processed"
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"data_{number}.pt")
    assert all(same(a, b) for a, b in zip(graphs, read_graphs(folder.parent), strict=True))


def test_graph_files_name_the_classes_of_pytorch_geometric():
    content = io.BytesIO()
    write_graph(content, graph())
    assert b"torch_geometric.data.data" in content.getvalue()
    assert b"gnn_relpose" not in content.getvalue()


def test_damaged_and_foreign_graph_files_are_refused(tmp_path):
    with pytest.raises(DataError):
        read_graph(io.BytesIO(b"nonsense"))
    unwelcome = io.BytesIO()
    torch.save(Unwelcome(), unwelcome)
    unwelcome.seek(0)
    with pytest.raises(DataError):
        read_graph(unwelcome)
    with pytest.raises(DataError, match="no readable archive"):
        list(read_graphs(tmp_path / "absent.tar"))
    with pytest.raises(DataError, match="holds no"):
        list(read_graphs(tmp_path))


def test_predictions_have_the_fields_and_the_name_of_the_original(tmp_path):
    truth = poses(5)
    estimated = truth.copy()
    estimated[:, 0, 3] += 0.2
    estimated[:, :3, :3] = truth[:, :3, :3] @ so3_exp([0, 0, np.radians(3.04)])
    path = write_predictions(tmp_path, "multi_39_chess", "abcde", estimated, truth)
    assert path.name == "multi_39_chess__0.20_3.0.npz"
    with np.load(path) as file:
        assert set(file) == {"rel_path", "abs_t", "abs_q", "targ_t", "targ_q"}
        assert file["abs_q"].shape == (5, 4)
        assert list(file["rel_path"]) == list("abcde")
        cosine = np.abs((file["abs_q"] * file["targ_q"]).sum(-1))
    assert np.degrees(2 * np.arccos(cosine)) == pytest.approx(3.04, abs=1e-3)
    with pytest.raises(DataError, match="no output directory"):
        export_predictions(tmp_path, None, tmp_path, "x")


def test_estimator_trains_and_localizes(tmp_path, make_walls, start_run):
    walls = make_walls(8)
    config = PublishedConfig(height=32, resolution=64)
    config.network.channels = 16
    config.graph.neighbours = 3
    config.retrieval.clusters = 2
    config.train.epochs, config.train.batch_size = 1, 2
    config.train.edge_dropout, config.train.color_jitter = 0.5, 0.5
    run = start_run(tmp_path / "map", config, walls, component="gnn_published")
    estimator = PublishedEstimator(config)
    estimator.fit(walls, run)
    query = walls[2].without_ground_truth()
    evidence = estimator.estimate(query)
    assert len(evidence.world_from_ref) == 3
    loaded = PublishedEstimator(config)
    loaded.load(run.map.finish(), Runtime(threads=1, seed=1))
    again = loaded.estimate(query)
    # Node vectors are stored in half precision.
    assert evidence.names == again.names
    assert np.allclose(evidence.ref_from_cam, again.ref_from_cam, atol=2e-2)
    other = PublishedConfig(height=32, resolution=64)
    other.network.channels = 32
    with pytest.raises(MapError, match="channels"):
        PublishedEstimator(other).load(_open(tmp_path / "map"), Runtime())


def _open(path):
    from reloc_core.maps import Map

    return Map.open(path)

"""Perfect predictions in the convention of each released checkpoint decode to the true pose; the layer
agrees with a NumPy evaluation of its description."""

import numpy as np
import pytest
import torch
from gnn_relpose.compact.config import NetworkConfig
from gnn_relpose.compact.network import CompactNetwork
from gnn_relpose.published.config import PublishedConfig
from gnn_relpose.published.constants import constants
from gnn_relpose.published.estimator import PublishedEstimator
from gnn_relpose.published.network import PublishedNetwork
from gnn_relpose.shared.topology import fully_connected
from gnn_relpose.shared.vectors import Convention, scene_convention

from reloc_core.errors import ConfigError
from reloc_core.geometry import inverse, rotation_angle_deg, so3_exp
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import SingleReferenceConfig
from reloc_core.solvers.relative_poses import SingleReferenceSolver


def half_angle_log(rotation):
    """Axis times half the angle, from the axis-angle identities and not from quaternions."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    axis = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    ) / (2 * np.sin(angle))
    return axis * angle / 2


def cambridge(pose):
    """The data set's six numbers: rotation and translation world to camera, normalised."""
    mean, std = np.array([-6.7909, 8.1958, 30.1203]), np.array([12.6376, 5.3801, 19.3833])
    rotation = pose[:3, :3].T
    return np.concatenate([(-rotation @ pose[:3, 3] - mean) / std, half_angle_log(rotation)])


def seven_scenes(pose):
    """Camera centre in metres and the camera's axes."""
    return np.concatenate([pose[:3, 3], half_angle_log(pose[:3, :3])])


@pytest.mark.parametrize(
    ("name", "original", "reach"),
    [("cambridge", cambridge, 30.0), ("7scenes/chess", seven_scenes, 2.0), ("", seven_scenes, 2.0)],
)
def test_perfect_predictions_decode_without_error(
    name, original, reach, make_walls, tmp_path, start_run, monkeypatch
):
    walls = make_walls(6, scale=reach / 0.3)
    for number, frame in enumerate(walls.frames):
        turn = so3_exp(np.array([0.2, 0.9, -0.4]) + 0.1 * number)
        frame.world_from_cam[:3, :3] = turn @ frame.world_from_cam[:3, :3]
    config = PublishedConfig(constants=name, height=32, resolution=64)
    config.network.channels, config.network.dropout = 16, 0.0
    config.graph.neighbours, config.retrieval.clusters = 4, 2
    config.train.epochs, config.train.batch_size = 1, 2
    run = start_run(tmp_path / "map", config, walls, component="gnn_published")
    estimator = PublishedEstimator(config)
    estimator.fit(walls, run)
    query, truth = walls[0], walls.frames[0].world_from_cam

    def perfect(self, nodes, index, graph, dropping):
        # The first node is the query; the others are those references whose vectors they are.
        known = [truth] + [estimator.poses[i] for i in references(nodes)]
        vectors = np.stack([original(pose) for pose in known])
        return torch.from_numpy(vectors[index[0]] - vectors[index[1]]).float(), index

    def references(nodes):
        return [int((estimator.nodes - n).abs().sum(1).argmin()) for n in nodes[1:]]

    monkeypatch.setattr(PublishedNetwork, "relative", perfect)
    given = estimator.estimate(query.without_ground_truth())
    assert len(given.world_from_ref) == 4
    for reference in range(4):
        solver = SingleReferenceSolver(SingleReferenceConfig(reference=reference))
        found = solver.solve(given, query.camera, Runtime()).world_from_cam
        assert np.linalg.norm(found[:3, 3] - truth[:3, 3]) < 2e-5 * reach
        assert rotation_angle_deg(found[:3, :3], truth[:3, :3]) < 1e-4


def test_training_targets_are_those_of_the_data_set():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3] = so3_exp(np.array([[0.1, 0.2, 0.3], [1.0, -2.0, 0.5], [-0.4, 0.3, 2.0]]))
    poses[:, :3, 3] = [[1, 2, 3], [-20, 4, 60], [7, 7, -7]]
    for name, original in (("cambridge", cambridge), ("7scenes/fire", seven_scenes)):
        convention = constants(name).convention
        found = convention.vectors(poses).numpy()
        np.testing.assert_allclose(found, [original(p) for p in poses], atol=2e-6)
        np.testing.assert_allclose(convention.poses(convention.vectors(poses)), poses, atol=1e-4)


def test_fixed_colours_are_used_for_every_scene():
    known = constants("cambridge")
    white = known.colors.normalize(np.ones((2, 2, 3)))
    assert torch.equal(white, torch.full((3, 2, 2), 2.0))  # (1 - 0.5) / 0.25
    assert known.everywhere
    assert constants("").colors is None
    with pytest.raises(ConfigError, match="7scenes/chess"):
        constants("7scenes/ches")


def test_vectors_of_a_scene_do_not_depend_on_its_world():
    """Another world for the same cameras: the same vectors, up to the turn of the axes."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, :3, :3] = so3_exp(rng.normal(0, 0.3, (9, 3)))
    poses[:, :3, 3] = rng.normal(0, 1, (9, 3))
    other = np.eye(4)
    other[:3, :3], other[:3, 3] = so3_exp([0.0, 3.0, 0.5]), [5.0, -4.0, 2.0]
    moved = other @ poses
    one, two = scene_convention(poses), scene_convention(moved)
    np.testing.assert_allclose(one.vectors(poses), two.vectors(moved), atol=1e-5)
    np.testing.assert_allclose(two.poses(two.vectors(moved)), moved, atol=1e-5)
    assert float(one.vectors(poses)[:, 3:].norm(dim=1).max()) < 1.0
    assert np.allclose(Convention(world_to_camera=True).poses(torch.zeros(6)), inverse(np.eye(4)))


# ------------------------------------------------------------------- the layer, evaluated in NumPy


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def perceptron(state, name, x):
    return linear(state, f"{name}.2", np.maximum(linear(state, f"{name}.0", x), 0))


def numpy_edges(state, nodes, edges_index, rounds):
    """Edge vectors after some rounds, edge by edge and channel by channel."""
    nodes = nodes.copy()
    pairs = list(zip(*edges_index.tolist(), strict=True))
    edges = []
    for s, d in pairs:
        both = np.concatenate([nodes[min(s, d)], nodes[max(s, d)]])
        edges.append(np.maximum(linear(state, "proj_edge", both), 0))
    for _ in range(rounds):
        updated = [
            perceptron(state, "gnn1.edge_model.edge_mlp", np.concatenate([nodes[s], nodes[d], e]))
            for (s, d), e in zip(pairs, edges, strict=True)
        ]
        heard = [[] for _ in nodes]
        for (s, d), u in zip(pairs, updated, strict=True):
            message = perceptron(state, "gnn1.mlp", np.concatenate([nodes[s], u]))
            g, theta, phi = (linear(state, f"gnn1.att.{n}", message) for n in ("g", "theta", "phi"))
            mixed = np.zeros_like(g)
            for row in range(len(g)):
                share = np.exp(phi[row] * theta - (phi[row] * theta).max())
                mixed[row] = (share / share.sum()) @ g
            heard[d].append(message + linear(state, "gnn1.att.W", mixed))
        nodes = np.stack(
            [
                np.maximum(
                    perceptron(
                        state,
                        "gnn1.mlp_updating",
                        np.concatenate([n, np.mean(m, 0) if m else np.zeros_like(n)]),
                    ),
                    0,
                )
                for n, m in zip(nodes, heard, strict=True)
            ]
        )
        edges = [np.maximum(u, 0) for u in updated]
    return np.stack(edges)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_whole_network_after_the_nodes_is_its_numpy_evaluation(rounds):
    torch.manual_seed(rounds)
    network = PublishedNetwork(16, recursions=rounds).double()
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    nodes, index = torch.randn(5, 16).double(), fully_connected(5)
    # An edge into a node that no other edge reaches, and one that is missing: not only full graphs.
    index = index[:, [i for i in range(index.shape[1]) if index[1, i] != 3]]
    graph = torch.zeros(5, dtype=torch.long)
    with torch.no_grad():
        found, _ = network.relative(nodes, index, graph, False)
    edges = numpy_edges(state, nodes.numpy(), index, rounds)
    expected = np.concatenate(
        [linear(state, "fc_xyz_R", edges), linear(state, "fc_wpqr_R", edges)], 1
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_renumbering_the_nodes_changes_the_edges_as_described():
    """Edges start from the lower number first, so numbers matter; NumPy agrees about how."""
    torch.manual_seed(4)
    network = PublishedNetwork(16, recursions=2).double()
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    nodes, index = torch.randn(4, 16).double(), fully_connected(4)
    graph, order = torch.zeros(4, dtype=torch.long), torch.tensor([2, 0, 3, 1])
    renumbered = torch.argsort(order)[index]
    with torch.no_grad():
        plain, _ = network.relative(nodes, index, graph, False)
        found, _ = network.relative(nodes[order], renumbered, graph, False)
    assert not torch.allclose(plain, found, atol=1e-3)
    edges = numpy_edges(state, nodes[order].numpy(), renumbered, 2)
    expected = np.concatenate(
        [linear(state, "fc_xyz_R", edges), linear(state, "fc_wpqr_R", edges)], 1
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_the_compact_network_has_the_published_graph():
    torch.manual_seed(5)
    network = CompactNetwork(NetworkConfig(channels=16, recursions=3)).double().eval()
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    nodes, index = torch.randn(6, 16).double(), fully_connected(6)
    with torch.no_grad():
        found, _ = network.relative(nodes, index)
    edges = numpy_edges(state, nodes.numpy(), index, 3)
    expected = np.concatenate(
        [linear(state, "fc_xyz_R", edges), linear(state, "fc_wpqr_R", edges)], 1
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)

"""Scene points as first targets, neighbours' encodings, and signals, each against something independent."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scr_glace.config import GlaceConfig, LossConfig, PointsConfig
from scr_glace.estimator import GlaceEstimator
from scr_glace.networks.encoder import KeypointEncoder
from scr_glace.signals import agreement, neighbours, smoothness
from scr_glace.training.buffer import Batch
from scr_glace.training.loss import reprojection_loss, target_share
from scr_glace.training.targets import Targets, find_targets, neighbour_table
from scr_glace.training.trainer import Trainer
from scr_glace.views import augmented_view, make_view

from reloc_core.errors import ConfigError, DataError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.geometry import project
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.training.processes import Processes

POINTS = PointsConfig(enabled=True, min_parallax_deg=0.5, min_similarity=0.6)


def compact():
    """The preset's parts in small: the wall in seconds."""
    config = GlaceConfig()
    config.encoder.name, config.encoder.keypoints = "xfeat_keypoints", 300
    config.image.resolution, config.image.enlarge = 400, False
    config.augment.rotation_deg, config.augment.scale = 5.0, 1.1
    config.global_descriptor.dimension, config.global_descriptor.clusters = 8, 4
    config.global_descriptor.neighbours, config.global_descriptor.scale = 0.5, 3.0
    config.points = dataclasses.replace(POINTS)
    config.head.channels = 256
    config.buffer.size, config.buffer.samples_per_image = 24 * 200, 200
    config.train.iterations, config.train.batch_size = 350, 512
    config.train.precision, config.train.log_every = "fp32", 10
    config.loss.depth_min, config.loss.depth_target = 0.03, 1.0
    config.points.until = 0.9
    config.optimizer.learning_rate_max, config.optimizer.learning_rate_min = 0.01, 1e-5
    config.optimizer.warmup = 0.1
    config.redundancy = 4.0
    return config


@pytest.fixture(scope="module")
def mapped(wall, start_run, tmp_path_factory):
    config = compact()
    run = start_run(tmp_path_factory.mktemp("points") / "map", config, wall)
    run.show = lambda title, points: run.log("shown", title=title, points=points())
    estimator = GlaceEstimator(config)
    estimator.fit(wall, run)
    return run.map.finish(), estimator, run


def test_points_are_shown_on_their_way_to_the_wall(mapped):
    shown = [values for event, values in mapped[2].events if event == "shown"]
    assert shown[0]["title"] == "iteration 0"
    assert shown[-1]["title"] == "iteration 350"
    assert 60 < len(shown) <= 72
    first, last = shown[0]["points"], shown[-1]["points"]
    assert first.points.shape == last.points.shape == (3000, 3)
    far, near = (np.median(np.abs(s.points[:, 2] - 2.0)) for s in (first, last))
    assert far > 1.0
    assert near < 0.1
    red, green = ((s.colors[:, 0] > s.colors[:, 1]).mean() for s in (first, last))
    assert red > 0.9  # of samples far from where their pixels say; half of the way at five pixels
    assert green < 0.5


def test_maps_the_scene_in_few_steps(mapped, wall, make_wall):
    """Predictions of images that were not mapped lie on the wall where their pixels say."""
    scene_map, estimator, _ = mapped
    assert scene_map.info.details["points"] >= 50
    other = make_wall(seed=5)
    errors = []
    for index in range(4):
        evidence = estimator.estimate(other[index])
        assert (evidence.kind, evidence.grid_shape, evidence.redundancy) == ("dense", None, 4.0)
        truth = other.coordinates(index, evidence.points2d)
        errors.append(np.linalg.norm(evidence.points3d - truth, axis=1))
        assert {"finite", "smoothness", "agreement", "likeness"} <= set(evidence.signals)
        assert all(0 <= v <= 1.001 for v in evidence.signals.values())
    assert np.median(np.concatenate(errors)) < 0.12


def test_a_loaded_map_gives_the_same_evidence(mapped, wall):
    scene_map, estimator, _ = mapped
    loaded = GlaceEstimator(compact())
    loaded.load(scene_map, Runtime())
    a, b = loaded.estimate(wall[1]), estimator.estimate(wall[1])
    np.testing.assert_array_equal(a.points2d, b.points2d)
    assert np.median(np.linalg.norm(a.points3d - b.points3d, axis=1)) < 5e-3
    assert a.signals == pytest.approx(b.signals, abs=0.05)
    # The size of the mapping images, not of the option, is what queries are brought to.
    assert loaded.scene.image.resolution == wall.frames[0].camera.height
    assert loaded.scene.unit == pytest.approx(2.0, rel=0.2)


def test_targets_lie_on_the_wall_and_on_their_pixels(wall, start_run, tmp_path):
    run = start_run(tmp_path / "map", compact(), wall)
    targets, features = find_targets(wall, np.arange(len(wall)), 128, POINTS, run)
    assert len(features.frames) == len(wall)
    assert np.median(np.abs(targets.points[:, 2] - 2.0)) < 0.05
    for image in (0, 7):
        pixels, points = targets.of_image(image)
        frame = wall.frames[image]
        inverse = np.linalg.inv(frame.world_from_cam)
        cam = points @ inverse[:3, :3].T + inverse[:3, 3]
        assert np.linalg.norm(project(frame.camera, cam)[0] - pixels, axis=1).max() < 4.0
    again = Targets.from_tensors(targets.tensors())
    assert again.distance == targets.distance
    np.testing.assert_array_equal(again.labels, targets.labels)


def test_nothing_to_triangulate(wall, start_run, tmp_path):
    run = start_run(tmp_path / "map", compact(), wall)
    options = PointsConfig(enabled=True, min_views=12)
    with pytest.raises(DataError, match=r"points\.enabled=false"):
        find_targets(wall, np.arange(len(wall)), 128, options, run)


class Twins(Dataset):
    """Two walls that look alike, 40 m apart."""

    def __init__(self, make_wall):
        self.walls = [make_wall(), make_wall(offset=(40.0, 0.0, 0.0), seed=1)]

    name = "twins"

    @property
    def frames(self):
        return [frame for wall in self.walls for frame in wall.frames]

    def __getitem__(self, index):
        which, row = divmod(index, len(self.walls[0]))
        return self.walls[which][row]


def test_rooms_that_look_alike_share_no_points(make_wall, start_run, tmp_path):
    """Rays to twins of a point meet somewhere, too: far from where either is."""
    twins = Twins(make_wall)
    shared = []
    for reach in (0.0, 1.5):
        run = start_run(tmp_path / f"{reach}", compact(), twins)
        options = dataclasses.replace(POINTS, reach=reach)
        targets, _ = find_targets(twins, np.arange(len(twins)), 128, options, run)
        here, there = (set(targets.labels[targets.images // 12 == k]) for k in (0, 1))
        assert min(len(here), len(there)) > 50
        shared.append(len(here & there) / len(targets.points))
    assert shared[0] > 0.1
    assert shared[1] == 0.0


def test_overlap_counts_shared_points():
    rng = np.random.default_rng(0)
    seen = rng.random((300, 40)) < 0.2  # more images than a block
    seen[5] = False
    images, labels = np.nonzero(seen)
    targets = Targets(np.zeros((40, 3)), images, np.zeros((len(images), 2)), labels, 1.0)
    expected = np.array(
        [[(a & b).sum() / max(min(a.sum(), b.sum()), 1) for b in seen] for a in seen]
    )
    blocks = list(targets.overlaps(300))
    assert [len(block) for block in blocks] == [256, 44]
    np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-6)
    # Drawn block by block, the table is that of all at once.
    whole = neighbour_table([np.concatenate(blocks)], 3)
    assert torch.equal(neighbour_table(targets.overlaps(300), 3), whole)


def test_neighbours_are_drawn_by_overlap():
    overlap = np.array([[1, 0.6, 0.3, 0.05], [0.6, 1, 0, 0], [0.3, 0, 1, 0], [0.05, 0, 0, 1]])
    table = neighbour_table([overlap], 0)
    assert set(table[0].tolist()) == {1, 2}
    assert set(table[1].tolist()) == {0}
    assert set(table[3].tolist()) == {3}  # alone


def test_neighbours_stand_in_for_a_share_of_the_samples():
    trainer = Trainer.__new__(Trainer)
    config = compact()
    config.global_descriptor.noise_std = 0.0
    trainer.config, trainer.processes, trainer.seed, trainer.step = config, Processes(), 1, 0
    trainer.descriptors = torch.eye(3)
    trainer.neighbours = torch.tensor([[1, 2], [2, 2], [2, 2]])
    n = 4000
    batch = Batch(torch.zeros(n, 1).half(), torch.zeros(n, 2), torch.zeros(n, 3, 4),
                  torch.zeros(n, 2), torch.zeros(n, dtype=torch.long), torch.arange(n), n)  # fmt: skip
    encodings = trainer.inputs(batch)[:, :3]
    assert set(encodings.norm(dim=1).tolist()) == {3.0}  # the scale, of unit vectors
    assert (encodings.mean(0) / 3).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def problem(n=200):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(n, 3, generator=generator) + torch.tensor([0.0, 0.0, 4.0])
    poses = torch.eye(4)[:3].expand(n, 3, 4)
    rays = targets[:, :2] / targets[:, 2:]
    return targets, poses, rays, torch.full((n, 2), 500.0)


def test_the_loss_at_the_targets_is_zero_all_along():
    targets, poses, rays, focal = problem()
    for progress in (0.0, 0.3, 1.0):
        terms = reprojection_loss(LossConfig(), targets, poses, rays, focal, progress, targets)
        assert float(terms.total) / len(targets) < 1e-2


def test_a_point_behind_the_camera_goes_straight_to_its_target():
    """By gradient descent on the points themselves: the published pull to a fixed depth ends elsewhere."""
    targets, poses, rays, focal = problem()
    points = (targets * torch.tensor([1.0, 1.0, -1.0])).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        reprojection_loss(LossConfig(), points, poses, rays, focal, 0.1, targets).total.backward()
        optimizer.step()
    assert float((points - targets).norm(dim=1).median()) < 0.05


def test_depth_adjusted_errors():
    """R-SCoRe's factor, in NumPy; a point much farther than its constant counts as before."""
    targets, poses, rays, focal = problem()
    points = targets * torch.tensor([1.01, 1.0, 1.0])
    plain, adjusted = LossConfig(type="tanh"), LossConfig(type="tanh", depth_adjust=3.0)
    terms = reprojection_loss(adjusted, points, poses, rays, focal, 0.5)
    depth = points[:, 2].double().numpy()
    off = np.abs(points[:, 0].double().numpy() / depth - rays[:, 0].double().numpy()) * 500
    off *= np.sqrt(depth**2 / (depth**2 + 9))
    assert float(terms.total) == pytest.approx(float((50 * np.tanh(off / 50)).sum()), rel=1e-4)
    assert float(terms.total) < float(
        reprojection_loss(plain, points, poses, rays, focal, 0.5).total
    )


def test_unknown_targets_change_nothing():
    targets, poses, rays, focal = problem()
    points = targets + 0.3
    unknown = torch.full_like(targets, float("nan"))
    plain = reprojection_loss(LossConfig(), points.requires_grad_(), poses, rays, focal, 0.2)
    plain.total.backward()
    expected, points.grad = points.grad, None
    with_nan = reprojection_loss(LossConfig(), points, poses, rays, focal, 0.2, unknown)
    with_nan.total.backward()
    torch.testing.assert_close(points.grad, expected)
    torch.testing.assert_close(with_nan.total, plain.total)


def test_the_share_of_the_targets_falls_to_nothing():
    assert [round(target_share(t, 0.5), 3) for t in (0, 0.25, 0.5, 0.9)] == [1, 0.5, 0, 0]


def test_features_at_key_points_are_those_of_the_detector(wall):
    """Sampling the map at a key point's pixel gives what the detector says of it."""
    encoder = KeypointEncoder(200).eval()
    view = make_view(encoder, wall[0].image, wall[0].camera, GlaceConfig().image, 128)
    found = encoder.describe(view.grey)
    sampled = encoder.sample(view.grey, found.points)
    torch.testing.assert_close(sampled, found.features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.features.norm(dim=1), torch.full((len(sampled),), 8.0))
    (peer,) = KeypointDetector(128).detect([wall[0].image], 200)
    np.testing.assert_allclose(view.original_pixels(found.points.numpy()), peer.pixels, atol=1e-4)
    torch.testing.assert_close(F.normalize(found.features, dim=1), peer.descriptors)


def test_view_pixels_undoes_original_pixels(wall):
    encoder = KeypointEncoder(10)
    config = GlaceConfig()
    config.image.resolution = 200
    for seed in range(3):
        view = augmented_view(
            encoder, wall[0].image, wall[0].camera, config.image, config.augment,
            np.random.default_rng(seed),
        )  # fmt: skip
        pixels = np.random.default_rng(seed).uniform(0, 120, (20, 2))
        np.testing.assert_allclose(
            view.original_pixels(view.view_pixels(pixels)), pixels, atol=1e-9
        )


def test_an_image_of_one_colour_has_a_reason(mapped, wall):
    _, estimator, _ = mapped
    query = dataclasses.replace(wall[0], image=np.full_like(wall[0].image, 90))
    evidence = estimator.estimate(query)
    assert len(evidence.points2d) == 0
    assert "recognised" in evidence.reason


def test_signals():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 400, (60, 2))
    pairs = neighbours(pixels, None)
    gaps = np.linalg.norm(pixels[:, None] - pixels, axis=2) + 1e9 * np.eye(60)
    np.testing.assert_array_equal(pairs[:, 1], gaps.argmin(1))
    plane = np.c_[(pixels - 200) / 300 * 5, np.full(60, 5.0)]
    assert smoothness(pixels, plane, pairs, 300.0, 5.0) == 1.0
    assert smoothness(pixels, rng.uniform(-50, 50, (60, 3)), pairs, 300.0, 5.0) < 0.1
    grid = neighbours(np.zeros((6, 2)), (2, 3))
    assert grid.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5]]
    moved = plane + np.where(np.arange(60) < 15, 1.0, 0.0)[:, None]
    assert agreement(plane, np.stack([moved, moved, plane]), 5.0) == 0.75
    assert agreement(np.zeros((0, 3)), np.zeros((1, 0, 3)), 1.0) == 0.0
    assert smoothness(pixels[:1], plane[:1], neighbours(pixels[:1], None), 300.0, 5.0) == 0.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder.name", "xfeat", "needs estimator.encoder.name=xfeat_keypoints"),
        ("points.enabled", False, "neighbours needs estimator.points.enabled=true"),
        ("points.min_views", 1, "points.min_views"),
        ("points.until", 0.0, "points.until"),
    ],
)
def test_options_that_do_not_fit(path, value, message):
    config = compact()
    config.points = PointsConfig(enabled=True)
    owner = config
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, value)
    with pytest.raises(ConfigError, match=message):
        GlaceEstimator(config)

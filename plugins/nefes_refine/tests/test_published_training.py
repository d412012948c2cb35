"""The published recipe at a small size: losses fall, and the whole chain runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nefes_refine.config import NefesConfig, RefineConfig
from nefes_refine.estimator import NefesEstimator
from nefes_refine.field.data import Images, mapped_frames
from nefes_refine.field.scene import Scene
from nefes_refine.field.training import FieldTrainer
from nefes_refine.published.dfnet import DFNet, DFNetFeatures
from nefes_refine.published.dfnet_training import DFNetTrainer, dfnet_loss, photographs
from nefes_refine.published.mlp_field import PaperField
from nefes_refine.published.recipe import bad_images, feature_dfnet
from nefes_refine.refine.refiner import NefesRefiner

from reloc_core.errors import ConfigError
from reloc_core.geometry import rotation_angle_deg, so3_exp
from reloc_core.interfaces import Dataset, Runtime
from reloc_core.mapping.views import pixel_rays
from reloc_core.types import Camera, Frame, Localization, Status


def paper_config():
    config = NefesConfig()
    config.features, config.regressor.name, config.field.name = "dfnet", "dfnet", "mlp"
    config.view.resolution, config.view.stride = 48, 4
    config.field.coarse_samples, config.field.samples = 8, 8
    training = config.training
    training.colour_steps, training.feature_steps, training.fusion_steps = 3, 2, 2
    training.rays, training.images_per_step, training.patches, training.patch_size = 64, 4, 2, 8
    training.learning_rate, training.restart_schedule = 5e-4, True
    config.regressor.epochs, config.regressor.batch, config.regressor.learning_rate = 1, 4, 1e-4
    return config


def random_images(count=4, rows=12, columns=16, channels=128):
    generator = torch.Generator().manual_seed(0)
    cells = Camera("PINHOLE", columns, rows, (14.0, 14.0, 7.5, 5.5))
    rays = torch.from_numpy(pixel_rays(cells).reshape(1, -1, 3)).float()
    number = rows * columns
    return Images(
        np.arange(count), [cells] * count, torch.eye(4).double().repeat(count, 1, 1),
        rays.repeat(count, 1, 1), torch.full((count, number, 3), 0.8),
        torch.full((count, 10), 10.0), None,
        torch.randn(1, 1, channels, generator=generator).expand(count, number, -1).half(),
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["colour", "feature", "fusion"])
def test_each_stage_lowers_its_loss(stage):
    config = paper_config()
    steps = {"colour": (12, 0, 0), "feature": (0, 12, 0), "fusion": (0, 0, 12)}[stage]
    training = config.training
    training.colour_steps, training.feature_steps, training.fusion_steps = steps
    training.learning_rate = 2e-3
    scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)
    torch.manual_seed(0)
    field = PaperField(config.field, scene, 128)
    trainer = FieldTrainer(training, field, random_images(), 0, l1_features=True)
    assert trainer.stage(0) == stage
    losses = [float(trainer.step(step)) for step in range(12)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02


def test_dfnet_learns_a_pose():
    torch.manual_seed(0)
    network = DFNet().train()
    options = paper_config().regressor
    photos, poses = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 4)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    losses = []
    for _ in range(5):
        loss = dfnet_loss(network, photos, photos, poses, options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.fixture
def trainer():
    """Of six images of 12 x 16 cells, four of them in a step; 24 rays and three patches of each."""
    config = paper_config()
    config.training.rays, config.training.patches = 4 * 24, 3
    scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)
    torch.manual_seed(0)
    field = PaperField(config.field, scene, 128)
    return FieldTrainer(config.training, field, random_images(6), 0, l1_features=True)


def test_patches_lie_at_the_same_places_of_four_images(trainer):
    corners = set()
    for seed in range(60):
        batch = trainer._patches(torch.Generator().manual_seed(seed))
        assert batch.patches == 4 * 3
        image = batch.images.view(4, 3, 8, 8)
        assert len(set(image[:, 0, 0, 0].tolist())) == 4
        assert bool((image == image[:, :1, :1, :1]).all())
        cell = batch.cells.view(4, 3, 8, 8)
        assert bool((cell == cell[:1]).all())
        corner = cell[0, :, 0, 0]
        assert torch.equal(cell[0, :, 5, 3], corner + 5 * 16 + 3)
        corners |= {(int(c) // 16, int(c) % 16) for c in corner}
    # Published: corners uniform in [0, h - 16) x [0, w - 16), here with patches of eight.
    assert {c[0] for c in corners} == set(range(12 - 8))
    assert {c[1] for c in corners} == set(range(16 - 8))


def test_rays_of_an_image_are_drawn_without_replacement(trainer):
    batch = trainer._rays(torch.Generator().manual_seed(0))
    images, counts = batch.images.unique(return_counts=True)
    assert len(images) == 4
    assert counts.tolist() == [24] * 4
    assert len(set(zip(batch.images.tolist(), batch.cells.tolist(), strict=True))) == 4 * 24
    # Still as many with masks, all of them static; all there are where these are fewer.
    trainer.images.valid = torch.zeros(6, 12 * 16, dtype=torch.bool)
    trainer.images.valid[:, :100] = True
    trainer.images.valid[0, 10:] = False
    for seed in range(5):
        batch = trainer._rays(torch.Generator().manual_seed(seed))
        assert bool(trainer.images.valid[batch.images, batch.cells].all())
        for image, count in zip(*batch.images.unique(return_counts=True), strict=True):
            assert count == (10 if image == 0 else 24)


def test_masked_cells_have_no_part_in_the_transient_loss(trainer):
    """Oracle: the same loss whatever the transient density behind the masks."""
    trainer.images.valid = torch.rand(6, 12 * 16, generator=torch.Generator().manual_seed(1)) > 0.5
    batch = trainer._patches(torch.Generator().manual_seed(0))
    rendering = trainer.render(batch, torch.Generator().manual_seed(0))
    loss = float(trainer.loss(rendering, batch, "colour").detach())
    masked = ~trainer.images.valid[batch.images, batch.cells]
    with torch.no_grad():
        rendering.transient[masked] += 100
    assert float(trainer.loss(rendering, batch, "colour").detach()) == pytest.approx(loss)
    with torch.no_grad():
        rendering.transient[~masked] += 100
    assert float(trainer.loss(rendering, batch, "colour").detach()) == pytest.approx(
        loss + 0.01 * 100, rel=1e-4
    )


def test_the_second_run_starts_with_a_new_adam(trainer):
    """Oracle: Adam's first update is one learning rate, whatever the gradient's size."""
    trainer.steps = (5, 3, 2)
    for step in range(5):
        trainer.step(step)
    weight = trainer.field.fine.static_sigma[0].weight
    before = weight.detach().clone()
    trainer.step(5)
    moved = (weight.detach() - before).abs()
    assert float(moved.max()) == pytest.approx(5e-4, rel=1e-3)
    assert {int(s["step"]) for s in trainer.optimizer.state.values()} == {1}


class Says(torch.nn.Module):
    """Answers with given poses."""

    def __init__(self, poses):
        super().__init__()
        self.poses = poses

    def forward(self, images, size):
        return torch.zeros(3, len(images), 128, *size), self.poses


def test_photographs_and_renderings_share_one_pose_loss():
    """Oracle: the mean over the 12 numbers of all eight images."""
    generator = torch.Generator().manual_seed(0)
    found, true = (torch.rand(n, 3, 4, generator=generator) for n in (8, 4))
    options = paper_config().regressor
    options.triplet_weight = 0.0
    images = torch.zeros(4, 3, 8, 8)
    loss = float(dfnet_loss(Says(found), images, images, true, options))
    squares = (found.numpy() - np.concatenate([true, true])) ** 2
    assert loss == pytest.approx(squares.mean(), rel=1e-6)


def test_centred_frame_is_rigid_and_invertible():
    similarity = np.eye(4)
    similarity[:3, :3] = 0.4 * so3_exp(np.array([0.2, 0.5, -0.3]))
    similarity[:3, 3] = [0.1, -0.2, 0.3]
    scene = Scene(similarity, -np.ones(3), np.ones(3), 0.0, 2.0)
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3] = so3_exp(np.array([0.0, 0.3, 0.1]))
    poses[1, :3, 3] = [0.0, 3.0, 4.0]
    moved = scene.centred(torch.from_numpy(poses))
    assert float((moved[1, :, 3] - moved[0, :, 3]).norm()) == pytest.approx(5.0)
    angle = rotation_angle_deg(moved[0, :, :3].numpy(), moved[1, :, :3].numpy())
    assert float(angle) == pytest.approx(
        float(rotation_angle_deg(poses[0, :3, :3], poses[1, :3, :3]))
    )
    np.testing.assert_allclose(scene.from_centred(moved), poses[:, :3], atol=1e-12)


def test_the_whole_published_chain(tmp_path, make_wall, start_run):
    config, wall = paper_config(), make_wall(12)
    run = start_run(tmp_path / "map", config, wall)
    NefesEstimator(config).fit(wall, run)
    scene_map = run.map.finish()
    loaded = NefesEstimator(config)
    loaded.load(scene_map, Runtime(threads=1))
    prior = loaded.estimate(wall[0])
    np.testing.assert_allclose(np.linalg.det(prior.world_from_cam[:3, :3]), 1, atol=1e-12)
    refiner = NefesRefiner(RefineConfig(mode="weights", iterations=2))
    refiner.load(scene_map, Runtime(threads=1))
    start = Localization(Status.LOCALIZED, world_from_cam=wall[0].world_from_cam)
    assert np.isfinite(refiner.refine(wall[0], start).world_from_cam).all()


@pytest.mark.parametrize(
    ("images", "step", "published"),
    [(4000, 2, 300_000), (231, 1, 35_000)],
    ids=["chess", "ShopFacade"],
)
def test_steps_are_counted_in_passes_over_the_images(images, step, published):
    """Run one of the published schedule: 601 passes, four images at a time."""
    config = NefesConfig().training
    config.epochs, config.images_per_step = True, 4
    config.colour_steps, config.feature_steps, config.fusion_steps = 601, 200, 401
    scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)
    field = PaperField(NefesConfig().field, scene, 128)
    trainer = FieldTrainer(config, field, random_images(), 0, counted=images // step)
    assert trainer.steps[0] == pytest.approx(published, rel=0.03)
    assert trainer.steps[1] + trainer.steps[2] == trainer.steps[0]


class Draws:
    """Gives numbers that were drawn before."""

    def __init__(self, *arrays):
        self.arrays = list(arrays)

    def uniform(self, low, high, shape):
        return self.arrays.pop(0)


def turn(axis, angle):
    """A rotation about a coordinate axis, written out."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    result = np.eye(3)
    result[i, i] = result[j, j] = c
    result[i, j], result[j, i] = -s, s
    return result


def test_random_views_are_drawn_in_the_centred_frame(monkeypatch, make_wall, start_run, tmp_path):
    """Oracle: rotations about its axes from the left in order x, y, z; shift and box in its axes."""
    config, wall = paper_config(), make_wall(12)
    run = start_run(tmp_path / "map", config, wall)
    options = config.regressor
    options.rotation_deg, options.translation, options.box_margin = 10.0, 0.2, 0.1
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = so3_exp(np.array([0.4, 1.0, -0.7])), [1.0, -2.0, 0.5]
    scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0, moved)
    field = PaperField(config.field, scene, 128)
    shown = photographs(wall, np.arange(8), config, run)
    trainer = DFNetTrainer(DFNet(), config, field, wall, shown, shown, run)
    rendered = []
    monkeypatch.setattr(DFNetTrainer, "_rendered", lambda self, poses: rendered.append(poses))
    rng = np.random.default_rng(0)
    draws = [rng.uniform(-1, 1, (8, 3)) for _ in range(2)]
    found = trainer.random_views(1.0, Draws(*draws))[1].double().numpy()
    poses = moved @ shown.poses.numpy() @ np.diag([1.0, -1.0, -1.0, 1.0])
    low, high = poses[:, :3, 3].min(0) - 0.1, poses[:, :3, 3].max(0) + 0.1
    for pose, view, angles, shift in zip(poses, found, *draws, strict=True):
        x, y, z = (turn(axis, np.radians(10) * angles[axis]) for axis in range(3))
        np.testing.assert_allclose(view[:, :3], z @ y @ x @ pose[:3, :3], atol=1e-6)
        expected = np.clip(pose[:3, 3] + 0.2 * shift, low, high)
        np.testing.assert_allclose(view[:, 3], expected, atol=1e-6)
    np.testing.assert_allclose(scene.centred(torch.from_numpy(rendered[0])), found, atol=1e-6)


class Nothing(Dataset):
    """Frames without pixels, in two sequences."""

    name = "nothing"

    def __init__(self, count):
        camera = Camera.pinhole(50.0, 16, 12)
        self.frames = [
            Frame(f"{i}", camera, np.eye(4), sequence="ab"[i >= count // 2]) for i in range(count)
        ]

    frames = ()

    def __getitem__(self, index):
        raise AssertionError


def test_strides_count_within_sequences():
    chosen = mapped_frames(Nothing(26), 100, 5)
    assert chosen.tolist() == [0, 5, 10, 13, 18, 23]
    assert len(mapped_frames(Nothing(26), 4, 1)) == 4


def test_bad_images_of_shop_facade_are_left_out():
    """Published: the items 42 and then 35 of the sorted list of 231 images are deleted."""
    config = NefesConfig()
    config.scene.constants = "cambridge/ShopFacade"
    shop = Nothing(231)
    order = list(reversed(range(231)))  # the dataset's order is another one
    shop.frames = [replace(shop.frames[i], name=f"seq1_frame{i:05d}.png") for i in order]
    expected = sorted(f.name for f in shop.frames)
    del expected[42]
    del expected[35]
    chosen = mapped_frames(shop, 1000, 1, bad_images(config, shop))
    assert sorted(shop.frames[i].name for i in chosen) == expected
    # The positions mean other images in any other list, and there are none in other scenes.
    assert bad_images(config, Nothing(230)) == ()
    config.scene.constants = "cambridge/KingsCollege"
    assert bad_images(config, shop) == ()
    config.training.leave_out = [0, 3]
    assert bad_images(config, shop) == (0, 3)
    assert len(mapped_frames(shop, 1000, 1, [0, 3])) == 229


def test_learning_rate_falls_on_a_plateau_and_training_stops(
    monkeypatch, make_wall, start_run, tmp_path
):
    config, wall = paper_config(), make_wall(12)
    run = start_run(tmp_path / "map", config, wall)
    options = config.regressor
    options.epochs, options.patience, options.stop_patience, options.synthetic_views = 40, 3, 10, 0
    shown = photographs(wall, np.arange(8), config, run)
    network = DFNet()
    network.scene = Scene(np.eye(4), -np.ones(3), np.ones(3), 0.0, 2.0)
    field = PaperField(config.field, network.scene, 128)
    trainer = DFNetTrainer(network, config, field, wall, shown, shown, run)
    losses, rates = iter([3.0, 2.0] + [2.5] * 40), []

    def epoch(self, *given):
        rates.append(self.optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            self.network.fc_pose.bias.fill_(len(rates))
        return 0.0

    monkeypatch.setattr(DFNetTrainer, "_epoch", epoch)
    monkeypatch.setattr(DFNetTrainer, "validation_loss", lambda self: next(losses))
    trainer.train()
    assert len(rates) == 12  # ten after the best
    assert rates[5] == pytest.approx(1e-4)
    assert rates[6] == pytest.approx(0.95e-4)
    assert float(network.fc_pose.bias[0]) == 2  # of the best epoch


def test_features_of_another_dfnet(tmp_path, make_wall, start_run):
    """The field learns what the second network sees; the map brings both back."""
    config, wall = paper_config(), make_wall(12)
    other = DFNet()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    config.feature_weights = str(tmp_path / "other.pt")
    run = start_run(tmp_path / "map", config, wall)
    estimator = NefesEstimator(config)
    estimator.fit(wall, run)
    loaded = NefesEstimator(config)
    loaded.load(run.map.finish(), Runtime(threads=1))
    assert torch.equal(loaded.bundle.features.network.fc_pose.weight, other.fc_pose.weight)
    assert not torch.equal(loaded.bundle.regressor.fc_pose.weight, other.fc_pose.weight)
    # That map's regressor can be the feature network of the next one.
    again = feature_dfnet(str(tmp_path / "map"))
    assert torch.equal(again.fc_pose.weight, loaded.bundle.regressor.fc_pose.weight)


def test_weights_mode_compares_at_the_resolution_of_the_image(tmp_path, make_wall, start_run):
    """A shift of one pixel is seen, which the cells of a rendering would average away."""
    from nefes_refine.field.training import enlarged

    maps = torch.arange(12.0).view(1, 1, 3, 4)
    large = enlarged(maps, (11, 15), "cells")
    assert large.shape == (1, 1, 11, 15)
    whole = torch.nn.functional.interpolate(maps, (12, 16), mode="bicubic", align_corners=False)
    assert torch.equal(large, whole[..., :11, :15])
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    features = DFNetFeatures(DFNet().eval(), 4)
    detailed = features.detailed(image)
    assert detailed.shape == (128, 48, 64)
    assert torch.allclose(torch.nn.functional.avg_pool2d(detailed, 4), features(image), atol=1e-5)


def test_features_of_dfnet_need_dfnet():
    config = NefesConfig()
    config.features = "dfnet"
    with pytest.raises(ConfigError, match="dfnet"):
        NefesEstimator(config)

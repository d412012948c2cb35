"""Train on a wall, regress, refine: the whole method on exact data."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from nefes_refine.config import NefesConfig, RefineConfig
from nefes_refine.estimator import NefesEstimator
from nefes_refine.field.data import held_out
from nefes_refine.field.rendering import Field, Rendering
from nefes_refine.refine.align import Template, align, match, smooth
from nefes_refine.refine.gradient_modes import rendered_gradient
from nefes_refine.refine.refiner import NefesRefiner
from nefes_refine.target import Target
from torch import nn

from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.geometry import rotation_angle_deg, so3_exp
from reloc_core.interfaces import Runtime
from reloc_core.maps import load_tensors
from reloc_core.solvers.absolute import estimate_absolute_pose
from reloc_core.types import Camera, Localization, PosePrior, Status


def perturbed(pose, shift=0.06, angle_deg=3.0):
    moved = pose.copy()
    moved[:3, :3] = moved[:3, :3] @ so3_exp(np.radians(angle_deg) * np.array([0.6, -0.64, 0.48]))
    moved[:3, 3] += shift * np.array([0.48, 0.6, -0.64])
    return moved


def errors(found, true):
    return (
        float(np.linalg.norm(found[:3, 3] - true[:3, 3])),
        float(rotation_angle_deg(found[:3, :3], true[:3, :3])),
    )


@pytest.fixture(scope="module")
def refiner(wall_map):
    made = NefesRefiner(RefineConfig())
    made.load(wall_map, Runtime(threads=1))
    return made


def test_map_says_what_was_trained(wall_map):
    details = wall_map.info.details
    assert details["validation"]["psnr"] > 20
    assert details["validation"]["features"] > 0.5
    assert details["depth"] is True
    assert wall_map.bytes < 5e6


def exact_template(refiner, wall, index):
    """What a perfect field would render at the pose of an image of the wall."""
    query = wall[index]
    target = Target(refiner.bundle, query)
    cells, pose = target.view.cells, query.world_from_cam
    rows, columns = target.features.shape[1:]
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    rays = np.stack([(x - cells.cx) / cells.fx, (y - cells.cy) / cells.fy, np.ones_like(x)], -1)
    turned = rays.reshape(-1, 3) @ pose[:3, :3].T
    points = turned * ((wall.distance - pose[2, 3]) / turned[:, 2:]) + pose[:3, 3]
    return Template(target.features, torch.from_numpy(points), pose)


def test_matching_and_alignment_find_the_pose_with_an_exact_template(refiner, wall):
    # Oracle: the true pose of another image, a fifth of a metre or so away.
    query = wall[5]
    target = Target(refiner.bundle, query)
    template = exact_template(refiner, wall, 9)
    start = errors(template.world_from_cam, query.world_from_cam)
    matched = match(template, target.features, target.view.cells, query.camera)
    assert matched is not None
    found, covariance = align(template, target.features, target.view.cells, matched)
    assert errors(matched, query.world_from_cam)[1] < 0.3 * start[1]
    assert errors(found, query.world_from_cam)[0] < 0.3 * start[0]
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_matches_are_mutual_maxima_of_similarity_with_the_peaks_of_parabolas(monkeypatch):
    """Oracle: maxima by PyTorch, vertices of the parabolas that NumPy fits."""
    rows, columns = 12, 16
    generator = torch.Generator().manual_seed(0)
    query = smooth(torch.randn(8, rows, columns, generator=generator), 1.0)
    chosen = torch.randperm(rows * columns, generator=generator)[:60]
    noise = 0.02 * torch.randn(8, 60, generator=generator)
    ours = torch.nn.functional.normalize(query.flatten(1)[:, chosen] + noise, dim=0)
    solved = {}

    def solver(pixels, points, camera, weights, options):
        solved.update(pixels=pixels, points=points, weights=weights)
        return estimate_absolute_pose(pixels, points, camera, weights=weights, options=options)

    monkeypatch.setattr("nefes_refine.refine.align.estimate_absolute_pose", solver)
    camera = Camera.pinhole(100.0, columns, rows)
    numbered = torch.arange(60)[:, None].double() * torch.ones(3)
    match(Template(ours[:, None], numbered, np.eye(4)), query, camera, camera)
    similarity = ours.T @ query.flatten(1)
    best, forward = similarity.max(1)
    (mutual,) = torch.nonzero(similarity.argmax(0)[forward] == torch.arange(60), as_tuple=True)
    np.testing.assert_array_equal(solved["points"][:, 0], mutual)
    np.testing.assert_allclose(solved["weights"], best[mutual] ** 2, rtol=1e-5)
    inner = 0
    for k, (x, y) in zip(mutual.tolist(), solved["pixels"], strict=True):
        row, column = divmod(int(forward[k]), columns)
        if 0 < row < rows - 1 and 0 < column < columns - 1:
            peak = similarity[k].view(rows, columns).double().numpy()
            for found, at, curve in (
                (x, column, peak[row, column - 1 : column + 2]),
                (y, row, peak[row - 1 : row + 2, column]),
            ):
                square, line, _ = np.polyfit([-1, 0, 1], curve, 2)
                assert found - at == pytest.approx(-line / (2 * square), abs=1e-3)
            inner += 1
    assert inner > 20


def test_refinement_never_raises_its_own_cost(refiner, wall):
    for index in (1, 5, 9):
        query = wall[index]
        start = perturbed(query.world_from_cam)
        found = refiner.refine(query, Localization(Status.LOCALIZED, world_from_cam=start))
        target = Target(refiner.bundle, query)
        assert target.render(found.world_from_cam)[1] <= target.render(start)[1]
        # A covariance comes with a pose that moved and that has the cost of a true one.
        moved = found.world_from_cam is not start
        arrived = refiner.bundle.views.arrived(target.render(found.world_from_cam)[1])
        assert (found.covariance is not None) == (moved and arrived)


def test_a_pose_without_anything_to_gain_is_returned_as_it_is(refiner, wall):
    query = replace(wall[3], image=np.full_like(wall[3].image, 128))
    start = Localization(Status.LOCALIZED, world_from_cam=wall[3].world_from_cam)
    found = refiner.refine(query, start)
    target = Target(refiner.bundle, query)
    assert target.render(found.world_from_cam)[1] <= target.render(start.world_from_cam)[1]


def test_a_pose_far_from_the_truth_is_replaced_from_a_mapped_view(refiner, wall, wall_map):
    """Oracle: the true pose. The start sees another part of the wall, upside down."""
    alone = NefesRefiner(RefineConfig(starts=0))
    alone.load(wall_map, Runtime(threads=1))
    far = 0
    for index in (2, 7, 11):
        query = wall[index]
        start = query.world_from_cam.copy()
        start[:3, :3] = start[:3, :3] @ so3_exp(np.array([0, 0, np.pi]))
        given = Localization(Status.LOCALIZED, world_from_cam=start, covariance=np.eye(6) * 10.0)
        with_starts = refiner.refine(query, given)
        assert errors(with_starts.world_from_cam, query.world_from_cam)[1] < 20
        far += errors(alone.refine(query, given).world_from_cam, query.world_from_cam)[1] > 90
    assert far == 3


@pytest.fixture
def looks(monkeypatch):
    """How often a query was rendered and glimpsed at."""
    count = {"render": 0, "glimpse": 0}

    def counted(name, original):
        def look(self, pose):
            count[name] += 1
            return original(self, pose)

        return look

    for name in count:
        monkeypatch.setattr(Target, name, counted(name, getattr(Target, name)))
    return count


def test_a_query_that_arrives_looks_from_no_other_start(refiner, wall, looks):
    given = Localization(Status.LOCALIZED, world_from_cam=wall[5].world_from_cam)
    found = refiner.refine(wall[5], given)
    assert errors(found.world_from_cam, wall[5].world_from_cam)[0] < 0.1
    assert looks["glimpse"] == 0
    assert looks["render"] <= 3


def test_a_foreign_picture_is_rendered_once_and_stays_where_it_is(
    refiner, wall, looks, monkeypatch
):
    # A field of seconds shows noise as well as walls: as if it were a sharper one.
    views = replace(refiner.bundle.views, cost=0.1, spread=0.0)
    monkeypatch.setattr(refiner, "bundle", replace(refiner.bundle, views=views))
    noise = np.random.default_rng(0).integers(0, 255, wall[5].image.shape).astype(np.uint8)
    given = Localization(Status.LOCALIZED, world_from_cam=wall[5].world_from_cam)
    found = refiner.refine(replace(wall[5], image=noise), given)
    assert found.world_from_cam is given.world_from_cam
    looks_at_noise = dict(looks)
    true = refiner.refine(wall[5], given)
    assert found.support["likeness"] < true.support["likeness"] - 0.2
    assert looks_at_noise == {"render": 1, "glimpse": refiner.config.starts}


def test_a_glimpse_shows_every_other_cell_of_the_rendering(refiner, wall):
    query = wall[5]
    target = Target(refiner.bundle, query)
    points = target.render(query.world_from_cam)[0].points.unflatten(0, target.shape)[::2, ::2]
    glimpse, cost = target.glimpse(query.world_from_cam)
    torch.testing.assert_close(glimpse.points, points.flatten(0, 1))
    wanted = target.features[:, ::2, ::2]
    assert glimpse.features.shape == wanted.shape
    assert cost == pytest.approx(1 - float((glimpse.features * wanted).sum(0).mean()))


def test_starts_respect_a_sure_pose_and_are_spread(refiner, wall):
    views = refiner.bundle.views
    features = Target(refiner.bundle, wall[4]).features
    pose = wall[4].world_from_cam
    assert len(views.starts(features, pose, None, 3)) == 3
    nearest = views.starts(features, pose, None, 1)[0]
    position = np.linalg.norm(views.poses.numpy()[:, :3, 3] - pose[:3, 3], axis=1)
    assert np.linalg.norm(nearest[:3, 3] - pose[:3, 3]) < np.median(position)
    sure = np.diag([1e-8] * 3 + [1e-6] * 3)
    away = pose.copy()
    away[:3, 3] += 5.0
    assert views.starts(features, away, sure, 4) == []


@pytest.mark.parametrize(("expected", "arrives"), [(0.75, False), (1.0, True)])
def test_only_a_pose_that_arrived_gets_a_new_covariance(wall_map, wall, expected, arrives):
    """Arrived is what costs up to 1.2 times what unseen images do, when these all cost the same."""
    made = NefesRefiner(RefineConfig())
    made.load(wall_map, Runtime(threads=1))
    true_cost = Target(made.bundle, wall[2]).render(wall[2].world_from_cam)[1]
    made.bundle.views.cost, made.bundle.views.spread = expected * true_cost, 0.0
    start = wall[2].world_from_cam.copy()
    start[:3, :3] = start[:3, :3] @ so3_exp(np.array([0, 0, np.pi]))
    given = Localization(Status.LOCALIZED, world_from_cam=start, covariance=np.eye(6) * 10.0)
    found = made.refine(wall[2], given)
    assert found.world_from_cam is not start
    assert np.array_equal(found.covariance, given.covariance) != arrives


def test_a_pose_outside_the_field_is_not_refined_and_says_so(refiner, wall, caplog):
    pose = np.eye(4)
    pose[:3, 3] = [50, 0, 0]
    start = Localization(Status.LOCALIZED, world_from_cam=pose)
    found = refiner.refine(wall[0], start)
    assert found.world_from_cam is pose
    assert found.support["likeness"] == pytest.approx(-np.log(2))  # the largest cost
    assert "outside the field" in caplog.text


@pytest.mark.parametrize("mode", ["pose", "weights"])
def test_published_modes_do_not_raise_their_loss(wall_map, wall, mode):
    options = {
        "pose": {"iterations": 6, "learning_rate_rotation": 0.004},
        "weights": {"iterations": 3},
    }
    made = NefesRefiner(RefineConfig(mode=mode, **options[mode]))
    made.load(wall_map, Runtime(threads=1))
    query = wall[5]
    start = perturbed(query.world_from_cam, 0.05, 1.0)
    found = made.refine(query, Localization(Status.LOCALIZED, world_from_cam=start))
    target = Target(made.bundle, query)
    assert target.render(found.world_from_cam)[1] <= target.render(start)[1] + 1e-6
    if mode == "pose":
        assert errors(found.world_from_cam, query.world_from_cam)[0] < 0.05


class Waves(Field):
    """A field in closed form: smooth in the rays, with nothing detached."""

    def __init__(self, scene, channels):
        super().__init__()
        self.scene, self.feature_channels = scene, channels
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(6, 3 + channels, generator=generator))

    def render(self, origins, directions, histograms, generator=None):
        waves = torch.sin(torch.cat([origins, directions], 1) @ self.mix)
        rays = len(origins)
        return Rendering(
            waves[:, :3] / 2 + 0.5, waves[:, 3:], torch.ones(rays), torch.ones(rays, 1),
            torch.ones(rays, 1),
        )  # fmt: skip

    def fuse(self, colours, features):
        return features + colours.mean(1, keepdim=True)


def test_gradient_of_the_pose_by_finite_differences(refiner, wall):
    """The chunked two-pass gradient is that of the loss it reports, for every entry of the pose."""
    channels = len(Target(refiner.bundle, wall[2]).features)
    bundle = replace(refiner.bundle, field=Waves(refiner.bundle.scene, channels))
    target = Target(bundle, wall[2])
    pose = torch.from_numpy(perturbed(wall[2].world_from_cam)[:3])
    _, gradient, _ = rendered_gradient(target, pose)
    for row in range(3):
        for column in range(4):
            step = torch.zeros_like(pose)
            step[row, column] = 5e-3
            high, low = (rendered_gradient(target, pose + s * step)[0] for s in (1, -1))
            assert float(gradient[row, column]) == pytest.approx(
                (high - low) / 1e-2, rel=0.05, abs=2e-4
            )


def test_gradients_of_a_large_image_are_those_of_a_small_one(refiner, wall, monkeypatch):
    """Rendered twice, in chunks, as with one graph."""
    target = Target(refiner.bundle, wall[5])
    pose = torch.from_numpy(perturbed(wall[5].world_from_cam)[:3])
    once = rendered_gradient(target, pose)
    monkeypatch.setattr("nefes_refine.refine.gradient_modes._KEPT", 0)
    monkeypatch.setattr("nefes_refine.refine.gradient_modes._CHUNK", 100)
    twice = rendered_gradient(target, pose)
    assert twice[0] == pytest.approx(once[0], abs=1e-6)
    torch.testing.assert_close(twice[1], once[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice[2], once[2])


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("last_is_better", [True, False])
def test_published_verification_compares_first_and_last_rendering(
    refiner, wall, monkeypatch, ends, last_is_better
):
    """Oracle: a run whose losses and renderings are given. The second pose has the least loss."""
    from nefes_refine.refine import gradient_modes

    target = Target(refiner.bundle, wall[2])
    true = target.colours.permute(2, 0, 1)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.2, true.shape)).float()
    amounts = [0.5, 0.1, 0.3] if last_is_better else [0.5, 0.1, 0.9]
    steps = iter(zip([0.5, 0.1, 0.4], amounts, strict=True))

    def rendered(target, pose, detailed, crop):
        loss, amount = next(steps)
        return loss, torch.ones(3, 4).double() * torch.tensor([0, 0, 0, 1.0]), true + amount * noise

    monkeypatch.setattr(gradient_modes, "rendered_gradient", rendered)
    start = wall[2].world_from_cam
    options = RefineConfig(
        mode="pose", iterations=3, verify_ends=ends, learning_rate_translation=0.01
    )
    found = gradient_modes.refine_pose_mode(target, start, options)
    updates = (1 if not ends else 3) if last_is_better or not ends else 0
    # Adam moves by one learning rate against a constant gradient.
    np.testing.assert_allclose(found[:3, 3], start[:3, 3] - 0.01 * updates, atol=1e-6)


def test_regressor_beats_the_mean_pose(wall_map, wall):
    estimator = NefesEstimator(NefesConfig())
    estimator.load(wall_map, Runtime(threads=1))
    found = [estimator.estimate(wall[i]) for i in range(0, 24, 4)]
    assert all(isinstance(f, PosePrior) for f in found)
    true = np.stack([wall[i].world_from_cam for i in range(0, 24, 4)])
    centre = np.stack([f.world_from_cam for f in wall.frames])[:, :3, 3].mean(0)
    ours = np.linalg.norm(
        np.stack([f.world_from_cam for f in found])[:, :3, 3] - true[:, :3, 3], axis=1
    )
    assert np.median(ours) < 0.8 * np.median(np.linalg.norm(true[:, :3, 3] - centre, axis=1))
    assert found[0].covariance.shape == (6, 6)


def test_a_strange_image_gets_a_wider_covariance(wall_map, wall, make_wall):
    """Oracle: the same regressor, asked about a mapped view and about pictures of nothing there."""
    estimator = NefesEstimator(NefesConfig())
    estimator.load(wall_map, Runtime(threads=1))
    known = estimator.estimate(wall[3])
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 255, wall[3].image.shape), np.full(wall[3].image.shape, 30)):
        strange = estimator.estimate(replace(wall[3], image=pixels.astype(np.uint8)))
        assert np.trace(strange.covariance) > 2 * np.trace(known.covariance)
        assert strange.signals["familiarity"] < known.signals["familiarity"] - 1
    assert set(known.signals) == {"familiarity", "retrieval"}


def test_covariance_grows_with_the_distance_from_the_image_that_looks_alike(wall_map, wall):
    estimator = NefesEstimator(NefesConfig())
    estimator.load(wall_map, Runtime(threads=1))
    bundle = estimator.bundle
    features, pose = Target(bundle, wall[3]).features, wall[3].world_from_cam
    covariance = bundle.covariance.numpy()
    factors, signals = [], []
    for shift in (0.0, 1.0, 3.0):
        moved = pose.copy()
        moved[0, 3] += shift
        found = bundle.novelty.judge(bundle.views, features, moved, covariance)
        factors.append(found[1])
        signals.append(found[0]["retrieval"])
    assert factors[0] < factors[1] < factors[2]
    assert signals[0] > signals[1] > signals[2]


def test_maps_without_novelty_keep_the_constant_covariance(wall_map, wall):
    estimator = NefesEstimator(NefesConfig())
    estimator.load(wall_map, Runtime(threads=1))
    estimator.bundle.novelty = None
    found = estimator.estimate(wall[3])
    np.testing.assert_array_equal(found.covariance, estimator.bundle.covariance.numpy())


def test_images_of_other_shapes_are_cut_not_squeezed(make_wall, config):
    """Oracle: points of the wall project to where the cut image shows them, in portrait too."""
    from nefes_refine.field.views import make_view

    from reloc_core.geometry import project
    from reloc_core.types import Camera, Query

    query = make_wall(3)[1]
    tall = np.ascontiguousarray(np.rot90(query.image, axes=(1, 0)))
    camera = Camera.pinhole(query.camera.fx, tall.shape[1], tall.shape[0])
    view = make_view(Query("tall", camera, image=tall), config.view, (256, 192))
    assert view.image.shape == (192, 256, 3)
    assert view.camera.fx == pytest.approx(view.camera.fy)
    y, x = np.mgrid[20:170:30, 20:240:40]
    rays = np.stack([(x - view.camera.cx) / view.camera.fx, (y - view.camera.cy) / view.camera.fy,
                     np.ones_like(x)], -1)  # fmt: skip
    source, _ = project(camera, rays)
    expected = cv2.remap(tall, source.astype(np.float32), None, cv2.INTER_LINEAR)
    np.testing.assert_allclose(view.image[y, x].astype(int), expected, atol=2)


def test_scene_without_depth_is_measured_by_triangulation(make_wall, config, start_run, tmp_path):
    from nefes_refine.field.data import mapped_frames, read_images, scene_points
    from nefes_refine.field.features import XFeatFeatures

    wall = make_wall(depth=False)
    run = start_run(tmp_path / "map", config, wall)
    images = read_images(wall, mapped_frames(wall, 24), config, run, XFeatFeatures())
    points = scene_points(wall, images, config, run)
    assert len(points) > 100
    assert np.median(np.abs(points[:, 2] - 2.0)) < 0.1  # a pixel is 6 cm over this baseline


def test_interrupted_training_resumes(tmp_path, wall, config, start_run):
    config.training.checkpoint_seconds = 0.0
    config.regressor.epochs = 1
    run = start_run(tmp_path / "map", config, wall)
    stopped = run.map.save_checkpoint
    count = 0

    def save(tensors, metadata):
        nonlocal count
        stopped(tensors, metadata)
        count += 1
        if count == 30:
            raise KeyboardInterrupt

    run.map.save_checkpoint = save
    with pytest.raises(KeyboardInterrupt):
        NefesEstimator(config).fit(wall, run)
    again = start_run(tmp_path / "map", config, wall)
    assert again.map.load_checkpoint()[1]["step"] == 30
    NefesEstimator(config).fit(wall, again)
    again.map.finish()
    config.training.checkpoint_seconds = 1e9
    whole = start_run(tmp_path / "whole", config, wall)
    NefesEstimator(config).fit(wall, whole)
    whole.map.finish()
    one, other = (load_tensors(tmp_path / n / "nefes.safetensors")[0] for n in ("map", "whole"))
    torch.testing.assert_close(
        one["field.trunk.0.weight"], other["field.trunk.0.weight"], rtol=1e-3, atol=1e-4
    )


def test_too_few_images_are_refused(make_wall, config, tmp_path, start_run):
    wall = make_wall(4)
    with pytest.raises(DataError, match="at least 8"):
        NefesEstimator(config).fit(wall, start_run(tmp_path / "map", config, wall))


def test_field_of_another_feature_network_is_refused(wall_map, monkeypatch):
    from nefes_refine.field.features import XFeatFeatures

    monkeypatch.setattr(XFeatFeatures, "identity", property(lambda self: "another"))
    with pytest.raises(MapError, match="other weights of the feature network"):
        NefesRefiner(RefineConfig()).load(wall_map, Runtime(threads=1))


def test_use_before_load_is_refused(wall):
    with pytest.raises(MapError, match="no map yet"):
        NefesEstimator(NefesConfig()).estimate(wall[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "features", "sift"), "estimator.features"),
        (lambda c: setattr(c.training, "rays", 0), "training.rays"),
        (lambda c: setattr(c.scene, "world_setup", "x.json"), "belong together"),
        (lambda c: setattr(c.view, "stride", 4), "stride must be 8"),
    ],
)
def test_options_that_make_no_sense(change, message):
    config = NefesConfig()
    change(config)
    with pytest.raises(ConfigError, match=message):
        NefesEstimator(config)
    with pytest.raises(ConfigError, match="mode"):
        NefesRefiner(RefineConfig(mode="aline"))


def test_validation_images_are_spread():
    assert held_out(400, 40).sum() == 10
    assert held_out(9, 40).sum() >= 4
    assert not held_out(400, 40)[[0, -1]].any()

"""Mapping the synthetic room, localizing in it, refining, and what goes wrong."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from gsplat_loc.config import GsplatConfig, InitConfig, RefineConfig
from gsplat_loc.estimator import GsplatEstimator, rendered_psnr
from gsplat_loc.field.fieldmap import load_field
from gsplat_loc.field.render import physical
from gsplat_loc.mapping.features import DescriptorMaps, blend
from gsplat_loc.mapping.initialise import initialise
from gsplat_loc.mapping.survey import survey
from gsplat_loc.mapping.views import Views
from gsplat_loc.refine.gauss_newton import motion_to
from gsplat_loc.refiner import GsplatRefiner
from gsplat_room import RUNTIME, SIZE, small_config

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.errors import ConfigError, DataError, MapError
from reloc_core.geometry import inverse, project, so3_exp, transform
from reloc_core.interfaces import Dataset
from reloc_core.maps import Map, load_tensors, save_tensors
from reloc_core.rendering import rasterize
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Localization, Query, Status


def errors(pose, truth):
    motion = motion_to(truth, pose)
    return 100 * np.linalg.norm(motion[3:]), np.degrees(np.linalg.norm(motion[:3]))


def test_localizes_and_a_loaded_map_agrees(trained, queries):
    estimator, scene_map = trained
    loaded = GsplatEstimator(small_config())
    loaded.load(scene_map, RUNTIME)
    solver = PnpSolver(PnpConfig())
    found = []
    for query in queries:
        evidence = estimator.estimate(query)
        again = loaded.estimate(query)
        np.testing.assert_allclose(again.points3d, evidence.points3d, atol=1e-6)
        pose = solver.solve(evidence, query.camera, RUNTIME).world_from_cam
        found.append(errors(pose, query.world_from_cam))
    assert np.median(found, 0)[0] < 5
    assert np.median(found, 0)[1] < 1


def test_gaussians_with_trusted_descriptors_match_where_they_are(trained, queries):
    config = small_config()
    config.match.target = "gaussians"
    config.match.min_similarity = 0.6
    config.features.max_scale = 0.0
    config.features.min_opacity = 0.1
    estimator = GsplatEstimator(config)
    estimator.load(trained[1], RUNTIME)
    evidence = estimator.estimate(queries[1])
    local = transform(inverse(queries[1].world_from_cam), evidence.points3d)
    pixels, front = project(queries[1].camera, local)
    near = front & (np.linalg.norm(pixels - evidence.points2d, axis=1) < 15)
    # By chance two in a hundred.
    assert len(near) > 10
    assert near.mean() > 0.15


def test_the_field_looks_like_the_room(trained, room):
    field = load_field(trained[1], "cpu")
    views = Views(room, np.array([3, 20]), 120, 10)
    assert min(rendered_psnr(field, views, i, 1) for i in range(2)) > 17


def disturbed(query, seed, centimetres=4.0, degrees=1.0):
    rng = np.random.default_rng(seed)
    w, t = rng.standard_normal((2, 3))
    step = np.eye(4)
    step[:3, :3] = so3_exp(np.radians(degrees) * w / np.linalg.norm(w))
    step[:3, 3] = centimetres / 100 * t / np.linalg.norm(t)
    return Localization(Status.LOCALIZED, world_from_cam=query.world_from_cam @ step)


def refined_errors(scene_map, queries, off=(4.0, 1.0), **options):
    refiner = GsplatRefiner(RefineConfig(**options))
    refiner.load(scene_map, RUNTIME)
    found = []
    for seed, query in enumerate(queries):
        given = disturbed(query, seed, *off)
        result = refiner.refine(query, given)
        found.append(errors(result.world_from_cam, query.world_from_cam)[0])
    return np.array(found)


@pytest.mark.parametrize("mode", ["photometric", "keypoints"])
def test_refinement_improves_disturbed_poses(trained, queries, mode):
    assert np.median(refined_errors(trained[1], queries, mode=mode)) < 0.7 * 4.0


def test_rendered_descriptors_bring_far_poses_near(trained, queries):
    """From where colours do not lead back."""
    far = (30.0, 8.0)
    assert np.median(refined_errors(trained[1], queries, far, mode="features")) < 10
    assert np.median(refined_errors(trained[1], queries, far, mode="photometric")) > 15


def test_the_released_warp_moves_no_farther_than_its_steps(trained, queries):
    options = {"mode": "warp", "resolution": 60, "warp_safe": False, "warp_iters": 10}
    moved = refined_errors(trained[1], queries, **options)
    assert (np.abs(moved - 4.0) > 1e-3).all()
    # Ten steps of 5e-4 along each axis and in the quaternion, camera centre 3 m from the origin.
    assert (np.abs(moved - 4.0) < 100 * 10 * 5e-4 * (3**0.5 + 2 * 6)).all()


def test_poses_that_show_nothing_come_back_unchanged(trained, queries):
    refiner = GsplatRefiner(RefineConfig(resolution=120))
    refiner.load(trained[1], RUNTIME)
    query = queries[0]
    away = np.eye(4)
    away[:3, 3] = 1e3
    inside = query.world_from_cam.copy()
    inside[:3, 3] = refiner.map.gaussians.means[0].numpy() + refiner.map.origin
    for pose in (away, inside):
        given = Localization(Status.LOCALIZED, world_from_cam=pose)
        result = refiner.refine(query, given)
        assert result.localized
        assert np.isfinite(result.world_from_cam).all()
    given = Localization(Status.LOCALIZED, world_from_cam=away)
    assert refiner.refine(query, given) is given


def test_a_view_with_less_of_the_map_is_less_certain(trained, queries):
    """More than the missing pixels alone would say: there, the map itself is extrapolated."""
    field, query = load_field(trained[1], "cpu"), queries[0]
    refiner = GsplatRefiner(RefineConfig(resolution=120))
    given = Localization(Status.LOCALIZED, world_from_cam=query.world_from_cam)
    world = field.gaussians.means.numpy() + field.origin
    half = torch.from_numpy(transform(inverse(query.world_from_cam), world)[:, 0] < 0)
    variances = []
    for gaussians in (field.gaussians, field.gaussians.rows(half)):
        refiner.use(replace(field, gaussians=gaussians), RUNTIME)
        covariance = refiner.refine(query, given).covariance
        assert covariance is not None
        variances.append(np.trace(covariance[3:, 3:]))
    # Half of the pixels double the variance; their share of one half cubed is another 8.
    assert variances[1] > 8 * variances[0]


def test_blank_queries_are_no_exception(trained, queries):
    query = queries[0]
    blank = Query(query.name, query.camera, image=np.full_like(query.image, 90))
    assert len(trained[0].estimate(blank).points2d) == 0
    refiner = GsplatRefiner(RefineConfig(resolution=120))
    refiner.load(trained[1], RUNTIME)
    result = refiner.refine(blank, disturbed(query, 0))
    assert np.isfinite(result.world_from_cam).all()


def test_pictures(trained, queries):
    estimator, scene_map = trained
    refiner = GsplatRefiner(RefineConfig(resolution=120))
    refiner.load(scene_map, RUNTIME)
    query = queries[0]
    localization = disturbed(query, 0)
    refined = replace(localization, stages=(("solve", localization.world_from_cam),))
    shown = {**estimator.pictures(query, refined), **refiner.pictures(query, refined)}
    assert len(shown) == 7
    for title, image in shown.items():
        assert image.dtype == np.uint8, title
        assert image.shape == (240, 320, 3), title
        assert image.std() > 5, title


def test_interrupted_training_resumes_to_the_same_field(room, make_run, tmp_path):
    config = small_config()
    config.features.mode = "none"
    config.train.iterations = 30
    config.densify.start, config.densify.interval = 5, 10
    config.init.count = 2000
    config.train.checkpoint_seconds = 0.0
    config.match.target = "anchors"
    whole = make_run(tmp_path / "whole")
    GsplatEstimator(config).fit(room, whole)

    broken = make_run(tmp_path / "broken")
    saved = broken.map.save_checkpoint

    def stop_at_17(tensors, metadata):
        saved(tensors, metadata)
        if metadata["iteration"] == 17:
            raise KeyboardInterrupt

    broken.map.save_checkpoint = stop_at_17
    with pytest.raises(KeyboardInterrupt):
        GsplatEstimator(config).fit(room, broken)
    resumed = make_run(tmp_path / "broken")
    GsplatEstimator(config).fit(room, resumed)
    first, second = (load_tensors(r.map.partial / "field.safetensors")[0] for r in (whole, resumed))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


# ------------------------------------------------------------------------------------- bad input


def test_no_depth_is_said(make_run, tmp_path):
    dataset = SyntheticDataset(SyntheticConfig(**SIZE, depth=False))
    config = small_config()
    config.init.source = "depth"
    with pytest.raises(DataError, match="no depth images to start from"):
        GsplatEstimator(config).fit(dataset, make_run(tmp_path / "a"))
    config.init.source = "points"
    with pytest.raises(DataError, match="no SfM model beside the images"):
        GsplatEstimator(config).fit(dataset, make_run(tmp_path / "b"))


class MixedSizes(Dataset):
    """Every second image of another dataset at five eighths of its size, without depth."""

    def __init__(self, whole):
        self.whole = whole

    name = "mixed sizes"

    @property
    def frames(self):
        return [
            replace(frame, camera=frame.camera.scaled(200, 150)) if i % 2 else frame
            for i, frame in enumerate(self.whole.frames)
        ]

    def __getitem__(self, index):
        query = replace(self.whole[index], depth=None)
        if index % 2 == 0:
            return query
        image = cv2.resize(query.image, (200, 150), interpolation=cv2.INTER_AREA)
        return replace(query, image=image, camera=query.camera.scaled(200, 150))


def test_matched_key_points_lie_on_surfaces(room, make_run, tmp_path):
    """Triangulated without depth from images of two sizes, compared with the room's exact depth."""
    mixed = MixedSizes(room)
    run = make_run(tmp_path / "a")
    seen = survey(mixed, np.arange(len(mixed)), small_config().anchors, run)
    views = Views(mixed, np.arange(len(mixed)), 120, 100)
    start = initialise(mixed, views, InitConfig(), 0, run, seen)
    assert start.source == "triangulate"
    assert seen.plan.keypoints > 768  # few images are looked at closer
    query = room[10]
    world = start.gaussians.means.double().numpy() + start.origin
    local = transform(inverse(query.world_from_cam), world)
    pixels, front = project(query.camera, local)
    inside = front & (pixels > 0).all(1) & (pixels < [319, 239]).all(1)
    column, row = np.rint(pixels[inside]).astype(int).T
    truth = query.depth[row, column]
    error = np.abs(local[inside, 2] - truth) / truth
    assert inside.sum() > 50
    # Points hidden in this view count against it.
    assert np.median(error) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": None}, "lacks 'means'"),
        ({"means": float("nan")}, "'means' that is not finite"),
        ({"quaternions": "narrow"}, "'quaternions' has shape"),
    ],
)
def test_damaged_maps_are_refused(trained, tmp_path, change, message):
    import shutil

    import yaml

    path = tmp_path / "map"
    shutil.copytree(trained[1].path, path)
    tensors, metadata = load_tensors(path / "field.safetensors")
    for name, value in change.items():
        if value is None:
            del tensors[name]
        elif value == "narrow":
            tensors[name] = tensors[name][:, :3].contiguous()
        else:
            tensors[name][5] = value
    save_tensors(path / "field.safetensors", tensors, metadata)
    content = yaml.safe_load((path / "map.yaml").read_text())
    import hashlib

    data = (path / "field.safetensors").read_bytes()
    content["files"]["field.safetensors"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (path / "map.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(MapError, match=message):
        GsplatEstimator(small_config()).load(Map.open(path), RUNTIME)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("init", "source", "dept", "Did you mean 'depth'"),
        ("init", "path", "/nowhere/at/all", "there is no /nowhere"),
        ("gaussians", "sh_degree", 4, "0..3"),
        ("match", "target", "anchor", "Did you mean 'anchors'"),
        ("train", "lambda_dssim", 1.5, "between 0 and 1"),
    ],
)
def test_wrong_options_are_named(section, key, value, message):
    config = GsplatConfig()
    setattr(getattr(config, section), key, value)
    with pytest.raises(ConfigError, match=message):
        GsplatEstimator(config)


def test_wrong_refiner_options_are_named():
    with pytest.raises(ConfigError, match="Did you mean 'photometric'"):
        GsplatRefiner(RefineConfig(mode="photo"))
    with pytest.raises(ConfigError, match="levels"):
        GsplatRefiner(RefineConfig(levels=0))


# ------------------------------------------------------------------------------------- blending


class Counting(SyntheticDataset):
    """Counts how often images are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_blended_descriptors_are_learnt_within_the_memory(trained, make_run, tmp_path):
    scene = trained[0].map
    options = small_config().features
    options.images, options.iterations, options.learning_rate = 4, 12, 0.05
    found = {}
    for cache_mb in (0, 1, 500):
        dataset = Counting(SyntheticConfig(**SIZE))
        views = Views(dataset, np.arange(len(dataset)), 120, 0)
        options.cache_mb = cache_mb
        maps = DescriptorMaps(views, options, scene.origin, "cpu", cache_mb)
        for _ in range(2):
            for i in range(len(maps)):
                maps[i]
        assert sum(kept.nbytes for _, kept in maps._kept.values()) <= cache_mb * 1e6
        # 30 x 40 cells of 64 halves: six maps fit a megabyte.
        assert dataset.reads == {0: 8, 1: 4, 500: 4}[cache_mb]
        run = make_run(tmp_path / f"{cache_mb}")
        found[cache_mb] = blend(scene.gaussians, views, options, scene.placement(1), run)
    torch.testing.assert_close(found[0].features, found[500].features, atol=0, rtol=0)
    view, target = maps[1]
    errors = {}
    for name, table in (
        ("blend", found[0].features),
        ("none", torch.zeros_like(found[0].features)),
    ):
        drawn = rasterize(physical(scene.gaussians), table.float(), view, threads=1).image
        errors[name] = float((drawn - target).abs().mean())
    assert errors["blend"] < 0.9 * errors["none"]

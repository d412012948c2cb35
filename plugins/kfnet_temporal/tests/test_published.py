"""The published training, with narrow networks where the width does not matter."""

import numpy as np
import pytest
import torch
from kfnet_temporal.common.labels import DepthLabels, labels_at
from kfnet_temporal.config import MeasurementConfig, TemporalConfig
from kfnet_temporal.estimator import TemporalEstimator
from kfnet_temporal.measurement_config import LabelConfig, ScoordnetConfig
from kfnet_temporal.published import scoordnet
from kfnet_temporal.published.augment import (
    corner_pixels,
    draw_motion,
    jitter,
    moved_image,
    moved_pixels,
    scaled_rgb,
    scaled_size,
)
from kfnet_temporal.published.measurement import ScoordnetEstimator
from kfnet_temporal.published.objectives import flow_loss, window_loss
from kfnet_temporal.published.oflownet import OFlowNet
from kfnet_temporal.published.process import OflowProcess, whole_window
from kfnet_temporal.published.training import Scene, read_window

from reloc_core.errors import ConfigError, DataError
from reloc_core.interfaces import Runtime
from reloc_core.training.streams import numpy_rng, torch_rng


@pytest.fixture
def narrow(monkeypatch):
    layers = [(n, k, max(4, o // 16) if o > 4 else o, s) for n, k, o, s in scoordnet.LAYERS]
    monkeypatch.setattr(scoordnet, "LAYERS", tuple(layers))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    process = OFlowNet()
    parts = {"feat": 0, "fc": 0, "rest": 0}
    for name, p in process.named_parameters():
        key = "feat" if name.startswith("feat") else "fc" if name[:2] in ("fc", "un") else "rest"
        parts[key] += p.numel()
    assert parts == {"feat": 180_512, "fc": 10_369, "rest": 500_817}
    with torch.device("meta"):
        network = scoordnet.SCoordNet()
    assert count(network) == 24_406_724
    assert count(network) + count(process) == 25_098_422


def distances_as_logits(network):
    """Weights by which the regularisation answers -1000 times the L1 distance of half the channels.

    Through the window's skip connection: conv0 keeps both signs of a difference, conv6 adds them up.
    """
    with torch.no_grad():
        for name, p in network.named_parameters():
            if not name.startswith("feat"):
                p.zero_()
        for i in range(16):
            network.conv0.weight[2 * i, i, 1, 1] = 1.0
            network.conv0.weight[2 * i + 1, i, 1, 1] = -1.0
        network.conv6.weight[0, 16:, 1, 1] = 1.0
        network.prediction.weight[0, 0, 1, 1] = -1000.0


def test_the_readout_of_the_published_network_finds_a_translated_texture():
    """From images to flow, with every reachable displacement of an axis: within a tenth of a cell."""
    torch.manual_seed(0)
    network = OFlowNet()
    distances_as_logits(network)
    rng = np.random.default_rng(0)
    texture = torch.from_numpy(rng.uniform(0, 255, (1, 3, 256, 256)).astype(np.float32))

    def shown(x, y):
        """Features of the texture from a corner, in cells; the image is 24 cells wide."""
        return network.features(texture[..., 8 * y : 8 * y + 192, 8 * x : 8 * x + 192])

    with torch.no_grad():
        current = shown(4, 4)
        for dx, dy in ((0, 0), (-4, 3), (3, -4), (-3, -2), (-1, 2), (2, 1), (1, -1), (-2, 0)):
            # What is at cell p now was at p + (dx, dy): the older image shows it further on.
            flow, std = network(shown(4 - dx, 4 - dy), current)
            inner = flow[0, :, 8:-8, 8:-8]  # away from what the borders reach
            expected = torch.tensor([dx, dy], dtype=torch.float32)[:, None, None].expand_as(inner)
            torch.testing.assert_close(inner, expected, atol=0.1, rtol=0)
            torch.testing.assert_close(std, torch.full_like(std, 0.01))


def paper_config(resolution=96):
    config = TemporalConfig()
    config.measurement = MeasurementConfig(
        "kfnet_scoordnet", {"resolution": resolution, "iterations": 3, "batch": 2}
    )
    p, j = config.process, config.joint
    p.name, p.resolution, p.iterations, p.min_std = "oflownet", resolution, 3, 1e-5
    p.learning_rate, p.halve_every, p.noise = 1e-3, 100_000, [0.0, 0.0]
    p.smooth_weight, p.photometric_weight, p.augment = 50.0, 2.0, True
    j.window, j.iterations, j.loss_clamp, j.smooth_weight = 3, 3, 20.0, 50.0
    j.learning_rate, j.halve_every = 1e-4, 1000
    config.filter.policy, config.filter.common_gain = "use_measurement", 0.0
    return config


def descend(parameters, loss_of, steps, rate):
    optimizer = torch.optim.Adam(parameters, rate)
    first = None
    for _ in range(steps):
        loss = loss_of()
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return first, float(loss_of().detach())


def test_every_stage_lowers_its_loss(narrow, film):
    data, labels = film(8), DepthLabels()
    torch.manual_seed(0)
    measurement = ScoordnetEstimator(ScoordnetConfig(resolution=96, batch=2))
    measurement.network = scoordnet.SCoordNet()
    first, last = descend(
        measurement.network.parameters(),
        lambda: measurement.step_loss(data, labels, 0, 0),
        20,
        1e-3,
    )
    assert last < first - 0.5
    config, process = paper_config(), OflowProcess(96, 1e-5)
    scene = Scene(data, labels, np.eye(4))
    rng = numpy_rng(0, "test", 0)
    window = read_window(scene, range(2), 96, rng, augment=False, zoom=False)

    def flow():
        features = process.network.features(window.images)
        return flow_loss(
            process, features, window.labels, window.cells, config, 0.0, torch_rng(0, "test", 1)
        )

    config.process.loss_clamp = 50.0
    first, last = descend(process.network.parameters(), flow, 5, 1e-3)
    assert last < first
    config.process.loss_clamp = -1.0
    triple = read_window(scene, range(3), 96, rng, augment=False, zoom=False)
    both = [*measurement.network.parameters(), *process.network.parameters()]

    def joint():
        points, variances = measurement.measure(triple.images)
        features = process.network.features(triple.images)
        return window_loss(
            process, points, variances, features, triple.labels, triple.cells, config
        )

    first, last = descend(both, joint, 5, 1e-3)
    assert last < first


def test_all_three_stages_and_back_from_the_map(narrow, film, start_run, tmp_path):
    data = film(8)
    run = start_run(tmp_path / "map", data)
    estimator = TemporalEstimator(paper_config())
    estimator.fit(data, run)
    scene_map = run.map.finish()
    loaded = TemporalEstimator(paper_config())
    loaded.load(scene_map, Runtime(threads=1))
    for one in (estimator, loaded):
        one.start_sequence()
    for i in range(3):
        a, b = (e.estimate(data[i].without_ground_truth()) for e in (estimator, loaded))
        np.testing.assert_allclose(a.points3d, b.points3d, atol=1e-4)
    np.testing.assert_allclose(a.points2d[:2], [[0.25, 0.25], [12.25, 0.25]])


def test_networks_of_different_resolutions_are_refused(narrow, film, start_run, tmp_path):
    config = paper_config()
    config.measurement.options["resolution"] = 64
    with pytest.raises(ConfigError, match="must agree"):
        TemporalEstimator(config).fit(film(8), start_run(tmp_path / "map", film(8)))


def test_a_sliver_does_not_grow_to_a_hundred_megapixels():
    assert scaled_size(640, 480, 96) == (128, 96)
    assert scaled_size(640, 3, 96) == (384, 8)
    assert scaled_rgb(np.zeros((4000, 2, 3), np.uint8), 480).shape == (1920, 8, 3)
    pixels, shape = corner_pixels((4000, 2), 480)
    assert shape == (240, 1)
    assert (pixels > -0.5).all()
    assert (pixels < [1.5, 3999.5]).all()


def test_labels_follow_the_augmented_image(film):
    """Turned and zoomed, a cell's label is the scene point that the cell then shows."""
    data = film(3)
    query = data[1]
    estimator = ScoordnetEstimator(ScoordnetConfig(resolution=96))
    rgb = scaled_rgb(query.image, 96)
    motion = draw_motion(np.random.default_rng(5), *rgb.shape[:2], True)
    assert not np.allclose(motion, np.eye(2, 3))
    found = estimator.moved_labels(1, query, DepthLabels(), motion).reshape(3, -1).T.numpy()
    pixels, _ = corner_pixels(query.image.shape[:2], 96)
    places = (moved_pixels((pixels + 0.5) * 96 / 144 - 0.5, motion) + 0.5) * 144 / 96 - 0.5
    expected = labels_at(query, places)
    known = np.isfinite(found).all(1)
    assert 0.3 < known.mean() <= 1
    np.testing.assert_allclose(found[known], expected[known], atol=1e-5)
    # The image moves as the labels do: a smooth ramp keeps its value.
    ramp = np.tile(np.arange(128, dtype=np.float32), (96, 1))
    moved = moved_image(ramp, motion)
    y, x = 40, 60
    source = moved_pixels(np.array([[x, y]], float), motion)[0, 0]
    assert moved[y, x] == pytest.approx(source, abs=0.1)


def test_jitter_keeps_the_mean_but_for_brightness():
    image = np.random.default_rng(0).uniform(0, 255, (20, 30, 3)).astype(np.float32)
    found = jitter(image, 12.0, 0.9)
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)) + 12, rtol=1e-4)
    np.testing.assert_allclose(found.std((0, 1)), 0.9 * image.std((0, 1)), rtol=1e-4)


def test_whole_window_needs_all_sixty_four():
    known = torch.ones(20, 20, dtype=torch.bool)
    known[10, 10] = False
    found = whole_window(known)
    expected = torch.zeros(20, 20, dtype=torch.bool)
    for y in range(20):
        for x in range(20):
            if 4 <= y <= 16 and 4 <= x <= 16:
                expected[y, x] = bool(known[y - 4 : y + 4, x - 4 : x + 4].all())
    assert torch.equal(found, expected)


def test_schedule_of_the_third_stage():
    config = paper_config()
    config.joint.learning_rate, config.joint.halve_every = 6.25e-6, 100
    assert config.joint.rate(100) == pytest.approx(3.125e-6)
    config.joint.halve_every, config.joint.iterations = 0, 10
    assert config.joint.rate(5) == pytest.approx(3.125e-6)


def test_scoordnet_needs_labels(film, start_run, tmp_path):
    data = film(4, depth=False)
    config = ScoordnetConfig(resolution=96, labels=LabelConfig("depth"))
    with pytest.raises(DataError, match="no depth"):
        ScoordnetEstimator(config).fit(data, start_run(tmp_path / "m", data))

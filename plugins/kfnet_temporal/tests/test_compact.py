"""The narrow networks: trained in three stages, and each against what it must be able to do."""

import cv2
import numpy as np
import pytest
import torch
from kfnet_temporal.common.labels import labels_at
from kfnet_temporal.common.losses import likelihood
from kfnet_temporal.compact.bank import FeatureBank
from kfnet_temporal.compact.measurement import Cells, NarrowEstimator
from kfnet_temporal.compact.networks import NarrowScoordNet, bordered
from kfnet_temporal.compact.process import NarrowProcess
from kfnet_temporal.config import MeasurementConfig, TemporalConfig
from kfnet_temporal.estimator import TemporalEstimator
from kfnet_temporal.measurement_config import NarrowConfig
from kfnet_temporal.published.objectives import flow_loss

from reloc_core.errors import DataError
from reloc_core.interfaces import Runtime


def small_config(iterations=400):
    config = TemporalConfig()
    config.measurement = MeasurementConfig(
        "kfnet_narrow",
        {"resolution": 144, "channels": 64, "blocks": 1, "iterations": iterations, "batch": 256,
         "learning_rate": 1e-2, "augment": False},
    )  # fmt: skip
    p, j = config.process, config.joint
    p.name, p.resolution, p.divide, p.iterations, p.learning_rate = "narrow", 144, 4, 20, 1e-3
    p.min_std, p.noise, p.smooth_weight, p.photometric_weight = 1e-5, [0.0, 0.0], 50.0, 2.0
    j.window, j.iterations, j.learning_rate, j.loss_clamp = 4, 5, 1e-4, -2.0
    j.frames, j.stretches, j.held_out = 24, 2, 0.3
    config.filter.policy = "use_measurement"
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, film, start_run):
    data = film(40)
    run = start_run(tmp_path_factory.mktemp("maps") / "map", data)
    estimator = TemporalEstimator(small_config())
    estimator.fit(data, run)
    return estimator, run.map.finish(), data


def test_three_stages_and_back_from_the_map(trained):
    estimator, scene_map, data = trained
    loaded = TemporalEstimator(small_config())
    loaded.load(scene_map, Runtime(threads=1))
    for one in (estimator, loaded):
        one.start_sequence()
    errors = []
    for i in range(8):
        query = data[i]
        a, b = (e.estimate(query.without_ground_truth()) for e in (estimator, loaded))
        np.testing.assert_allclose(a.points3d, b.points3d, atol=1e-4)
        errors.append(np.linalg.norm(a.points3d - labels_at(query, a.points2d), axis=1))
    # Frames 0 to 5 were held out; the wall is 4 m wide.
    assert np.nanmedian(np.concatenate(errors)) < 0.15
    assert estimator.measurement.bank is None  # not held for the rest of its life


def test_the_same_seed_trains_the_same_map(trained, film, start_run, tmp_path):
    run = start_run(tmp_path / "again", film(40))
    again = TemporalEstimator(small_config())
    again.fit(film(40), run)
    for a, b in zip(again.process.parameters(), trained[0].process.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_cells_are_drawn_with_their_neighbours_and_labels():
    torch.manual_seed(0)
    features, labels = torch.randn(2, 64, 5, 7).half(), torch.randn(2, 3, 5, 7)
    labels[0, :, 2, 3] = torch.nan
    cells = Cells(FeatureBank(features, labels, torch.zeros(2, 1, 5, 7), 2))
    patches, points = cells.draw(200, torch.Generator().manual_seed(1))
    assert len(cells.known) == 69
    network = NarrowScoordNet(16, 1)
    with torch.no_grad():
        whole, std = network(bordered(features.float()))
        single, single_std = network(patches)
    assert whole.shape == (2, 3, 5, 7)
    for patch, deviation, point in zip(
        single[..., 0, 0], single_std[..., 0, 0], points, strict=True
    ):
        i, y, x = np.argwhere((labels == point[None, :, None, None]).all(1).numpy())[0]
        torch.testing.assert_close(patch, whole[i, :, y, x], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(deviation, std[i, y, x], atol=1e-4, rtol=1e-4)


def test_the_predicted_deviation_learns_the_error():
    """Two kinds of cells, one four times as noisy as the other; their features tell which."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    kind = torch.randint(2, (4096,), generator=generator).float()
    features = torch.zeros(4096, 64, 3, 3)
    features[:, 0] = kind[:, None, None]
    noise = torch.randn(4096, 3, generator=generator) * (0.02 + 0.06 * kind[:, None])
    network = NarrowScoordNet(16, 1)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(300):
        points, std = network(features)
        loss = likelihood(points, std.square(), noise[..., None, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        std = network(features)[1][:, 0, 0]
    assert float(std[kind == 0].mean()) == pytest.approx(0.02, rel=0.15)
    assert float(std[kind == 1].mean()) == pytest.approx(0.08, rel=0.15)


def shifted(maps, index, dx, dy, size=12):
    """Feature maps of the last frame and of this one, in which cell p was at p + (dx, dy)."""
    last = maps[index : index + 1, :, 4 - dy : 4 - dy + size, 4 - dx : 4 - dx + size]
    return last, maps[index : index + 1, :, 4 : 4 + size, 4 : 4 + size]


def test_the_narrow_flow_recovers_a_translation():
    """By the loss of stage 2 on a plane: within a tenth of a cell, on maps that it has not seen."""
    torch.manual_seed(0)
    config, rng = small_config(), np.random.default_rng(0)
    process, config.process.loss_clamp = NarrowProcess(144, 1e-5, 4), 50.0
    config.process.smooth_weight = config.process.photometric_weight = 0.0
    noise = rng.normal(size=(12, 20, 20, 64)).astype(np.float32)
    maps = torch.from_numpy(np.stack([cv2.GaussianBlur(m, (0, 0), 0.8) for m in noise]))
    maps = torch.nn.functional.normalize(maps.permute(0, 3, 1, 2), dim=1)
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    plane = 0.02 * torch.stack([x, y, torch.full_like(x, 50.0)])[None]  # 2 cm per cell
    optimizer = torch.optim.Adam(process.network.parameters(), 3e-3)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 120)
        shift = rng.integers(-3, 4, 2)
        features = torch.cat(shifted(maps, int(rng.integers(10)), *shift))
        labels = torch.cat(shifted(plane, 0, *shift))
        cells = torch.zeros(2, 1, 12, 12)
        loss = flow_loss(process, features, labels, cells, config, 0.0, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(process.network.parameters(), 10.0)
        optimizer.step()
    with torch.no_grad():
        for shift in ((0, 0), (2, -1), (-3, 1)):
            motion = process.motion(*(m[0] for m in shifted(maps, 11, *shift)))
            found = motion.flow[:, 4:-4, 4:-4].flatten(1).median(1).values
            np.testing.assert_allclose(found, shift, atol=0.1)


def test_images_of_two_sizes_cannot_be_mapped(film, start_run, tmp_path):
    from dataclasses import replace

    from reloc_core.types import Camera

    data = film(12)
    data._frames[5] = replace(data._frames[5], camera=Camera.pinhole(80.0, 96, 72))
    with pytest.raises(DataError, match="2 sizes"):
        NarrowEstimator(NarrowConfig(resolution=96, iterations=1)).fit(
            data, start_run(tmp_path / "map", data, "kfnet_narrow")
        )

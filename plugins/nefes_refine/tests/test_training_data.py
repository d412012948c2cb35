"""What training reads and draws: masks, and random views at the scale of the scene."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from nefes_refine.config import RegressorConfig
from nefes_refine.estimator import NefesEstimator
from nefes_refine.field.data import read_images
from nefes_refine.field.synthetic_views import median_depth, random_poses
from nefes_refine.field.training import FieldTrainer
from nefes_refine.target import Target

from reloc_core.errors import DataError
from reloc_core.geometry import rotation_angle_deg
from reloc_core.interfaces import Runtime


def no_features(image):
    return torch.zeros(4, image.shape[0] // 8, image.shape[1] // 8)


def write_masks(folder, wall, moving):
    """Masks whose rectangle `moving` (y0, y1, x0, x1 in shares of the image) is dynamic."""
    folder.mkdir()
    for frame in wall.frames:
        mask = np.full((frame.camera.height, frame.camera.width), 255, np.uint8)
        y0, y1, x0, x1 = moving
        rows, columns = mask.shape
        mask[int(y0 * rows) : int(y1 * rows), int(x0 * columns) : int(x1 * columns)] = 0
        cv2.imwrite(str(folder / f"{frame.name}.png"), mask)


def test_masked_cells_are_never_trained_on(tmp_path, wall, config, start_run, wall_map):
    write_masks(tmp_path / "masks", wall, (0, 0.5, 0, 1))
    config.training.masks = str(tmp_path / "masks")
    run = start_run(tmp_path / "map", config, wall)
    images = read_images(wall, np.arange(6), config, run, no_features)
    rows, columns = images.shape
    static = images.valid.view(-1, rows, columns)
    assert not static[:, : rows // 2].any()
    assert static[:, rows // 2 :].all()
    assert not images.depths.view(-1, rows, columns)[:, : rows // 2].any()
    loaded = NefesEstimator(config)
    loaded.load(wall_map, Runtime(threads=1))
    field = loaded.bundle.field
    trainer = FieldTrainer(config.training, field, images, 0)
    batch = trainer._rays(torch.Generator().manual_seed(0))
    assert len(batch.cells) > 100
    assert int(batch.cells.min()) >= rows // 2 * columns
    # Colours behind the masks change nothing, whole patches included.
    patches = trainer._patches(torch.Generator().manual_seed(0))
    rendering = trainer.render(patches)
    loss = float(trainer.loss(rendering, patches, "colour"))
    images.colours[~images.valid] = 1 - images.colours[~images.valid]
    assert float(trainer.loss(rendering, patches, "colour")) == loss


def test_the_published_histogram_is_that_of_the_image(
    tmp_path, wall, config, start_run, monkeypatch
):
    """Oracle: a chequered image is half black, half white; the means of its cells are grey."""
    y, x = np.mgrid[:192, :256]
    pixels = np.repeat(255 * ((x + y) % 2).astype(np.uint8)[..., None], 3, 2)
    query = replace(wall[0], image=pixels)
    monkeypatch.setattr(type(wall), "__getitem__", lambda self, index: query)
    run = start_run(tmp_path / "map", config, wall)
    bundle = SimpleNamespace(config=config, features=no_features, device=torch.device("cpu"))
    for whole, expected in ((False, ({4: 100}, {5: 100})), (True, ({0: 50, 9: 50},))):
        config.field.histogram_of_image = whole
        mapped = read_images(wall, np.arange(2), config, run, no_features).histograms[1]
        assert torch.equal(mapped, Target(bundle, query).histogram)
        assert {int(i): int(mapped[i]) for i in torch.nonzero(mapped)} in expected


def test_masks_that_leave_nothing_are_refused(tmp_path, wall, config, start_run):
    write_masks(tmp_path / "masks", wall, (0, 1, 0, 1))
    config.training.masks = str(tmp_path / "masks")
    run = start_run(tmp_path / "map", config, wall)
    with pytest.raises(DataError, match="leave nothing"):
        read_images(wall, np.arange(3), config, run, no_features)


def test_a_missing_mask_and_folder_are_named(tmp_path, wall, config, start_run):
    run = start_run(tmp_path / "map", config, wall)
    config.training.masks = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        read_images(wall, np.arange(2), config, run, no_features)
    write_masks(tmp_path / "masks", wall, (0, 0, 0, 0))
    (tmp_path / "masks" / f"{wall.frames[1].name}.png").unlink()
    config.training.masks = str(tmp_path / "masks")
    with pytest.raises(DataError, match=wall.frames[1].name):
        read_images(wall, np.arange(3), config, run, no_features)


@pytest.mark.parametrize("depth", [0.5, 20.0])
def test_random_views_have_the_scale_of_the_scene(depth):
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (500, 1, 1))
    poses[:, :3, 3] = rng.uniform(-depth, depth, (500, 3))
    moved = random_poses(poses, RegressorConfig(rotation_deg=15.0), depth, rng)
    shift = np.abs(moved[:, :3, 3] - poses[:, :3, 3])
    assert 0.13 * depth < shift.max() <= 0.15 * depth
    angles = rotation_angle_deg(moved[:, :3, :3], poses[:, :3, :3])
    assert 15 < angles.max() < 15 * 3**0.5
    given = random_poses(
        poses, RegressorConfig(translation=0.02, box_margin=0.0), depth, np.random.default_rng(1)
    )
    assert np.abs(given[:, :3, 3] - poses[:, :3, 3]).max() <= 0.02
    assert (given[:, :3, 3] >= poses[:, :3, 3].min(0)).all()


def test_median_depth_is_that_of_the_scene(tmp_path, wall, wall_map, config, start_run):
    run = start_run(tmp_path / "map", config, wall)
    images = read_images(wall, np.arange(24), config, run, no_features)
    loaded = NefesEstimator(config)
    loaded.load(wall_map, Runtime(threads=1))
    true = float(images.depths.median())
    found = median_depth(loaded.bundle.field, replace(images, depths=None))
    # A field of a few seconds' training; the scale is all that is asked of it.
    assert found == pytest.approx(true, rel=0.25)

"""The whole chain on the synthetic room, whose surfaces are known."""

import numpy as np
import pytest
import torch

from reloc_core.errors import DataError
from reloc_core.features.keypoints import KeypointDetector
from reloc_core.mapping import ReconstructionOptions, describe, evenly, reconstruct
from reloc_core.testing import Subset, room, start_run


@pytest.fixture(scope="module")
def images():
    torch.set_num_threads(1)
    return room(frames=24)


@pytest.fixture(scope="module")
def detector():
    return KeypointDetector(240)


def test_points_lie_on_the_surfaces(images, detector, tmp_path):
    result = reconstruct(
        images, evenly(24, 24), detector, start_run(tmp_path / "map", "landmarks"),
        ReconstructionOptions(keypoints=400),
    )  # fmt: skip
    assert len(result.tracks) > 300
    # Oracle: the ray caster's depth at every observation.
    rows, points = result.tracks.rows, result.tracks.points[result.tracks.labels]
    poses = result.features.world_from_cam[result.features.images[rows]]
    depth = np.einsum("ni,ni->n", points - poses[:, :3, 3], poses[:, :3, 2])
    error = np.abs(depth / result.features.depths[rows] - 1)
    assert np.nanmedian(error) < 0.02
    assert result.colors.shape == (len(result.tracks), 3)


def test_too_few_images_are_refused(images, detector, tmp_path):
    with pytest.raises(DataError, match="1 image; triangulation needs at least 2"):
        reconstruct(images, np.array([0]), detector, start_run(tmp_path / "map", "landmarks"))


def test_describing_resumes(images, detector, tmp_path, monkeypatch):
    monkeypatch.setattr("reloc_core.mapping.features._PIECE", 2)
    few = Subset(images, range(6))
    whole = describe(
        few, np.arange(6), detector, 100, start_run(tmp_path / "a", "landmarks"), batch=2
    )

    class Broken(Subset):
        def __getitem__(self, index):
            if index == 4:
                raise DataError("gone")
            return super().__getitem__(index)

    run = start_run(tmp_path / "b", "landmarks")
    with pytest.raises(DataError, match="gone"):
        describe(Broken(images, range(6)), np.arange(6), detector, 100, run, batch=2)
    assert run.map.has_checkpoint
    again = describe(few, np.arange(6), detector, 100, run, batch=2)
    np.testing.assert_array_equal(again.images, whole.images)
    np.testing.assert_allclose(again.pixels, whole.pixels, atol=1e-3)
    assert (again.counts > 0).all()
    assert again.of_image(2) == slice(*np.searchsorted(again.images, [2, 3]))

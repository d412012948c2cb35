"""Adding images to a map: as good as a map of all of them, and nothing that was there moves."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from reloc_core.calibration import Calibration, CalibrationConfig
from reloc_core.cli.main import main
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.subset import Subset
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.engine import extend, train
from reloc_core.errors import DataError
from reloc_core.evaluation.metrics import pose_errors
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map
from reloc_core.pipeline import Pipeline

OFF = CalibrationConfig(enabled=False)


FRAMES = 24


def room(split="train", frames=FRAMES, width=240):
    return SyntheticDataset(
        SyntheticConfig(
            split=split, width=width, height=3 * width // 4, train_frames=frames, test_frames=8
        )
    )


class Elsewhere(Subset):
    """The same images with poses of another world."""

    @property
    def frames(self):
        shift = np.eye(4)
        shift[0, 3] = 1.0
        return [replace(f, world_from_cam=shift @ f.world_from_cam) for f in super().frames]


def median_error(path, queries=None):
    pipeline = Pipeline.from_map(path)
    errors = []
    for query in queries or room("test"):
        found = pipeline.localize(query)
        errors.append(
            pose_errors(found.world_from_cam, query.world_from_cam)[0]
            if found.localized
            else np.inf
        )
    return float(np.median(errors))


@pytest.fixture(scope="module", params=["matching", "softmax"])
def half(request, tmp_path_factory):
    """A map of the first half of a walk."""
    path = tmp_path_factory.mktemp("extension") / "half"
    estimator = {"name": "landmarks", "readout": request.param}
    train(Subset(room(), range(FRAMES // 2)), path, estimator, calibration=OFF, threads=1)
    return path


def test_half_and_half_are_a_whole(half, tmp_path):
    shutil.copytree(half, tmp_path / "map")
    before = Map.open(half)
    # Images that are there already are passed over.
    after = extend(room(), tmp_path / "map", calibration=OFF, threads=1)
    whole = train(
        room(), tmp_path / "whole", {"name": "landmarks", **before.info.config}, calibration=OFF,
        threads=1,
    )  # fmt: skip
    assert len(mapped_frames(after).world_from_cam) == FRAMES
    assert after.info.details["images"] == whole.info.details["images"] == FRAMES
    there = before.tensors("landmarks", "np")[0]
    now = after.tensors("landmarks", "np")[0]
    count = len(there["keys"])
    assert len(now["keys"]) > count
    assert len(now["colors"]) == len(now["keys"])
    np.testing.assert_array_equal(now["colors"][:count], there["colors"])
    there, now = (t["positions"].astype(float) + t["origin"] for t in (there, now))
    np.testing.assert_allclose(now[:count], there, atol=1e-5)
    assert median_error(after.path) < median_error(half)


@pytest.mark.long
@pytest.mark.parametrize("readout", ["matching", "softmax"])
def test_of_enough_images_it_is_as_good_as_a_map_of_all(readout, tmp_path):
    walk, estimator = room("train", 80, 320), {"name": "landmarks", "readout": readout}
    train(Subset(walk, range(40)), tmp_path / "map", estimator, calibration=OFF, threads=1)
    extend(walk, tmp_path / "map", calibration=OFF, threads=1)
    train(walk, tmp_path / "whole", estimator, calibration=OFF, threads=1)
    queries = room("test", 80, 320)
    extended, whole = (median_error(tmp_path / name, queries) for name in ("map", "whole"))
    assert extended < 1.5 * whole


def test_another_world_is_refused_and_the_map_stays(half, tmp_path):
    shutil.copytree(half, tmp_path / "map")
    with pytest.raises(DataError, match="another world"):
        extend(
            Elsewhere(room(), range(FRAMES // 2, FRAMES)),
            tmp_path / "map",
            calibration=OFF,
            threads=1,
        )
    with pytest.raises(DataError, match="in .* already"):
        extend(Subset(room(), range(3)), tmp_path / "map", calibration=OFF, threads=1)
    assert median_error(tmp_path / "map") == median_error(half)
    assert not list(tmp_path.glob(".map.*partial"))


def test_the_calibration_goes_along(tmp_path):
    path = tmp_path / "map"
    config = CalibrationConfig(foreign=6, least_images=12, fraction=0.2)
    train(Subset(room(), range(12)), path, "landmarks", calibration=config, threads=1)
    known = Calibration.of_map(Map.open(path))
    # Ten new ones, two of which were held out before: too few to learn from.
    extend(Subset(room(), range(20)), path, calibration=config, threads=1)
    kept = Calibration.of_map(Map.open(path))
    assert kept.right == known.right
    assert len(kept.mapped) == 20 > len(known.mapped)


def test_photos_without_poses_are_localized_and_added(tmp_path, capsys):
    walk, estimator = room("train", 48, 320), {"name": "landmarks", "readout": "matching"}
    train(Subset(walk, range(24)), tmp_path / "map", estimator, calibration=OFF, threads=1)
    before = median_error(tmp_path / "map", room("test", 48, 320))
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(24, 48):
        cv2.imwrite(str(photos / f"{i}.png"), walk[i].image[..., ::-1])
    (photos / "broken.jpg").write_bytes(b"no image")
    add = ["map", "add=true", f"map_dir={tmp_path}/map", "threads=1", "calibration.enabled=false"]
    assert main([*add, f"images={photos}"]) == 0, capsys.readouterr().err
    added = mapped_frames(Map.open(tmp_path / "map")).world_from_cam[24:]
    assert len(added) >= 6
    truths = np.stack([f.world_from_cam for f in walk.frames])
    assert all(np.abs(truths - pose).max((1, 2)).min() < 0.05 for pose in added)
    assert median_error(tmp_path / "map", room("test", 48, 320)) < 1.5 * before
    assert main([*add, "images=walk.mp4"]) == 2
    assert "folder or a pattern of photos" in capsys.readouterr().err

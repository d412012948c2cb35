"""`reloc map`: photos in, a map and a report out."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.cli.map import _check_same
from reloc_core.datasets.config import CameraConfig
from reloc_core.errors import DataError
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map
from reloc_core.reconstruction import ReconstructOptions, ScaleOptions


@pytest.mark.usefixtures("toy_plugin")
def test_photos_to_map_and_more_photos(room, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, names in (("photos", room.names[:6]), ("more", room.names[6:8])):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(room.folder / name, tmp_path / folder / name)
    options = [
        "map_dir=map", "~experiment", "estimator=toy", "calibration.enabled=false", "threads=1",
        "reconstruct.features=1200",
    ]  # fmt: skip
    assert main(["map", "images=photos", *options]) == 0, capsys.readouterr().err
    before = mapped_frames(Map.open("map")).world_from_cam
    assert len(before) == 6
    page = (tmp_path / "map-made" / "report.html").read_text("utf-8")
    assert "6<small> of 6" in page
    assert "rigid camera-to-world transforms" in page
    assert main(["map", "images=photos", *options]) == 2
    assert "add=true" in capsys.readouterr().err
    assert main(["map", "images=more", "add=true", *options]) == 0, capsys.readouterr().err
    after = mapped_frames(Map.open("map")).world_from_cam
    assert len(after) == 8
    np.testing.assert_allclose(after[:6], before, atol=1e-9)
    # `toy` cannot add images to a map.
    again = ["train", "extend=true", "dataset=colmap", "dataset.root=map-made/place", "map_dir=map"]
    capsys.readouterr()
    assert main(again) == 2
    assert "'toy' cannot add images to a map. Train it again" in capsys.readouterr().err
    assert main([*again, "estimator=toy"]) == 2
    assert "leave out estimator" in capsys.readouterr().err


def test_a_finished_reconstruction_is_taken_for_the_same_options_alone():
    scale = {"distance": ["a.jpg", "b.jpg", 2]}
    before = json.loads(json.dumps(asdict(ReconstructOptions("photos", "x", seed=1, threads=1))))
    place = Path("made")

    def check(images="photos", **more):
        _check_same(place, before, asdict(ReconstructOptions(images, "y", **{"seed": 1, **more})))

    check(threads=2, overwrite=True, link="symlink")
    for options, message in (
        ({"images": "others", "features": 900}, "images=photos, not others"),
        ({"features": 900}, "reconstruct.features=8192, not 900"),
        ({"camera": CameraConfig(focal=500)}, "reconstruct.camera.focal=null, not 500"),
        ({"scale": ScaleOptions(**scale)}, "scale.distance=null"),
        ({"scale": ScaleOptions(gps=True)}, "scale.gps=false, not true"),
        ({"seed": 2}, " seed=1, not 2"),
    ):
        with pytest.raises(DataError, match=message):
            check(**options)


def test_help(capsys):
    assert main(["map", "--help"]) == 0
    out = capsys.readouterr().out
    assert "reloc map images=walk.mp4" in out
    assert "scale:" in out

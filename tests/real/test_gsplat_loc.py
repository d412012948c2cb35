"""A Gaussian field of a real room, made with reduced effort: it localizes, and refinement pays."""

import os
from pathlib import Path

import numpy as np
import pytest

from reloc_core.cli.main import main
from reloc_core.evaluation.results import read_localizations
from reloc_core.geometry import rotation_angle_deg

DATA = Path(os.environ.get("RELOC_DATA", "../shared/data"))
ROOM = DATA / "redkitchen_seq01"

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.skipif(not ROOM.is_dir(), reason=f"no scene in {ROOM}; set RELOC_DATA"),
]

# A quarter of the work of the preset: small images, few steps, every fourth image.
REDUCED = [
    "estimator.image.resolution=120", "estimator.train.half_resolution=0",
    "estimator.train.iterations=600", "estimator.densify.stop=400", "estimator.init.count=40000",
    "estimator.gaussians.max_gaussians=50000", "estimator.features.mode=none",
    "estimator.anchors.images=100",
]  # fmt: skip


@pytest.fixture(scope="module", params=["easy", "hard"])
def errors(request, tmp_path_factory):
    """Errors (N, 2) in metres and degrees before and after refinement.

    "easy" maps every fourth training frame, "hard" every second of the first 200.
    """
    work = tmp_path_factory.mktemp(request.param)
    frames = ["dataset.frame_step=4"]
    if request.param == "hard":
        frames = ["dataset.frames=0:200", "dataset.frame_step=2"]
    data = ["dataset=ace", f"dataset.root={ROOM}"]
    code = main(
        ["train", "experiment=gsplat_loc/compact", *data, *frames, *REDUCED,
         f"map_dir={work / 'map'}", f"output_dir={work / 'fit'}"]
    )  # fmt: skip
    assert code == 0
    code = main(
        ["evaluate", f"map_dir={work / 'map'}", *data, "dataset.split=test",
         "dataset.frame_step=10", f"output_dir={work / 'out'}", "report=false"]
    )  # fmt: skip
    assert code == 0
    stages: dict[str, list[tuple[float, float]]] = {"solve": [], "refine.gsplat_loc": []}
    for result in read_localizations(work / "out" / "localizations.jsonl"):
        for name, pose in result.stages:
            pose = np.asarray(pose)
            stages[name].append(
                (
                    float(np.linalg.norm(pose[:3, 3] - result.truth[:3, 3])),
                    float(rotation_angle_deg(pose[:3, :3], result.truth[:3, :3])),
                )
            )
    before, after = (np.array(stages[name]) for name in ("solve", "refine.gsplat_loc"))
    return request.param, before, after


def test_every_view_is_found(errors):
    protocol, before, after = errors
    assert len(before) >= (19 if protocol == "easy" else 15)
    close = (after[:, 0] < 0.05) & (after[:, 1] < 5)
    assert close.mean() >= (0.95 if protocol == "easy" else 0.6)


def test_accuracy_and_what_refinement_adds(errors):
    protocol, before, after = errors
    limits = ((0.03, 0.8), (0.012, 0.4)) if protocol == "easy" else ((0.06, 1.5), (0.04, 1.0))
    for found, limit in zip((before, after), limits, strict=True):
        assert (np.median(found, axis=0) < limit).all()
    if (
        protocol == "easy"
    ):  # a field of so few steps shows views off the mapped path too blurred to refine by
        assert np.median(after[:, 0]) <= 1.05 * np.median(before[:, 0])


@pytest.mark.skipif(not (DATA / "lund").is_dir(), reason="no photo collection lund")
def test_a_photo_collection_is_mapped(tmp_path):
    """Twenty-two photos from far apart; the true scale is free, the scene is 1.7 units away."""
    data = ["dataset=colmap", f"dataset.root={DATA / 'lund'}"]
    small = ["estimator.train.iterations=150", "estimator.features.mode=none",
             "estimator.image.resolution=120"]  # fmt: skip
    code = main(["train", "experiment=gsplat_loc/compact", *data, *small,
                 f"map_dir={tmp_path / 'map'}", f"output_dir={tmp_path / 'fit'}"])  # fmt: skip
    assert code == 0
    code = main(["evaluate", f"map_dir={tmp_path / 'map'}", *data, "dataset.split=test",
                 f"output_dir={tmp_path / 'out'}", "report=false"])  # fmt: skip
    assert code == 0
    found = list(read_localizations(tmp_path / "out" / "localizations.jsonl"))
    errors = [
        np.linalg.norm(r.world_from_cam[:3, 3] - r.truth[:3, 3])
        for r in found
        if r.world_from_cam is not None
    ]
    assert len(errors) >= 6
    assert np.median(errors) < 0.02 * 1.7

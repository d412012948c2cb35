"""`reloc weights import`: from a file of Gaussians to a map that localizes."""

import numpy as np
import pytest
from gsplat_loc.config import GsplatConfig
from gsplat_loc.estimator import GsplatEstimator
from gsplat_loc.field.fieldmap import load_field
from gsplat_loc.field.ply import write_ply
from gsplat_room import RUNTIME, SIZE

from reloc_core.cli.main import main
from reloc_core.maps import Map
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver

DATA = ["dataset=synthetic", "threads=1", *(f"dataset.{k}={v}" for k, v in SIZE.items())]


def test_a_file_becomes_a_map_that_localizes(trained, queries, tmp_path):
    field = load_field(trained[1], "cpu")
    file, path = tmp_path / "field.ply", tmp_path / "map"
    features = field.descriptors.features.float()
    write_ply(file, field.gaussians, field.origin, features)
    code = main(["weights", "import", "component=gsplat_loc", f"file={file}", f"map_dir={path}", *DATA,
                 "estimator.features.images=8", f"output_dir={tmp_path}/out"])  # fmt: skip
    assert code == 0
    made = Map.open(path)
    again = load_field(made, "cpu")
    np.testing.assert_allclose(
        again.gaussians.means.double().numpy() + again.origin, field.gaussians.means.double().numpy() + field.origin,
        atol=1e-5,
    )  # fmt: skip
    # As the file has them, not as the images would give them.
    seen = features.any(1)
    agree = (again.descriptors.features.float() * features).sum(1)[seen]
    np.testing.assert_allclose(agree, 1, atol=2e-3)
    estimator = GsplatEstimator(GsplatConfig())
    estimator.load(made, RUNTIME)
    solver = PnpSolver(PnpConfig())
    errors = []
    for query in queries:
        found = solver.solve(estimator.estimate(query), query.camera, RUNTIME)
        assert found.localized
        errors.append(np.linalg.norm(found.world_from_cam[:3, 3] - query.world_from_cam[:3, 3]))
    assert np.median(errors) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs component="),
        (["component=gsplat_loc"], "needs file="),
        (["component=gsplat_lock", "file=FILE"], "Did you mean 'gsplat_loc'"),
        (["component=gsplat_loc", "file=nowhere.ply"], "There is no nowhere.ply"),
        (["component=gsplat_loc", "file=FILE", "map_dir=MAP", *DATA], "is no PLY file"),
    ],
)
def test_what_can_be_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("something else")
    assert main(["weights", "import", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "MAP").exists()

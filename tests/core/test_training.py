"""Seeded streams, packing and checkpoints: a training that is killed ends as if nothing had happened."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from reloc_core.errors import MapError, RelocError
from reloc_core.maps import MapWriter
from reloc_core.testing import start_run
from reloc_core.training.checkpoint import Checkpoint
from reloc_core.training.loop import train_steps
from reloc_core.training.packing import pack, part, unpack
from reloc_core.training.streams import numpy_rng, torch_rng, torch_seed


def test_streams_are_repeatable_and_apart():
    def draw(*purpose):
        return (
            numpy_rng(*purpose).integers(1 << 40),
            int(torch.randint(1 << 40, (1,), generator=torch_rng(*purpose))),
        )

    purposes = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 1, 0)]
    drawn = [draw(*p) for p in purposes]
    assert drawn == [draw(*p) for p in purposes]
    assert len({n for n, _ in drawn}) == len({t for _, t in drawn}) == len(purposes)
    assert 0 <= torch_seed(3, "dropout", 7) < 1 << 63


def test_streams_do_not_depend_on_pythons_hash_seed():
    code = "from reloc_core.training.streams import numpy_rng; print(numpy_rng(5, 'x', 2).integers(99999))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {f"{numpy_rng(5, 'x', 2).integers(99999)}\n".encode()}


def test_the_package_imports_no_torch():
    code = (
        "import sys, reloc_core.training.streams, reloc_core.training.checkpoint, "
        "reloc_core.training.ranks; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)[:, 0]


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "groups": lambda p: torch.optim.Adam([{"params": p[:2]}, {"params": p[2:], "scale": 0.1}]),
}


def problem(kind="adamw"):
    """A module, its optimizer, and the loss of a step."""
    net = Net()
    optimizer = OPTIMIZERS[kind](list(net.parameters()))

    def loss(step):
        x = torch.randn(16, 4, generator=torch_rng(0, "batch", step))
        return (net(x) - x.sum(1)).square().mean()

    return net, optimizer, loss


class Killed(BaseException):
    """What nothing catches, as a SIGKILL."""


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_killed_and_resumed_is_undisturbed(kind, tmp_path):
    def train(name, die_at=None):
        run = start_run(tmp_path / name, "toy")
        checkpoint = Checkpoint(run.map, seconds=0)
        net, optimizer, loss = problem(kind)

        def step_loss(step):
            if step == die_at:
                raise Killed
            return loss(step)

        last = train_steps(
            run, "Training", checkpoint, "net", 20, {"net": net}, optimizer, step_loss,
            lambda step: 0.1 / (step + 1), max_norm=1.0, log_every=5,
        )  # fmt: skip
        return net.state_dict(), last, run.events

    whole, last, events = train("whole")
    assert [values["step"] for _, values in events] == [5, 10, 15, 20]
    with pytest.raises(Killed):
        train("cut", die_at=13)
    resumed, again, events = train("cut")
    assert [values["step"] for _, values in events] == [15, 20]
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    assert again == last
    # A finished stage is restored, not trained again.
    restored, nothing, _ = train("cut", die_at=0)
    assert nothing == {}
    torch.testing.assert_close(restored, whole, rtol=0, atol=0)


def test_a_diverging_training_keeps_its_last_checkpoint(tmp_path):
    run = start_run(tmp_path / "map", "toy")
    net, optimizer, loss = problem()
    with pytest.raises(RelocError, match="Training diverged at step 7"):
        train_steps(
            run, "Training", Checkpoint(run.map, seconds=0), "net", 20, {"net": net}, optimizer,
            lambda step: loss(step) * (float("nan") if step == 7 else 1), lambda step: 0.1,
        )  # fmt: skip
    step, tensors = Checkpoint(run.map).resume("net")
    assert step == 7
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_stages_results_and_notes(tmp_path, monkeypatch):
    run = start_run(tmp_path / "map", "toy")
    first = Checkpoint(run.map, seconds=0)
    assert first.resume("a") == (0, {})
    first.finish("a", {"w": torch.ones(2)}, {"quality": 0.5})
    first.finish("elsewhere")
    assert first.save("b", 3, lambda: {"v": torch.zeros(1)}, {"updates": 2})
    assert not first.save("b", 4, lambda: None)
    loads = []
    load = MapWriter.load_checkpoint
    monkeypatch.setattr(MapWriter, "load_checkpoint", lambda self: loads.append(1) or load(self))
    again = Checkpoint(start_run(tmp_path / "map", "toy").map, seconds=0)
    assert [again.finished(s) for s in ("a", "elsewhere", "b")] == [True, True, False]
    assert again.result("a")["w"].tolist() == [1, 1]
    assert again.result("elsewhere") == {}
    assert (again.notes("a"), again.notes("b")) == ({"quality": 0.5}, {"updates": 2})
    step, tensors = again.resume("b")
    assert (step, tensors["v"].tolist()) == (3, [0])
    again.save("b", 4, lambda: tensors)
    again.finish("b", {"v": torch.full((1,), 7.0)})
    last = Checkpoint(start_run(tmp_path / "map", "toy").map)
    assert last.result("a")["w"].tolist() == [1, 1]
    assert last.result("b")["v"].tolist() == [7]
    assert last.resume("b") == (0, {})
    # Once by each of the two that were created, never before a save.
    assert len(loads) == 2


def test_only_marks(tmp_path):
    """A stage whose result lies elsewhere leaves no tensors at all."""
    run = start_run(tmp_path / "map", "toy")
    Checkpoint(run.map).finish("measurement", notes={"keyframes": 8})
    again = Checkpoint(run.map)
    assert again.finished("measurement")
    assert again.notes("measurement") == {"keyframes": 8}
    again.finish("field", {"w": torch.ones(1)})
    assert Checkpoint(run.map).result("field")["w"].tolist() == [1]


def test_saves_are_seldom(tmp_path):
    run = start_run(tmp_path / "map", "toy")
    checkpoint = Checkpoint(run.map, seconds=1000)

    def never():
        raise AssertionError("packed although it is not time")

    assert not checkpoint.save("net", 1, never)
    assert not run.map.has_checkpoint


def test_packed_tensors_are_copies_and_other_networks_are_refused():
    net, optimizer, loss = problem()
    loss(0).backward()
    optimizer.step()
    packed = pack({"net": net}, optimizer)
    before = {k: v.clone() for k, v in packed.items()}
    loss(1).backward()
    optimizer.step()
    torch.testing.assert_close(packed, before, rtol=0, atol=0)
    assert set(part(packed, "net")) == set(net.state_dict())
    with pytest.raises(MapError, match="resume=false"):
        unpack(packed, {"net": nn.Linear(2, 2)})


def test_numpy_arrays(tmp_path):
    """Checkpoints of descriptions, without any network."""
    run = start_run(tmp_path / "map", "toy")
    Checkpoint(run.map, seconds=0).save("describe", 4, lambda: {"pixels": np.arange(4.0)})
    step, tensors = Checkpoint(run.map).resume("describe")
    assert step == 4
    np.testing.assert_array_equal(np.asarray(tensors["pixels"]), np.arange(4.0))

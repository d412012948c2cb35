import numpy as np
import pytest
import torch
from scr_glace.config import BufferConfig
from scr_glace.training import buffer as buffer_module
from scr_glace.training.buffer import Buffer, BufferPlan, Visit

from reloc_core.errors import RelocError
from reloc_core.training.processes import Processes
from reloc_core.training.streams import numpy_rng

CONFIG = BufferConfig(size=1500, samples_per_image=30)


class Counter:
    total = 0

    def advance(self, steps=1, **values):
        self.total += steps


def visit(number, frame):
    """Samples that can be recognised: feature = (visit, sample), ray = (frame, sample)."""
    samples = torch.arange(30.0)
    return Visit(
        torch.stack([torch.full((30,), float(number)), samples], -1).half(),
        torch.stack([torch.full((30,), float(frame)), samples], -1),
        torch.full((3, 4), float(number)),
        (float(number), 1.0),
    )


def filled(tmp_path, processes=None, threads=2, plan=None):
    processes = processes or Processes()
    plan = plan or BufferPlan.of(CONFIG, frames=7, seed=3)
    made = Buffer(plan, 2, processes, CONFIG, tmp_path)
    counter = Counter()
    made.fill(visit, counter, threads)
    assert counter.total == sum(len(plan.visits_of(g)) for g in plan.owned(processes))
    return made


def test_plan_visits_every_frame_equally():
    plan = BufferPlan.of(CONFIG, frames=7, seed=3)
    assert plan.visits == 50
    frames = plan.visited_frames()
    assert np.bincount(frames, minlength=7).tolist().count(7) == 6  # 50 = 7 * 7 + 1
    for k in range(7):
        assert sorted(frames[7 * k : 7 * k + 7].tolist()) == list(range(7))
    assert frames[:7].tolist() != frames[7:14].tolist()


def test_rooms_are_visited_equally():
    """However many images a room has; a room alone is visited as if it had no label."""
    sizes = (40, 8, 2)
    rooms = tuple(np.repeat([0, 1, 2], sizes).tolist())
    plan = BufferPlan.of(BufferConfig(size=1200, samples_per_image=1), 50, seed=3, rooms=rooms)
    frames = plan.visited_frames().numpy()
    of_room = np.array(rooms)[frames]
    assert np.bincount(of_room).tolist() == [400, 400, 400]
    counts = np.bincount(frames, minlength=50)
    for room, size in enumerate(sizes):
        assert set(counts[np.array(rooms) == room]) == {400 // size}
    # Mixed at every moment, in no fixed order.
    assert all(sorted(of_room[i : i + 3]) == [0, 1, 2] for i in range(0, 1200, 3))
    assert len({tuple(of_room[i : i + 3]) for i in range(0, 1200, 3)}) == 6
    alone = BufferPlan.of(CONFIG, 7, seed=3, rooms=(4,) * 7).visited_frames()
    passes = [numpy_rng(3, "frames", k).permutation(7) for k in range(8)]
    assert alone.tolist() == np.concatenate(passes)[:50].tolist()
    assert torch.equal(alone, BufferPlan.of(CONFIG, 7, seed=3).visited_frames())


def test_published_size():
    plan = BufferPlan.of(BufferConfig(), frames=4000, seed=1)
    assert plan.visits == 15_625
    assert plan.size == 16_000_000


def test_samples_keep_their_visit_pose_and_frame(tmp_path):
    made = filled(tmp_path)
    frames = made.plan.visited_frames()
    seen = []
    for step in range(made.plan.size // 100):
        batch = made.batch(step, 100)
        assert len(batch.features) == batch.size == 100
        number = batch.features[:, 0]
        torch.testing.assert_close(batch.focal[:, 0], number.float())
        torch.testing.assert_close(batch.cam_from_world[:, 2, 3], number.float())
        assert torch.equal(batch.frame, frames[number.long()])
        assert torch.equal(batch.rays[:, 0].long(), batch.frame)
        assert torch.equal(batch.rays[:, 1], batch.features[:, 1].float())
        seen += [tuple(row) for row in batch.features.tolist()]
    assert len(set(seen)) == len(seen) == made.plan.size  # one epoch, every sample once
    assert not torch.equal(made.batch(0, 100).features, made.batch(15, 100).features)


def test_number_of_threads_changes_nothing(tmp_path):
    a, b = filled(tmp_path, threads=1), filled(tmp_path, threads=3)
    assert torch.equal(a.features, b.features)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(tmp_path, world, monkeypatch):
    monkeypatch.setattr(Processes, "any", lambda self, flag: flag)
    whole = filled(tmp_path)
    parts = [filled(tmp_path, Processes(rank, world)) for rank in range(world)]
    assert sum(len(p.features) for p in parts) == len(whole.features)
    for step in (0, 7, 20):
        expected = whole.batch(step, 100)
        merged = torch.zeros(100, 2, dtype=torch.float16) - 1
        for part in parts:
            batch = part.batch(step, 100)
            merged[batch.slot] = batch.features
            assert 0 < len(batch.slot) < 100
        assert torch.equal(merged, expected.features)


def test_a_large_buffer_is_streamed_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_module, "_free_memory", lambda: 1000)
    made = filled(tmp_path)
    assert made.on_disk
    assert made.plan.chunk == 30
    monkeypatch.undo()
    in_memory = filled(tmp_path)
    assert not in_memory.on_disk
    assert torch.equal(made.features, in_memory.features)
    # Chunks of the order hold samples of several visits.
    batch = made.batch(0, 30)
    seen = [tuple(r) for s in range(50) for r in made.batch(s, 30).features.tolist()]
    assert len(set(seen)) == made.plan.size
    assert len(batch.features) == 30


def test_a_complete_buffer_on_disk_is_not_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_module, "_free_memory", lambda: 1000)
    first = filled(tmp_path)
    batch = first.batch(3, 100)
    del first
    plan = BufferPlan.of(CONFIG, frames=7, seed=3)
    again = Buffer(plan, 2, Processes(), CONFIG, tmp_path)
    assert again.complete
    again.fill(lambda *_: pytest.fail("encoded again"), Counter(), 1)
    found = again.batch(3, 100)
    assert torch.equal(found.features, batch.features)
    assert torch.equal(found.cam_from_world, batch.cam_from_world)
    # An interrupted one is.
    (again.directory / "buffer.done").unlink()
    assert not Buffer(plan, 2, Processes(), CONFIG, tmp_path).complete


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(buffer_module, "_free_memory", lambda: 1000)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RelocError, match="disk is full"):
        filled(tmp_path)


def test_few_images_are_not_visited_for_ever():
    config = BufferConfig(size=100_000, samples_per_image=100, max_visits=16)
    assert BufferPlan.of(config, 12, 0).visits == 12 * 16
    assert BufferPlan.of(config, 500, 0).visits == 1000

"""The training buffer: encoded samples of augmented views, drawn once before the training.

Each *visit* of an image draws a new augmentation and stores `samples_per_image` samples, whose poses
and focal lengths are kept once per visit. Visits form groups, groups belong to processes. A step's batch
is a slice of one global order, of which every process works on the samples it holds: the number of
processes changes nothing but the speed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reloc_core.interfaces import Progress
from reloc_core.maps import explain_os_errors
from reloc_core.training.processes import Processes
from reloc_core.training.streams import numpy_rng
from scr_glace.config import BufferConfig

_GROUP_VISITS = 64
_DISK_CHUNK = 512
_DONE = "buffer.done"


@dataclass(frozen=True)
class Visit:
    """What one visit of an image adds.

    Attributes:
        features: (S, C) fp16.
        rays: (S, 2) float32, x and y at z = 1 in the axes of the view.
        cam_from_world: (3, 4) float32 of the view's camera.
        focal: fx, fy in pixels of the view.
        targets: (S, 3) float32 known points in the head's world, NaN where there is none; or None.
    """

    features: Tensor
    rays: Tensor
    cam_from_world: Tensor
    focal: tuple[float, float]
    targets: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """The samples of one step that this process holds.

    Attributes:
        features: (n, C) fp16.
        rays: (n, 2) float32.
        cam_from_world: (n, 3, 4) float32.
        focal: (n, 2) float32.
        frame: (n,) row of the frame among the mapping frames.
        slot: (n,) position in the whole batch, in 0..size-1.
        size: samples of the whole batch, over all processes.
        targets: (n, 3) float32, NaN where unknown; None in a buffer without any.
    """

    features: Tensor
    rays: Tensor
    cam_from_world: Tensor
    focal: Tensor
    frame: Tensor
    slot: Tensor
    size: int
    targets: Tensor | None = None


@dataclass(frozen=True)
class BufferPlan:
    """Which samples there are, where they lie and in which order they are used.

    Attributes:
        frames: number of mapping frames.
        per_visit: samples per visit.
        visits: number of visits.
        seed: of the orders.
        chunk: consecutive samples that stay together in the order; more than 1 when the buffer is
            streamed from disk, where reading single samples would be slow.
        rooms: number of the room of every frame, where the frames are of several scenes.
    """

    frames: int
    per_visit: int
    visits: int
    seed: int
    chunk: int = 1
    rooms: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, config: BufferConfig, frames: int, seed: int, rooms: tuple[int, ...] = ()
    ) -> BufferPlan:
        """The plan of a configuration."""
        visits = math.ceil(config.size / config.samples_per_image)
        if config.max_visits:
            visits = min(visits, frames * config.max_visits)
        return cls(frames, config.samples_per_image, visits, seed, rooms=rooms)

    @property
    def size(self) -> int:
        """Samples of all processes."""
        return self.visits * self.per_visit

    @property
    def group_visits(self) -> int:
        """Visits per group: few enough that groups divide well among processes."""
        return max(1, min(_GROUP_VISITS, self.visits // 64))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return math.ceil(self.visits / self.group_visits)

    def visits_of(self, group: int) -> range:
        """Visits of a group."""
        first = group * self.group_visits
        return range(first, min(first + self.group_visits, self.visits))

    def visited_frames(self) -> Tensor:
        """Frame of every visit (visits,); every pass over the frames has a new random order.

        Of several rooms each has as many visits as the others, however many frames it has (GLACE; sheet
        2.5): every round visits each room once. GLACE draws frames with replacement; here every frame of
        a room comes before one of them comes again.
        """
        rooms = np.unique(self.rooms)
        if len(rooms) < 2:
            return torch.from_numpy(
                self._passes(np.arange(self.frames), self.visits)[: self.visits]
            )
        count = math.ceil(self.visits / len(rooms))
        members = [np.flatnonzero(np.array(self.rooms) == room) for room in rooms]
        rounds = np.stack(
            [self._passes(m, count, room)[:count] for room, m in zip(rooms, members, strict=True)],
            1,
        )
        rounds = numpy_rng(self.seed, "rooms").permuted(rounds, axis=1)
        return torch.from_numpy(rounds.reshape(-1)[: self.visits])

    def _passes(self, frames: np.ndarray, visits: int, *room: int) -> np.ndarray:
        """Passes over some frames, each in a new random order, for at least so many visits."""
        passes = math.ceil(visits / len(frames))
        orders = [numpy_rng(self.seed, "frames", *room, k) for k in range(passes)]
        return np.concatenate([frames[rng.permutation(len(frames))] for rng in orders])

    def owned(self, processes: Processes) -> list[int]:
        """Groups of this process."""
        return list(range(processes.rank, self.groups, processes.world))

    def samples_of(self, group: int) -> int:
        """Samples of a group."""
        return len(self.visits_of(group)) * self.per_visit

    def locate(self, samples: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
        """Which of the global sample numbers this process holds, and where.

        Returns:
            positions within `samples`, and rows of the local storage.
        """
        if processes.world == 1:
            return torch.arange(len(samples)), samples
        size = self.group_visits * self.per_visit
        group = torch.div(samples, size, rounding_mode="floor")
        slots = torch.nonzero(group % processes.world == processes.rank)[:, 0]
        mine = samples[slots]
        rank_group = torch.div(group[slots], processes.world, rounding_mode="floor")
        return slots, rank_group * size + mine % size

    def order(self, epoch: int) -> Tensor:
        """All global sample numbers in the random order of an epoch."""
        rng = numpy_rng(self.seed, "batches", epoch)
        if self.chunk == 1:
            return torch.from_numpy(rng.permutation(self.size))
        starts = torch.from_numpy(rng.permutation(self.size // self.chunk)) * self.chunk
        return (starts[:, None] + torch.arange(self.chunk)).reshape(-1)


class Buffer:
    """Storage of this process's samples.

    Args:
        plan: of the whole buffer.
        channels: length of a feature.
        processes: this one and the others.
        config: memory limit.
        scratch: where a buffer that is too large for the memory is streamed from.
        targets: whether the visits bring known points.
    """

    def __init__(
        self,
        plan: BufferPlan,
        channels: int,
        processes: Processes,
        config: BufferConfig,
        scratch: Path,
        targets: bool = False,
    ) -> None:
        self.processes = processes
        groups = plan.owned(processes)
        rows = sum(plan.samples_of(group) for group in groups)
        need = rows * (2 * channels + 12 + 12 * targets)
        device, on_disk = _place(need, config.memory_fraction, processes)
        # All processes must use the same order.
        self.on_disk = processes.any(on_disk)
        chunk = min(_DISK_CHUNK, plan.per_visit) if self.on_disk else 1
        self.plan = replace(plan, chunk=chunk)
        self.groups = groups
        self.directory = scratch / f"buffer.{processes.rank}.{processes.world}"
        shapes = {
            "features": ((rows, channels), torch.float16),
            "rays": ((rows, 2), torch.float32),
            "visit": ((rows,), torch.int32),
        }
        if targets:
            shapes["targets"] = ((rows, 3), torch.float32)
        if self.on_disk:
            self.directory.mkdir(parents=True, exist_ok=True)
            stored = {k: _mapped(self.directory / k, *v) for k, v in shapes.items()}
            tables = {k: _mapped(self.directory / k, *v) for k, v in self._tables().items()}
        else:
            stored = {k: torch.empty(s, dtype=d, device=device) for k, (s, d) in shapes.items()}
            tables = {k: torch.zeros(s, dtype=d) for k, (s, d) in self._tables().items()}
        self.features, self.rays, self.visit = stored["features"], stored["rays"], stored["visit"]
        self.targets = stored.get("targets")
        self.cam_from_world, self.focal = tables["cam_from_world"], tables["focal"]
        self.frame = plan.visited_frames()
        self._epoch = -1
        self._order = torch.zeros(0, dtype=torch.int64)

    def _tables(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        visits = self.plan.visits
        return {
            "cam_from_world": ((visits, 3, 4), torch.float32),
            "focal": ((visits, 2), torch.float32),
        }

    @property
    def complete(self) -> bool:
        """Whether an interrupted run left the whole buffer on disk."""
        return self.on_disk and (self.directory / _DONE).is_file()

    def fill(self, visit: Callable[[int, int], Visit], progress: Progress, threads: int) -> None:
        """Draw all samples of this process.

        Args:
            visit: `visit(visit, frame)` encodes one visit; called from several threads.
            progress: advanced once per visit.
            threads: how many visits are prepared at a time.
        """
        if self.complete:
            progress.advance(sum(len(self.plan.visits_of(group)) for group in self.groups))
            return self._to_device()
        row = 0
        numbers = [v for group in self.groups for v in self.plan.visits_of(group)]
        done = _in_order(lambda v: visit(v, int(self.frame[v])), numbers, threads)
        for group in self.groups:
            features, rays, labels, targets = [], [], [], []
            for number in self.plan.visits_of(group):
                made = next(done)
                features.append(made.features)
                rays.append(made.rays)
                if made.targets is not None:
                    targets.append(made.targets)
                labels.append(torch.full((len(made.rays),), number, dtype=torch.int32))
                self.cam_from_world[number] = made.cam_from_world
                self.focal[number] = torch.tensor(made.focal)
                progress.advance()
            size = self.plan.samples_of(group)
            # Mixed before it is stored, so that chunks read from disk hold samples of many visits.
            mix = torch.from_numpy(numpy_rng(self.plan.seed, "groups", group).permutation(size))
            self.features[row : row + size] = torch.cat(features)[mix]
            self.rays[row : row + size] = torch.cat(rays)[mix].to(self.rays.device)
            self.visit[row : row + size] = torch.cat(labels)[mix].to(self.visit.device)
            if self.targets is not None:
                known = torch.cat(targets)[mix]
                self.targets[row : row + size] = known.to(self.targets.device)
            row += size
        if self.on_disk:
            (self.directory / _DONE).touch()
        self._to_device()

    def _to_device(self) -> None:
        device = self.processes.device
        self.cam_from_world, self.focal = self.cam_from_world.to(device), self.focal.to(device)
        self.frame = self.frame.to(device)

    def batch(self, step: int, size: int) -> Batch:
        """The part of step `step`'s batch of `size` samples that this process holds.

        An epoch's incomplete last batch is dropped, as published.
        """
        epoch, index = divmod(step, self.plan.size // size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.plan.order(epoch)
        return self.samples(self._order[index * size : (index + 1) * size])

    def samples(self, chosen: Tensor) -> Batch:
        """What this process holds of some samples, by their numbers among those of all processes."""
        slots, rows = self.plan.locate(chosen, self.processes)
        device = self.processes.device
        rows = rows.to(self.features.device)
        visit = self.visit[rows].to(device).long()
        return Batch(
            features=self.features[rows].to(device),
            rays=self.rays[rows].to(device),
            cam_from_world=self.cam_from_world[visit],
            focal=self.focal[visit],
            frame=self.frame[visit],
            slot=slots.to(device),
            size=len(chosen),
            targets=None if self.targets is None else self.targets[rows].to(device),
        )


def _place(need: int, fraction: float, processes: Processes) -> tuple[torch.device, bool]:
    """Where `need` bytes go: (device, streamed from disk)."""
    if processes.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(processes.device)
        if need <= 0.7 * free:
            return processes.device, False
    return torch.device("cpu"), need > fraction * _free_memory()


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file. The space is reserved first: a full disk must not kill the process."""
    count = math.prod(shape)
    size = count * torch.empty(0, dtype=dtype).element_size()
    with explain_os_errors(path):
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)


def _in_order(work: Callable[[int], Visit], numbers: list[int], threads: int) -> Iterator[Visit]:
    """Results of `work` in order, a few of them prepared ahead."""
    if threads <= 1:
        yield from map(work, numbers)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead = [pool.submit(work, n) for n in numbers[: 2 * threads]]
        position = len(ahead)
        try:
            while ahead:
                yield ahead.pop(0).result()
                if position < len(numbers):
                    ahead.append(pool.submit(work, numbers[position]))
                    position += 1
        finally:
            for future in ahead:
                future.cancel()

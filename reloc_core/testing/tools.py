"""What the conformance suites share: the small room, training, bad images, watching for writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.config import plain, typed_config
from reloc_core.geometry import inverse, pose_plus, rotation_angle_deg, so3_exp
from reloc_core.interfaces import Dataset, Estimator, Refiner, Runtime
from reloc_core.maps import MapInfo, MapWriter, dataset_identity
from reloc_core.registry import Component
from reloc_core.types import Camera, Float64Array, Localization, Query, ScenePoints


def room(
    split: str = "train", frames: int = 60, width: int = 320, height: int = 240, depth: bool = True
) -> Dataset:
    """The embedded furnished room without image noise: exact poses and exact depth.

    Args:
        split: "train" or "test"; two different walks through the same room.
        frames: number of images of the walk.
        width: pixels.
        height: pixels.
        depth: whether queries carry depth.
    """
    from reloc_core.datasets.config import SyntheticConfig
    from reloc_core.datasets.synthetic import SyntheticDataset

    return SyntheticDataset(
        SyntheticConfig(
            split=split,
            width=width,
            height=height,
            train_frames=frames,
            test_frames=frames,
            noise=0.0,
            depth=depth,
        )
    )


def write_ace(dataset: Dataset, folder: Path) -> None:
    """Write a dataset as `rgb/ poses/ calibration/ [depth/]` of an ACE split folder."""
    import cv2

    for name in ("rgb", "poses", "calibration", *(["depth"] if dataset.has_depth else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(len(dataset)):
        query = dataset[index]
        stem = f"frame-{index:06d}"
        cv2.imwrite(str(folder / "rgb" / f"{stem}.color.png"), query.image[..., ::-1])
        if query.world_from_cam is not None:
            np.savetxt(folder / "poses" / f"{stem}.pose.txt", query.world_from_cam)
        (folder / "calibration" / f"{stem}.calibration.txt").write_text(
            f"{query.camera.fx!r}\n", "utf-8"
        )
        if query.depth is not None:
            millimetres = np.rint(query.depth * 1000).astype(np.uint16)
            cv2.imwrite(str(folder / "depth" / f"{stem}.depth.png"), millimetres)


class RecordedRun:
    """A `reloc_core.interfaces.Run` that remembers what it is told and can stop as if by Ctrl-C.

    Args:
        writer: of the map.
        runtime: device, threads and seed.
        stop_after: steps of progress after which `KeyboardInterrupt` is raised; None for never.
        extra_datasets: as `reloc train extra_datasets=...` gives them.

    Attributes:
        steps: of progress so far.
        events: what was logged: (event, values).
    """

    def __init__(
        self,
        writer: MapWriter,
        runtime: Runtime,
        stop_after: int | None = None,
        extra_datasets: Sequence[Dataset] = (),
    ) -> None:
        self.map, self.runtime, self.steps = writer, runtime, 0
        self.extra_datasets = extra_datasets
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_after = stop_after

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[RecordedRun]:
        """Count steps."""
        yield self

    def advance(self, steps: int = 1, **values: float | str) -> None:
        """Count steps, and stop after the agreed number."""
        self.steps += steps
        if self._stop_after is not None and self.steps >= self._stop_after:
            raise KeyboardInterrupt

    def log(self, event: str, **values: Any) -> None:
        """Remember the event."""
        self.events.append((event, values))

    def note(self, text: str) -> None:
        """Remember the text as an event."""
        self.log("note", text=text)

    def show(self, title: str, points: Callable[[], ScenePoints]) -> None:
        """Nobody watches."""


def start_run(
    map_dir: Path,
    component: str,
    dataset: Dataset | None = None,
    config: Any = None,
    *,
    plugin: str = "",
    seed: int = 1,
    resume: bool = True,
    primary: bool = True,
    extra_datasets: Sequence[Dataset] = (),
) -> RecordedRun:
    """What `Estimator.fit` gets from `reloc train`, for tests of its parts.

    Args:
        map_dir: where the map will be; a checkpoint there is gone on from.
        component: name of the estimator.
        dataset: what is mapped; part of the map's identity.
        config: dataclass of options; part of the map's identity.
        plugin: its name.
        seed: of the runtime, which has one thread of the CPU.
        resume: False to begin anew.
        primary: False in the helper processes of a distributed run.
        extra_datasets: see `RecordedRun`.

    Returns:
        the run; `run.map.finish()` completes the map.
    """
    options = plain(config) if config is not None else {}
    identity = dataset_identity(dataset) if dataset is not None else {}
    info = MapInfo("estimator", component, plugin, "0", options, identity)
    writer = MapWriter(map_dir, info, resume=resume, primary=primary)
    return RecordedRun(writer, Runtime(threads=1, seed=seed), extra_datasets=extra_datasets)


def train_map(
    component: Component,
    options: Mapping[str, Any],
    dataset: Dataset,
    map_dir: Path,
    runtime: Runtime,
    stop_after: int | None = None,
) -> tuple[Estimator | Refiner, int]:
    """Fit a component and finish its map.

    Returns:
        the component as `fit` left it, and the number of steps of progress it reported.
    """
    config = typed_config(component, options)
    info = MapInfo(
        interface=component.interface,
        component=component.name,
        plugin=component.plugin,
        plugin_version="",
        config=plain(config),
        dataset={**dataset_identity(dataset), "seed": runtime.seed},
        unit=dataset.unit,
    )
    fitted: Estimator | Refiner = component.load()(config)
    writer = MapWriter(map_dir, info)
    run = RecordedRun(writer, runtime, stop_after)
    fitted.fit(dataset, run)
    writer.finish()
    return fitted, run.steps


def bad_images(camera: Camera) -> dict[str, Query]:
    """Images in which there is nothing to find, of the given camera and of unusual ones."""
    shape = (camera.height, camera.width, 3)
    rng = np.random.default_rng(0)
    tiny = Camera.pinhole(20.0, 24, 16)
    images = {
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "noise": rng.integers(0, 256, shape).astype(np.uint8),
        "stripes": np.tile(((np.arange(shape[1]) // 4 % 2) * 255).astype(np.uint8)[None, :, None],
                           (shape[0], 1, 3)),
    }  # fmt: skip
    queries = {name: Query(name, camera, image=image) for name, image in images.items()}
    queries["tiny"] = Query("tiny", tiny, image=np.full((16, 24, 3), 90, np.uint8))
    # Scaled by its shorter side it would be huge.
    sliver = rng.integers(0, 256, (2, 800, 3)).astype(np.uint8)
    queries["sliver"] = Query("sliver", Camera.pinhole(600.0, 800, 2), image=sliver)
    return queries


def perturbed(pose: Float64Array, centimetres: float, degrees: float, seed: int) -> Float64Array:
    """A pose (4, 4) moved by the given distance and turned by the given angle, direction random."""
    rng = np.random.default_rng(seed)
    axis, direction = rng.standard_normal((2, 3))
    result = np.array(pose, np.float64)
    result[:3, :3] = pose[:3, :3] @ so3_exp(axis / np.linalg.norm(axis) * np.radians(degrees))
    result[:3, 3] += direction / np.linalg.norm(direction) * centimetres / 100
    return result


def drawn(pose: Float64Array, covariance: Float64Array, rng: np.random.Generator) -> Float64Array:
    """A pose (4, 4) moved by a draw of the Gaussian (6, 6), rotation first, in its own axes."""
    return pose_plus(pose, rng.multivariate_normal(np.zeros(6), covariance))


def pose_error(estimate: Float64Array, truth: Float64Array) -> tuple[float, float]:
    """Centimetres between the positions and degrees between the rotations."""
    distance = float(np.linalg.norm(estimate[:3, 3] - truth[:3, 3]))
    return 100 * distance, float(rotation_angle_deg(estimate[:3, :3], truth[:3, :3]))


def difference(a: Localization, b: Localization) -> float:
    """How much two results differ: largest entry of the relative pose, inf if only one localized."""
    if a.localized != b.localized:
        return float("inf")
    if a.world_from_cam is None or b.world_from_cam is None:
        return 0.0
    relative = inverse(a.world_from_cam) @ b.world_from_cam
    return float(np.abs(relative - np.eye(4)).max())


def as_query(query: Query, depth: bool) -> Query:
    """A query as a user without ground truth has it, with or without depth."""
    query = query.without_ground_truth()
    return query if depth or query.depth is None else replace(query, depth=None)


# ---------------------------------------------------------------------------- watching for writes

_watched: list[set[str]] = []
_hooked = False
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_LIBRARY_PATHS = ("__pycache__", "/dev/", "/proc/", "torchinductor_")
"""Byte code, devices, and the cache folder that PyTorch makes when it is imported."""
_PATH_EVENTS = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "shutil.move": 1}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    path: object = None
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        mode = arguments[1] or ""
        if flags & _WRITING or any(letter in str(mode) for letter in "wax+"):
            path = arguments[0]
    elif event in _PATH_EVENTS:
        path = arguments[_PATH_EVENTS[event]]
    if isinstance(path, str | bytes | os.PathLike):
        for found in _watched:
            found.add(os.path.abspath(os.fsdecode(path)))


@contextmanager
def watch_writes() -> Iterator[set[str]]:
    """Collect the absolute paths that Python code opens for writing, makes or renames to.

    Byte code, devices and caches of PyTorch do not count. Native code that opens files by itself is
    not seen.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # cannot be removed again, but costs nothing while nobody watches
        _hooked = True
    found: set[str] = set()
    _watched.append(found)
    try:
        yield found
    finally:
        _watched.remove(found)
        for path in [p for p in found if any(part in p for part in _LIBRARY_PATHS)]:
            found.discard(path)

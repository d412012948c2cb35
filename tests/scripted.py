"""A small room with a scripted localizer: what comes out of an evaluation is known beforehand."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset
from reloc_core.types import (
    Camera,
    Correspondences,
    Evidence,
    Frame,
    Localization,
    Query,
    Status,
)

CAMERA = Camera.pinhole(60.0, 64, 48)


def make_pose(rotvec_deg: Sequence[float], position: Sequence[float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(rotvec_deg, degrees=True).as_matrix()
    pose[:3, 3] = position
    return pose


class Room(Dataset):
    """Frames on a line; some unreadable, some without ground truth."""

    def __init__(
        self,
        count: int = 8,
        unreadable: Sequence[int] = (),
        unposed: Sequence[int] = (),
        sequences: Sequence[str | None] | None = None,
        names: Sequence[str] | None = None,
        unit: str = "metre",
    ) -> None:
        self._unreadable, self._unit = set(unreadable), unit
        self.read_by: list[str] = []
        self._frames = [
            Frame(
                names[i] if names else f"img{i:03d}.png",
                CAMERA,
                None if i in unposed else make_pose((0, 10 * i, 3), (0.3 * i, 0.1 * i**2, 1)),
                i / 10,
                sequences[i] if sequences else "walk",
            )
            for i in range(count)
        ]

    @property
    def name(self) -> str:
        return "room/test"

    @property
    def unit(self) -> str:
        return self._unit

    @property
    def frames(self) -> Sequence[Frame]:
        return self._frames

    def __getitem__(self, index: int) -> Query:
        self.read_by.append(threading.current_thread().name)
        if index in self._unreadable:
            raise DataError(f"{self._frames[index].name} is truncated.")
        image = np.full((48, 64, 3), 40 + index, np.uint8)
        return Query(**vars(self._frames[index]), image=image)


class Scripted:
    """Gives the true pose moved along x by a scripted error, fails where it is None."""

    history = 0

    def __init__(
        self,
        room: Room,
        errors_m: Sequence[float | None],
        truths: Sequence[np.ndarray] | None = None,
    ) -> None:
        frames = room.frames
        self.error = {f.name: e for f, e in zip(frames, errors_m, strict=True)}
        self.pose = {f.name: f.world_from_cam for f in frames}
        for f, t in zip(frames, truths or [], strict=False):
            self.pose[f.name] = t
        self.calls: list[str] = []
        self.saw_truth = False

    def start_sequence(self) -> None:
        self.calls.append("start")

    def localize_with_evidence(self, query: Query) -> tuple[Evidence, Localization]:
        self.calls.append(query.name)
        self.saw_truth |= query.world_from_cam is not None
        rng = np.random.default_rng(0)
        cam = np.column_stack(
            [rng.uniform(-1, 1, 40), rng.uniform(-0.8, 0.8, 40), rng.uniform(2, 4, 40)]
        )
        pixels = cam[:, :2] / cam[:, 2:] * 60 + [CAMERA.cx, CAMERA.cy]
        true = self.pose[query.name] if self.pose[query.name] is not None else np.eye(4)
        evidence = Correspondences(pixels, cam @ true[:3, :3].T + true[:3, 3])
        error = self.error[query.name]
        if error is None:
            return evidence, Localization.failure("too few inliers")
        pose = true.copy()
        pose[0, 3] += error
        return evidence, Localization(
            Status.LOCALIZED,
            world_from_cam=pose,
            covariance=np.diag([1e-4] * 3 + [1e-4] * 3),
            num_inliers=40,
            inliers=np.ones(40, bool),
            score=1 / (1 + 10 * error),
            seconds={"estimate": 0.03, "solve": 0.01},
            stages=(("solve", pose),),
        )

    def pictures(self, query: Query, localization: Localization) -> dict[str, np.ndarray]:
        return {}

    def localize_batch(self, queries: Sequence[Query]) -> list[tuple[Evidence, Localization]]:
        return [self.localize_with_evidence(query) for query in queries]

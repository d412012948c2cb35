"""A small estimator for tests of the command line: the pose of the most similar mapped image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from reloc_core import (
    Component,
    Dataset,
    Estimator,
    Evidence,
    Localization,
    PosePrior,
    Query,
    Refiner,
    Run,
    Runtime,
    hookimpl,
)
from reloc_core.errors import MapError
from reloc_core.maps import Map
from reloc_core.types import ScenePoints


@dataclass
class ToyConfig:
    """Options: side of the thumbnails; step at which `fit` stops as if killed (-1: never)."""

    size: int = 16
    stop_at: int = -1


class ToyEstimator(Estimator):
    produces = PosePrior

    def __init__(self, config: ToyConfig) -> None:
        self.config = config

    def _describe(self, query: Query) -> np.ndarray:
        small = cv2.resize(query.image, (self.config.size,) * 2, interpolation=cv2.INTER_AREA)
        vector = small.astype(np.float32).ravel() - small.mean()
        return vector / (np.linalg.norm(vector) + 1e-6)

    def fit(self, dataset: Dataset, run: Run) -> None:
        kept: list[np.ndarray] = []
        if run.map.has_checkpoint:
            kept = list(np.asarray(run.map.load_checkpoint()[0]["kept"]))
        with run.progress("Looking at images", len(dataset)) as progress:
            for index in range(len(kept), len(dataset)):
                if index == self.config.stop_at:
                    raise KeyboardInterrupt
                kept.append(self._describe(dataset[index]))
                run.map.save_checkpoint({"kept": np.stack(kept)}, {})
                progress.advance()
                run.show(f"image {index}", lambda: ScenePoints(_positions(dataset)))
        poses = np.stack([frame.world_from_cam for frame in dataset.frames])
        run.map.save(
            "images", {"vectors": np.stack(kept), "poses": poses}, {"size": self.config.size}
        )
        self.vectors, self.poses = np.stack(kept), poses

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        tensors, metadata = scene_map.tensors("images", "np")
        if metadata["size"] != self.config.size:
            raise MapError(f"The map has thumbnails of {metadata['size']}, not {self.config.size}.")
        self.vectors, self.poses = tensors["vectors"], tensors["poses"]

    def estimate(self, query: Query) -> PosePrior:
        best = int(np.argmax(self.vectors @ self._describe(query)))
        return PosePrior(self.poses[best], np.eye(6) * 0.01)


def _positions(dataset: Dataset) -> np.ndarray:
    return np.stack([frame.world_from_cam[:3, 3] for frame in dataset.frames])


@dataclass
class ToyRefinerConfig:
    """Option: how far to move the camera along its own x axis, metres."""

    push: float = 0.0


class ToyRefiner(Refiner):
    def __init__(self, config: ToyRefinerConfig) -> None:
        self.config = config

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        self.count = len(scene_map.tensors("images", "np")[0]["poses"])

    def refine(
        self, query: Query, localization: Localization, evidence: Evidence | None = None
    ) -> Localization:
        pose = localization.world_from_cam.copy()
        pose[:3, 3] += self.config.push * pose[:3, 0]
        return replace(localization, world_from_cam=pose)

    def pictures(self, query: Query, localization: Localization) -> dict[str, np.ndarray]:
        return {f"mirrored, one of {self.count}": query.image[:, ::-1]}


@hookimpl
def reloc_register_components(registry) -> None:
    registry.add(
        Component(
            interface="estimator",
            name="toy",
            target="toy:ToyEstimator",
            config=ToyConfig,
            summary="pose of the most similar mapped image",
            produces="PosePrior",
            refiners=("toy_push",),
            needs_map=True,
        )
    )
    registry.add(
        Component(
            interface="estimator",
            name="toy_other",
            target="toy:ToyEstimator",
            config=ToyConfig,
            summary="the same under another name, whose maps toy_push cannot read",
            produces="PosePrior",
            needs_map=True,
        )
    )
    registry.add(
        Component(
            interface="refiner",
            name="toy_push",
            target="toy:ToyRefiner",
            config=ToyRefinerConfig,
            summary="pushes the camera aside",
            reads_maps_of=("toy",),
            needs_map=True,
        )
    )

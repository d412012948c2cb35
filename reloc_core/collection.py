"""Maps of maps: several maps of one world that localize as one.

A collection is a map directory that names its members, says how each lies in the common world, and keeps
global descriptors of their mapping images. A query is localized in the members whose images look most like
it. Members are loaded when they are first asked, and the ones that were asked longest ago go when
together they exceed the collection's memory.

    COLLECTION/
      map.yaml                  members by name: directory, as seen from the collection's own
      frames.safetensors        poses of all mapping images in the common world
      collection.safetensors    their global descriptors, and how the members lie in the world
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.alignment import moved, scale_of, scaled, some_frames
from reloc_core.errors import ConfigError, MapError
from reloc_core.geometry import pose_minus, transform
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.mapped import mapped_frames, save_mapped_frames
from reloc_core.maps import Map, MapInfo, MapWriter
from reloc_core.pipeline import Pipeline, Stage
from reloc_core.registry import Registry, default_registry
from reloc_core.types import (
    Correspondences,
    Evidence,
    Float64Array,
    FloatArray,
    Frame,
    ImageArray,
    Localization,
    PosePrior,
    Query,
    Status,
)

INTERFACE = "collection"
_PART = "collection"
_RESOLUTION, _KEYPOINTS = 240, 512
_ASKED = 2  # members
_ALIKE = 0.9  # of the best member's similarity, from which on the second one is asked, too
_FAR = 25.0  # squared distance of two poses over their covariances, from which on they contradict
_LIKELY = 0.5  # score below which a pose is refused
_IN_MEMORY = 3  # bytes per byte of a map's files, which are half precision for the most part
_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "looks": ("images", "length"),
    "member": ("images",),
    "words": ("words", "channels"),
    "world_from_map": ("maps", 4, 4),
}


@dataclass(frozen=True)
class Member:
    """A map to be merged.

    Attributes:
        map: open.
        dataset: its mapping images, or others of the same place, with their poses in the map.
        world_from_map: (4, 4); times a scale where the unit of the maps is arbitrary.
    """

    map: Map
    dataset: Dataset
    world_from_map: Float64Array


def merge(
    members: Mapping[str, Member],
    path: Path | str,
    *,
    memory_mb: float = 0.0,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Map:
    """Write a collection.

    Args:
        members: by name.
        path: directory to write.
        memory_mb: that loaded members may take, about; 0 for no limit.
        runtime: device and seed.
        overwrite: replace a map that is there.
        advance: called after every image that was described.

    Raises:
        ConfigError: fewer than two members, or of different units.
        DataError: an image cannot be read.
        MapError: a map is there already.
    """
    runtime = runtime or Runtime()
    if len(members) < 2:
        raise ConfigError("A collection needs at least two maps.")
    for name, member in members.items():
        if member.map.info.interface != "estimator":
            raise ConfigError(
                f"maps.{name} is a {member.map.info.interface}, not a map of a place."
            )
    units = {member.map.info.unit for member in members.values()}
    if len(units) > 1:
        raise ConfigError(f"The maps have different units: {', '.join(sorted(units))}.")
    describer = _Describer(runtime)
    found: list[FloatArray] = []
    owner: list[int] = []
    frames: list[Frame] = []
    for number, (name, member) in enumerate(members.items()):
        for index in some_frames(member.dataset):
            image = member.dataset[index].image
            found.append(describer.local(image))
            owner.append(number)
            advance()
        mapped = mapped_frames(member.map)
        frames += [
            Frame(f"{name}/{i}", camera, moved(member.world_from_map, pose))
            for i, (pose, camera) in enumerate(
                zip(mapped.world_from_cam, mapped.cameras, strict=False)
            )
        ]
    words = describer.words(np.concatenate(found), runtime.seed)
    looks = np.stack([describer.whole(each, words) for each in found])
    path = Path(path)
    info = MapInfo(
        interface=INTERFACE, component=INTERFACE, plugin="", plugin_version="",
        config={
            "memory_mb": float(memory_mb),
            "members": {
                name: os.path.relpath(member.map.path.resolve(), path.resolve())
                for name, member in members.items()
            },
        },
        dataset={"name": " + ".join(members), "frames": len(frames)},
        unit=units.pop(),
    )  # fmt: skip
    writer = MapWriter(path, info, resume=False, overwrite=overwrite)
    try:
        save_mapped_frames(writer, frames)
        poses = np.stack([member.world_from_map for member in members.values()])
        writer.save(
            _PART,
            {
                "looks": looks.astype(np.float16),
                "member": np.array(owner, np.int32),
                "words": words,
                "world_from_map": poses.astype(np.float64),
            },
            {},
        )
        return writer.finish()
    finally:
        writer.discard_without_checkpoint()


class Collection(Pipeline):
    """Localizes queries in the members of a collection that look most like them.

    Args:
        scene_map: of a collection.
        options: of every member's pipeline, as `Pipeline.from_map` takes them.
        registry: the installed components.
        workers: collections of the same map that share its memory.

    Raises:
        MapError: the collection or one of its maps is damaged or missing.
    """

    def __init__(
        self,
        scene_map: Map,
        options: Mapping[str, Any],
        registry: Registry | None = None,
        workers: int = 1,
    ) -> None:
        registry = registry or default_registry()
        runtime = options.get("runtime") or Runtime()
        members = scene_map.info.config.get("members")
        budget = scene_map.info.config.get("memory_mb", 0.0)
        if not isinstance(members, Mapping) or not isinstance(budget, int | float):
            raise MapError(f"{scene_map.path} is damaged: it names no maps.")
        tensors, _ = scene_map.tensors(_PART, "np", expect=_SHAPES)
        self._maps = {
            str(name): Map.open(Path(os.path.normpath(scene_map.path / str(place))))
            for name, place in members.items()
        }
        owner, poses = tensors["member"], tensors["world_from_map"]
        if len(poses) != len(self._maps) or not (
            len(owner) and 0 <= owner.min() <= owner.max() < len(poses)
        ):
            raise MapError(f"{scene_map.path} is damaged: its maps and descriptors do not fit.")
        self._world_from_map = dict(zip(self._maps, np.asarray(poses, np.float64), strict=True))
        self._looks = np.asarray(tensors["looks"], np.float32)
        self._owner = np.asarray(owner)
        self._words = np.asarray(tensors["words"], np.float32)
        self._options, self._registry = dict(options), registry
        self._budget = float(budget) * 1e6 / workers or np.inf
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._describer = _Describer(runtime)
        used = [registry.get("estimator", m.info.component) for m in self._maps.values()]
        stages = list(dict.fromkeys(Stage.of(component) for component in used))
        estimator = _Members(self)
        super().__init__(
            estimator, solver=None, runtime=runtime, scene_map=scene_map, stages=stages,  # type: ignore[arg-type]
            orientation=options.get("orientation", "exif"),
        )  # fmt: skip

    def member(self, name: str) -> Pipeline:
        """A member's pipeline, loaded if it is not; others go where memory is short."""
        if name not in self._loaded:
            size = _IN_MEMORY * self._maps[name].bytes
            while self._loaded and size + self._bytes() > self._budget:
                self._loaded.popitem(last=False)
            options = {**self._options, "orientation": "exif"}
            self._loaded[name] = Pipeline.from_map(
                self._maps[name], registry=self._registry, **options
            )
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _bytes(self) -> int:
        return _IN_MEMORY * sum(self._maps[name].bytes for name in self._loaded)

    def route(self, query: Query) -> dict[str, float]:
        """Members by how much their most similar image looks like a query, the best first."""
        local = self._describer.local(query.image)
        alike = self._looks @ self._describer.whole(local, self._words)
        best = np.full(len(self._maps), -1.0)
        np.maximum.at(best, self._owner, alike)
        names = list(self._maps)
        return {names[i]: float(best[i]) for i in np.argsort(-best, kind="stable")}

    def start_sequence(self) -> None:
        """Forget temporal state of all members."""
        for pipeline in self._loaded.values():
            pipeline.start_sequence()

    @property
    def history(self) -> int:
        """Preceding frames that shape an outcome, of the members in memory."""
        return max((pipeline.history for pipeline in self._loaded.values()), default=0)

    def _localize_upright(self, queries: Sequence[Query]) -> list[tuple[Evidence, Localization]]:
        return [self._localize_one(query) for query in queries]

    def _localize_one(self, query: Query) -> tuple[Evidence, Localization]:
        routed = self.route(query)
        names = list(routed)[:_ASKED]
        evidence, found = self._ask(names[0], query)
        if found.localized and routed[names[1]] < _ALIKE * routed[names[0]]:
            return evidence, found
        other_evidence, other = self._ask(names[1], query)
        if other.localized and (not found.localized or other.score > found.score):
            return other_evidence, judged(other, found)
        return evidence, judged(found, other)

    def _ask(self, name: str, query: Query) -> tuple[Evidence, Localization]:
        """Localize in one member; what comes back lies in the common world."""
        pose = self._world_from_map[name]
        scale = scale_of(pose)
        if isinstance(query.prior, PosePrior):
            back = np.linalg.inv(pose)
            prior = replace(
                query.prior, world_from_cam=moved(back, query.prior.world_from_cam),
                covariance=scaled(query.prior.covariance, 1 / scale),
            )  # fmt: skip
            query = replace(query, prior=prior)
        evidence, found = self.member(name)._localize_upright([query])[0]
        if isinstance(evidence, Correspondences):
            variances, depths = evidence.variances, evidence.points_cam
            axes, covariances = pose[:3, :3], evidence.covariances
            evidence = replace(
                evidence, points3d=transform(pose, evidence.points3d),
                variances=None if variances is None else variances * scale**2,
                covariances=None if covariances is None else axes @ covariances @ axes.T,
                points_cam=None if depths is None else depths * scale,
            )  # fmt: skip
        if found.world_from_cam is not None:
            found = replace(
                found, world_from_cam=moved(pose, found.world_from_cam),
                covariance=scaled(found.covariance, scale),
            )  # fmt: skip
        if "depth" in found.support:
            found = replace(
                found, support={**found.support, "depth": found.support["depth"] * scale}
            )
        stages = tuple((stage, moved(pose, at)) for stage, at in found.stages)
        return evidence, replace(found, stages=stages)


def judged(found: Localization, other: Localization) -> Localization:
    """A pose with the score that another map's pose of the same query leaves it.

    Of two poses that contradict each other at most one is right: p (1 - q) / (1 - p q), where p and q
    are their probabilities alone. What is rather wrong than right is refused.
    """
    if not (found.localized and other.localized):
        return found
    assert found.world_from_cam is not None
    assert other.world_from_cam is not None
    apart = pose_minus(other.world_from_cam, found.world_from_cam)
    spread = [c for c in (found.covariance, other.covariance) if c is not None]
    if (
        spread
        and np.isfinite(np.sum(spread))
        and apart @ np.linalg.pinv(sum(spread)) @ apart < _FAR
    ):
        return found
    p, q = min(found.score, 0.999), min(other.score, 0.999)
    score = p * (1 - q) / (1 - p * q)
    if score >= _LIKELY:
        return replace(found, score=score)
    return replace(
        found,
        status=Status.NOT_LOCALIZED,
        reason="another map of the collection explains it about as well, elsewhere.",
        world_from_cam=None,
        covariance=None,
        score=score,
    )


class _Members(Estimator):
    """What a collection shows as its estimator: the member that looks most like the query."""

    produces = Evidence

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def fit(self, dataset: Dataset, run: Run) -> None:
        raise MapError("A collection is made by 'reloc collect'.")

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        raise MapError("A collection is opened by 'open_pipeline'.")

    def _best(self, query: Query) -> str:
        return next(iter(self._collection.route(query)))

    def estimate(self, query: Query) -> Evidence:
        return self._collection._ask(self._best(query), query)[0]

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        return {}


def open_pipeline(
    map_dir: Path | str | Map,
    solver: str | Mapping[str, Any] | None = None,
    refiners: Sequence[str | Mapping[str, Any]] | None = None,
    estimator: str | Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
    registry: Registry | None = None,
    calibrated: bool = True,
    orientation: str = "exif",
    workers: int = 1,
) -> Pipeline:
    """The pipeline of a map or of a collection; arguments and errors as of `Pipeline.from_map`.

    `workers` are the pipelines of the same map, which share the memory that a collection may take.
    """
    scene_map = map_dir if isinstance(map_dir, Map) else Map.open(map_dir)
    options: dict[str, Any] = {
        "solver": solver, "refiners": refiners, "estimator": estimator, "runtime": runtime,
        "calibrated": calibrated, "orientation": orientation,
    }  # fmt: skip
    if scene_map.info.interface == INTERFACE:
        return Collection(scene_map, options, registry, workers)
    return Pipeline.from_map(scene_map, registry=registry, **options)


class _Describer:
    """Looks of images: VLAD over XFeat's descriptors."""

    def __init__(self, runtime: Runtime) -> None:
        # PyTorch takes a second to import, which single maps may do without.
        from reloc_core.features.keypoints import KeypointDetector

        self._detector = KeypointDetector(_RESOLUTION, runtime.device == "cpu").to(runtime.device)

    def local(self, image: ImageArray) -> FloatArray:
        """Unit descriptors (N, C) of an image's key points."""
        found = self._detector.detect([image], _KEYPOINTS)[0].descriptors
        return np.asarray(found.cpu().float().numpy(), np.float32)

    @staticmethod
    def words(local: FloatArray, seed: int) -> FloatArray:
        """Visual words (W, C) of local descriptors (N, C)."""
        import torch

        from reloc_core.features.vlad import visual_words

        words = visual_words(torch.from_numpy(local), np.random.default_rng(seed))
        return np.asarray(words.numpy(), np.float32)

    @staticmethod
    def whole(local: FloatArray, words: FloatArray) -> FloatArray:
        """Unit vector (W * C,) of an image; zero for one without key points."""
        import torch

        from reloc_core.features.vlad import vlad

        if not len(local):
            return np.zeros(words.size, np.float32)
        return np.asarray(vlad(torch.from_numpy(local), torch.from_numpy(words)).numpy())

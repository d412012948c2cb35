"""A scene prepared for graphs: described references with depth, and the retrieval index.

`prepare` describes all images of a dataset, builds NetVLAD, ranks images against each other, triangulates
the cells of each and matches training pairs. What localization needs stays in `Scene`; what only training
needs is in `Pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.matched.cells import grid_cells, rays, soft_matches
from gnn_relpose.matched.config import DepthConfig, MatchedConfig
from gnn_relpose.matched.depth import triangulate
from gnn_relpose.shared.frames import DenseFrame, Describer
from gnn_relpose.shared.ranking import Ranking
from gnn_relpose.shared.selection import spread
from reloc_core.errors import DataError
from reloc_core.features.retrieval import NetVlad, RetrievalIndex
from reloc_core.geometry import inverse
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping import evenly
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Camera, Float64Array

_WORD_SAMPLES = 100  # local descriptors per image for NetVLAD's centres
_MIN_DEPTHS = 20  # cells with depth that make a reference useful
_FOREIGN_STEP = 4  # every n-th image also gives a query that shows nothing of the scene
_SEGMENTS = 14  # of a sequence, alternately in one and the other half
REACH = 1.5
"""Depths of the scene within which cameras may share what they see; farther ones are of another room."""
_MEASURED = 32  # images that the depth is first measured in
_CODE = 127.0  # unit descriptors are stored as signed bytes


@dataclass
class Scene:
    """References of one scene.

    Attributes:
        poses: (F, 4, 4) float64 world_from_cam.
        rays: (F, K, 2) float32 of the cells; NaN where there is none.
        inverse_depth: (F, K) float32 per scene unit, 0 where unknown.
        codes: (F, K, 64) int8 descriptors of the cells.
        pooled: (F, 128) float32 mean and deviation of the descriptors of the whole image.
        descriptors: (F, D) float16 global descriptors.
        depth: median distance of the triangulated cells along the optical axis.
        usual_similarity: median over references of the similarity of the best other one.
        names: of the images.
    """

    poses: Float64Array
    rays: np.ndarray
    inverse_depth: np.ndarray
    codes: np.ndarray
    pooled: np.ndarray
    descriptors: Tensor
    depth: float
    usual_similarity: float
    names: tuple[str, ...]
    index: RetrievalIndex | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.poses)

    def cell_descriptors(self, references: np.ndarray) -> Tensor:
        """(N, K, 64) float32 of some references."""
        return torch.from_numpy(self.codes[references]).float() / _CODE

    def tensors(self) -> dict[str, Tensor]:
        """What a map stores."""
        return {
            "poses": torch.from_numpy(self.poses),
            "rays": torch.from_numpy(self.rays),
            "inverse_depth": torch.from_numpy(self.inverse_depth),
            "codes": torch.from_numpy(self.codes),
            "pooled": torch.from_numpy(self.pooled),
            "descriptors": self.descriptors,
        }

    def metadata(self) -> dict[str, object]:
        """JSON-able part of a map."""
        return {"depth": self.depth, "usual": self.usual_similarity, "names": list(self.names)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, object]) -> Scene:
        """Undo `tensors` and `metadata`."""
        arrays = {
            k: tensors[k].numpy() for k in ("poses", "rays", "inverse_depth", "codes", "pooled")
        }
        names = metadata["names"]
        assert isinstance(names, list)
        return cls(
            **arrays,
            descriptors=tensors["descriptors"],
            depth=float(metadata["depth"]),  # type: ignore[arg-type]
            usual_similarity=float(metadata["usual"]),  # type: ignore[arg-type]
            names=tuple(names),
        )


@dataclass
class Pairs:
    """Matches of training queries with candidate references.

    References of a training query come from the other half of the scene, and so do the images that
    their depth is triangulated with: as at localization, nothing has seen the query before.

    Attributes:
        queries: (Q,) frames of the scene.
        genuine: (Q,) False for queries that show nothing of the scene: transposed images, whose
            features are those of photographs but whose matches fit no pose.
        pooled: (Q, 128) of the queries.
        inverse_depth: (F, K) of the references, triangulated within their own half.
        candidates: (Q, M) references, best first; -1 where there are fewer.
        seen: (Q, M, K, 2) float16 rays in the query of the references' cells.
        stats: (Q, M, K, 3) float16, see `soft_matches`.
    """

    queries: np.ndarray
    genuine: np.ndarray
    pooled: np.ndarray
    inverse_depth: np.ndarray
    candidates: np.ndarray
    seen: np.ndarray
    stats: np.ndarray


def pool(frame: DenseFrame) -> np.ndarray:
    """(128,) mean and standard deviation of an image's descriptors."""
    flat = frame.maps.float().flatten(1)
    return torch.cat([flat.mean(1), flat.std(1)]).numpy()


def match_rays(
    descriptors: Tensor, frame: DenseFrame, camera: Camera, transposed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rays (N, K, 2) and statistics (N, K, 3) of the cells of N references in an image.

    A transposed image is seen by the transposed camera.
    """
    cells, stats = soft_matches(descriptors, frame.maps)
    pixels = frame.original_pixels(cells.numpy().astype(np.float64))
    found = rays(camera, pixels[..., ::-1])[..., ::-1] if transposed else rays(camera, pixels)
    return np.ascontiguousarray(found), stats.numpy()


def prepare(
    dataset: Dataset,
    config: MatchedConfig,
    describer: Describer,
    run: Run,
    seed: int,
    training: bool,
) -> tuple[Scene, NetVlad, Pairs | None]:
    """Describe, index and triangulate a dataset, and match its training pairs.

    Raises:
        DataError: fewer than two images, or no parallax between them.
    """
    if len(dataset) < 2:
        raise DataError(f"{dataset.name} has {len(dataset)} image; a graph needs at least two.")
    poses = np.stack([np.asarray(f.world_from_cam, np.float64) for f in dataset.frames])
    cameras = [f.camera for f in dataset.frames]
    frames, foreign = _describe(dataset, describer, run, _FOREIGN_STEP if training else 0)
    cells = _cells(frames, cameras, config.image.cells)
    sample = torch.cat([_sample(f, numpy_rng(seed, "words", i)) for i, f in enumerate(frames)])
    vlad = NetVlad.from_descriptors(sample, numpy_rng(seed, "words"), config.retrieval.clusters)
    with torch.inference_mode():
        descriptors = torch.cat([vlad(f.maps.float().flatten(1).T[None]) for f in frames])
    ranking = Ranking(descriptors)
    reach = _reach(frames, cameras, poses, cells, ranking, config)
    inverse_depth = _depths(frames, cameras, poses, cells, ranking, config, run, reach)
    known = inverse_depth[inverse_depth > 0]
    if len(known) < _MIN_DEPTHS:
        raise DataError(
            f"{dataset.name} shows no parallax: the cameras are all in one place, or the images do not "
            "overlap. Distances cannot be learned from it; take images from different places."
        )
    scene = Scene(
        poses=poses,
        rays=cells[0],
        inverse_depth=inverse_depth,
        codes=(cells[1] * _CODE).round().to(torch.int8).numpy(),
        pooled=np.stack([pool(f) for f in frames]),
        descriptors=descriptors.half(),
        depth=float(1 / np.median(known)),
        usual_similarity=float(np.median(ranking.best())),
        names=tuple(f.name for f in dataset.frames),
    )
    if not training:
        return scene, vlad, None
    half = halves([f.sequence for f in dataset.frames])
    inverse_depth = _depths(frames, cameras, poses, cells, ranking, config, run, reach, half)
    pairs = _pairs(scene, inverse_depth, half, frames, foreign, cameras, ranking, config, seed, run)
    return scene, vlad, pairs


def _describe(
    dataset: Dataset, describer: Describer, run: Run, foreign_step: int
) -> tuple[list[DenseFrame], dict[int, DenseFrame]]:
    """All images, and every n-th one transposed."""
    frames, foreign = [], {}
    with run.progress(f"Describing {dataset.name}", len(dataset)) as progress:
        for i in range(len(dataset)):
            image = dataset[i].image
            frames.append(describer.describe(image).half())
            if foreign_step and i % foreign_step == 0:
                turned = np.ascontiguousarray(image.transpose(1, 0, 2))
                foreign[i] = describer.describe(turned).half()
            progress.advance(1)
    return frames, foreign


def _cells(
    frames: Sequence[DenseFrame], cameras: Sequence[Camera], count: int
) -> tuple[np.ndarray, Tensor]:
    """Rays (F, K, 2), NaN where there is no cell, and descriptors (F, K, 64) of the references' cells."""
    all_rays = np.full((len(frames), count, 2), np.nan, np.float32)
    descriptors = torch.zeros(len(frames), count, frames[0].maps.shape[0])
    for i, (frame, camera) in enumerate(zip(frames, cameras, strict=True)):
        cells = grid_cells(frame.shape, count)
        all_rays[i, : len(cells)] = rays(camera, frame.original_pixels(cells.astype(np.float64)))
        descriptors[i, : len(cells)] = frame.maps[:, cells[:, 1], cells[:, 0]].T.float()
    return all_rays, descriptors


def _sample(frame: DenseFrame, rng: np.random.Generator) -> Tensor:
    flat = frame.maps.flatten(1).T
    return flat[torch.from_numpy(rng.permutation(len(flat))[:_WORD_SAMPLES])].float()


def _depths(
    frames: Sequence[DenseFrame],
    cameras: Sequence[Camera],
    poses: Float64Array,
    cells: tuple[np.ndarray, Tensor],
    ranking: Ranking,
    config: MatchedConfig,
    run: Run,
    reach: float,
    half: np.ndarray | None = None,
) -> np.ndarray:
    """(F, K) inverse depths; with `half` (F,) each image only with views of its own half.

    `reach` is the largest distance of the cameras: images of other rooms, which may look alike, would be
    preferred for lying so far apart.
    """
    options = config.depth
    result = np.zeros(cells[0].shape[:2], np.float32)
    title = "Triangulating references" if half is None else "Triangulating halves"
    with run.progress(title, len(frames)) as progress:
        for i in range(len(frames)):
            candidates = ranking[i]
            if half is not None:
                candidates = candidates[half[candidates] == half[i]]
            distance = np.linalg.norm(poses[candidates, :3, 3] - poses[i, :3, 3], axis=1)
            candidates = candidates[distance <= reach][: options.pool]
            views = spread(
                poses[:, :3, 3], _facing(poses, i, candidates, options), i, options.views
            )
            progress.advance(1)
            if len(views):
                result[i] = _depths_of(i, views, frames, cameras, poses, cells)
    return result


def _reach(
    frames: Sequence[DenseFrame],
    cameras: Sequence[Camera],
    poses: Float64Array,
    cells: tuple[np.ndarray, Tensor],
    ranking: Ranking,
    config: MatchedConfig,
) -> float:
    """How far apart images may be that share what they show: `REACH` of the scene's depths.

    The depth is measured with the images that look most alike, of which most are near each other.
    """
    found = [np.zeros(0, np.float32)]
    for i in evenly(len(frames), _MEASURED):
        views = _facing(poses, i, ranking[int(i)], config.depth)[: config.depth.views]
        if len(views):
            inverse_depth = _depths_of(i, views, frames, cameras, poses, cells)
            found.append(inverse_depth[inverse_depth > 0])
    known = np.concatenate(found)
    return REACH / float(np.median(known)) if len(known) >= _MIN_DEPTHS else math.inf


def _facing(
    poses: Float64Array, i: int, candidates: np.ndarray, options: DepthConfig
) -> np.ndarray:
    """Those of the candidates that look about where image i does."""
    forward = poses[candidates][:, :3, 2] @ poses[i, :3, 2]
    return candidates[forward > np.cos(np.radians(options.max_angle_deg))]


def _depths_of(
    i: int,
    views: np.ndarray,
    frames: Sequence[DenseFrame],
    cameras: Sequence[Camera],
    poses: Float64Array,
    cells: tuple[np.ndarray, Tensor],
) -> np.ndarray:
    """(K,) inverse depths of the cells of image i by their matches in other views."""
    present = np.isfinite(cells[0][i]).all(-1)
    matched = [match_rays(cells[1][i][None], frames[j], cameras[j]) for j in views]
    seen = np.concatenate([m[0] for m in matched]).astype(np.float64)
    mutual = np.stack([m[1][0, :, 2] for m in matched]) > 0
    usable = mutual & np.isfinite(seen).all(-1) & present
    found = triangulate(
        np.nan_to_num(cells[0][i]).astype(np.float64),
        np.nan_to_num(seen),
        inverse(poses[views]) @ poses[i],
        usable,
    )
    return np.asarray(found.values)


def halves(sequences: Sequence[str | None]) -> np.ndarray:
    """(F,) 0 or 1: alternating segments of each sequence, so that no half has an image's neighbours.

    Segments hold a fourteenth of a sequence: ten degrees and decimetres of a room's video. A fourteenth
    of all images would be a quarter of a room where there are four: the other half sees little of it.

    Args:
        sequences: of each image; those of one follow each other.
    """
    names, numbers = np.unique([s or "" for s in sequences], return_inverse=True)
    segments, first = np.zeros(len(sequences), int), 0
    for number in range(len(names)):
        (rows,) = np.nonzero(numbers == number)
        within = np.arange(len(rows)) // max(len(rows) // _SEGMENTS, 1)
        segments[rows] = first + within
        first += int(within[-1]) + 1
    return segments % 2


def _pairs(
    scene: Scene,
    inverse_depth: np.ndarray,
    half: np.ndarray,
    frames: Sequence[DenseFrame],
    foreign: Mapping[int, DenseFrame],
    cameras: Sequence[Camera],
    ranking: Ranking,
    config: MatchedConfig,
    seed: int,
    run: Run,
) -> Pairs:
    cells, wanted = scene.rays.shape[1], config.train.candidates
    queries = np.concatenate([np.arange(len(frames)), np.array(list(foreign), int)])
    genuine = np.arange(len(queries)) < len(frames)
    count = len(queries)
    candidates = np.full((count, wanted), -1)
    seen = np.zeros((count, wanted, cells, 2), np.float16)
    stats = np.zeros((count, wanted, cells, 3), np.float16)
    shown = [*frames, *foreign.values()]
    with run.progress("Matching training pairs", count) as progress:
        for row, (i, frame) in enumerate(zip(queries, shown, strict=True)):
            rng = numpy_rng(seed, "candidates", row)
            others = ranking[int(i)]
            near = np.linalg.norm(scene.poses[others, :3, 3] - scene.poses[i, :3, 3], axis=1)
            usable = (half[others] != half[i]) & (near <= REACH * scene.depth)
            others = others[usable][: config.retrieval.pool]
            chosen = _candidates(others, wanted, rng)
            candidates[row, : len(chosen)] = chosen
            found = match_rays(
                scene.cell_descriptors(chosen), frame, cameras[i], transposed=not genuine[row]
            )
            seen[row, : len(chosen)], stats[row, : len(chosen)] = found
            progress.advance(1)
    pooled = np.stack([pool(frame) for frame in shown])
    return Pairs(queries, genuine, pooled, inverse_depth, candidates, seen, stats)


def _candidates(ranking: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Half the best references, the others drawn from the ranking: localization meets both."""
    best, rest = ranking[: wanted // 2], ranking[wanted // 2 :]
    drawn = np.sort(rng.permutation(len(rest))[: wanted - len(best)])
    return np.concatenate([best, rest[drawn]])

"""A scene prepared for graphs: references, their retrieval and their pose vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.compact.config import CompactConfig
from gnn_relpose.compact.views import Views
from gnn_relpose.shared.ranking import Ranking
from gnn_relpose.shared.vectors import Convention, scene_convention
from reloc_core.features.retrieval import NetVlad
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array

_BLOCKS = 20  # of a sequence, some of which are held out


@dataclass
class Scene:
    """What localization needs of a scene beside the network.

    Attributes:
        poses: (F, 4, 4) float64 world_from_cam.
        nodes: (F, C) node vectors of the references.
        descriptors: (F, D) float16 global descriptors.
        usual_similarity: median over references of the similarity of the best other one.
        convention: of pose vectors.
        scales: factors of the predicted deviations of translation and rotation, measured on images that
            were not trained on.
        names: of the images.
    """

    poses: Float64Array
    nodes: Tensor
    descriptors: Tensor
    usual_similarity: float
    convention: Convention
    scales: tuple[float, float]
    names: tuple[str, ...]

    def tensors(self) -> dict[str, Tensor]:
        """What a map stores."""
        return {
            "poses": torch.from_numpy(self.poses),
            "nodes": self.nodes.half(),
            "descriptors": self.descriptors,
            "frame_from_world": torch.from_numpy(self.convention.frame_from_world),
            "deviation": torch.from_numpy(self.convention.deviation),
        }

    def metadata(self) -> dict[str, Any]:
        """JSON-able part of a map."""
        return {
            "usual": self.usual_similarity,
            "scales": list(self.scales),
            "names": list(self.names),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Scene:
        """Undo `tensors` and `metadata`."""
        convention = Convention(
            tensors["frame_from_world"].numpy(), deviation=tensors["deviation"].numpy()
        )
        scales = metadata["scales"]
        return cls(
            tensors["poses"].numpy(),
            tensors["nodes"].float(),
            tensors["descriptors"],
            float(metadata["usual"]),
            convention,
            (float(scales[0]), float(scales[1])),
            tuple(metadata["names"]),
        )


@dataclass
class TrainingScene:
    """A scene whose images become nodes.

    Attributes:
        maps: (F, V, 64, rows, columns) float16.
        vectors: (F, V, 6) pose vectors.
        ranking: of an image the other images (F - 1,), those most alike first.
        blocks: (F,) number of the stretch of the sequence that an image belongs to.
        held: (F,) whether an image is kept from training.
    """

    maps: Tensor
    vectors: Tensor
    ranking: Ranking
    blocks: np.ndarray
    held: np.ndarray


def retrieval(views: Views, config: CompactConfig, seed: int) -> tuple[NetVlad, Tensor]:
    """NetVLAD of a scene, and the global descriptors (F, D) float16 of its images."""
    rng = numpy_rng(seed, "words")
    vlad = NetVlad.from_descriptors(views.locals.flatten(0, 1), rng, config.retrieval.clusters)
    with torch.inference_mode():
        found = torch.cat([vlad(flat.float()[None]) for flat in views.full])
    return vlad, found.half()


def prepare(
    views: Views, descriptors: Tensor, names: tuple[str, ...], validation: float
) -> tuple[Scene, TrainingScene]:
    """The scene of described images; its nodes and scales are those of a network yet to come."""
    count = len(views.maps)
    ranking = Ranking(descriptors)
    usual = float(np.median(ranking.best()))
    poses = views.poses[:, 0].copy()
    convention = scene_convention(poses)
    blocks = np.arange(count) * _BLOCKS // count
    step = round(1 / validation) if validation > 0 else 0
    held = blocks % step == step // 2 if step and count >= 2 * _BLOCKS else np.zeros(count, bool)
    scene = Scene(poses, torch.zeros(count, 0), descriptors, usual, convention, (1.0, 1.0), names)
    vectors = convention.vectors(views.poses)
    return scene, TrainingScene(views.maps, vectors, ranking, blocks, held)

"""The estimator `gnn_regressor`: relative poses regressed by the graph network alone."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from torch import Tensor

from gnn_relpose.compact.config import CompactConfig, check
from gnn_relpose.compact.evidence import evidence, measured_scales
from gnn_relpose.compact.network import CompactNetwork, pooled
from gnn_relpose.compact.scene import Scene, TrainingScene, prepare, retrieval
from gnn_relpose.compact.training import Trainer
from gnn_relpose.compact.views import describe
from gnn_relpose.shared.frames import Describer
from gnn_relpose.shared.selection import salt_of, thin
from gnn_relpose.shared.training import load_weights, other_scenes
from reloc_core.errors import DataError, MapError
from reloc_core.features.retrieval import NetVlad, RetrievalIndex
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Query, RelativePoses


class CompactEstimator(Estimator):
    """See the module docstring. Maps hold the references' node vectors, not their images."""

    produces = RelativePoses

    def __init__(self, config: CompactConfig) -> None:
        check(config)
        self.config = config
        self.scene: Scene | None = None
        self.vlad: NetVlad | None = None
        self.network: CompactNetwork | None = None
        self.describer: Describer | None = None
        self.index: RetrievalIndex | None = None
        self.seed = 0

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or no other scenes to learn from.
            MapError: `train.warm_start` names no map of this method.
        """
        options, seed = self.config.train, run.runtime.seed
        extra = other_scenes(run, options.regime)
        self.describer = Describer(self.config.resolution)
        torch.manual_seed(int(numpy_rng(seed, "network").integers(1 << 62)))
        network = CompactNetwork(self.config.network)
        scales = (1.0, 1.0)
        if options.warm_start:
            scales = load_network(network, Map.open(options.warm_start))
        training = options.iterations > 0
        mapped = training and options.regime != "leave_one_out"
        scene, vlad, own = self._prepared(dataset, run, mapped)
        scenes = [own] if mapped else []
        scenes += [self._prepared(other, run, True)[2] for other in (extra if training else [])]
        trained = Trainer(self.config, network, scenes, seed).run(run) if training else {}
        network.eval()
        with torch.inference_mode():
            scene.nodes = torch.cat([network.nodes(m[:1].float()) for m in own.maps])
        if mapped:
            scales = measured_scales(network, scene, own, self.config.graph.neighbours)
        scene = replace(scene, scales=scales)
        run.map.save("scene", scene.tensors(), scene.metadata())
        run.map.save("vlad", dict(vlad.state_dict()), {})
        metadata = {"network": self._architecture(), "scales": list(scales)}
        run.map.save("network", dict(network.state_dict()), metadata)
        run.map.details.update(
            references=len(scene.poses), scenes=max(len(scenes), 1), scales=list(scales), **trained
        )
        self._use(scene, vlad, network, seed)

    def _prepared(
        self, dataset: Dataset, run: Run, training: bool
    ) -> tuple[Scene, NetVlad, TrainingScene]:
        if len(dataset) < 2:
            raise DataError(f"{dataset.name} has {len(dataset)} image; a graph needs at least two.")
        assert self.describer is not None
        views = describe(dataset, self.describer, self.config.augment, run, training)
        vlad, descriptors = retrieval(views, self.config, run.runtime.seed)
        names = tuple(f.name for f in dataset.frames)
        validation = self.config.train.validation if training else 0.0
        scene, prepared = prepare(views, descriptors, names, validation)
        return scene, vlad, prepared

    def _architecture(self) -> dict[str, object]:
        network = asdict(self.config.network)
        return {k: v for k, v in network.items() if k not in ("dropout", "scatter")}

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`.

        Raises:
            MapError: the map is of another method or shape.
        """
        network = CompactNetwork(self.config.network)
        load_network(network, scene_map)
        scene = Scene.from_tensors(*scene_map.tensors("scene"))
        centers = scene_map.tensors("vlad")[0]
        vlad = NetVlad(centers["centroids"])
        vlad.load_state_dict(centers)
        self._use(scene, vlad, network, runtime.seed)

    def _use(self, scene: Scene, vlad: NetVlad, network: CompactNetwork, seed: int) -> None:
        self.scene, self.vlad, self.network = scene, vlad, network.eval()
        self.describer = self.describer or Describer(self.config.resolution)
        self.index = RetrievalIndex(scene.descriptors, self.config.retrieval.index)
        self.seed = seed

    # --------------------------------------------------------------------------- localization

    @torch.inference_mode()
    def estimate(self, query: Query) -> RelativePoses:
        """See `Estimator.estimate`: one relative pose per reference, best-ranked first."""
        scene, network, index = self.scene, self.network, self.index
        if scene is None or network is None or self.vlad is None or index is None:
            raise MapError("gnn_regressor has no map yet: call load or fit first.")
        assert self.describer is not None
        maps = self.describer.describe(query.image).maps
        descriptor: Tensor = self.vlad(maps.flatten(1).T[None])
        found, similarity = index.search(descriptor, self.config.retrieval.pool)
        rng = numpy_rng(self.seed, "thinning", salt_of(descriptor[0]))
        # Without depths the spread of the cameras stands for the size of the scene.
        size = float(scene.convention.deviation[0]) * 2
        references = thin(found[0][found[0] >= 0], self.config.graph, rng, scene.poses, size)
        own = network.nodes(pooled(maps[None]))
        alike = float(similarity[0, 0]) / max(scene.usual_similarity, 1e-6)
        return evidence(network, scene, own, references, alike)


def load_network(network: CompactNetwork, scene_map: Map) -> tuple[float, float]:
    """Read the network of a map; returns by how much its deviations are scaled.

    Raises:
        MapError: the map is of another method, or its network of another shape.
    """
    scales = load_weights(network, scene_map)["scales"]
    return float(scales[0]), float(scales[1])

"""The estimator `gnn_published`: RelPose-GNN as published, trained end to end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.published.config import PublishedConfig, check
from gnn_relpose.published.constants import constants
from gnn_relpose.published.images import Colors, resize
from gnn_relpose.published.network import (
    PublishedNetwork,
    load_checkpoint,
    load_node_weights,
)
from gnn_relpose.published.retrieval import Retrieval, read_netvlad
from gnn_relpose.published.training import PublishedTrainer, TrainingScene
from gnn_relpose.shared.ranking import Ranking
from gnn_relpose.shared.selection import salt_of, thin
from gnn_relpose.shared.topology import fully_connected
from gnn_relpose.shared.training import other_scenes
from reloc_core.errors import DataError, MapError
from reloc_core.features.retrieval import RetrievalIndex
from reloc_core.geometry import inverse
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Float64Array, Query, RelativePoses


class PublishedEstimator(Estimator):
    """See the module docstring. Maps hold the references' node vectors, not their images."""

    produces = RelativePoses

    def __init__(self, config: PublishedConfig) -> None:
        check(config)
        self.config = config
        self.constants = constants(config.constants)
        self.network: PublishedNetwork | None = None
        self.retrieval: Retrieval | None = None
        self.seed = 0

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or no other scenes to learn from.
        """
        options, seed = self.config.train, run.runtime.seed
        if len(dataset) < 2:
            raise DataError(f"{dataset.name} has {len(dataset)} image; a graph needs at least two.")
        extra = other_scenes(run, options.regime)
        torch.manual_seed(int(numpy_rng(seed, "network").integers(1 << 62)))
        network = self._network().to(run.runtime.device)
        if self.config.network.weights:
            load_checkpoint(network, self.config.network.weights)
        elif self.config.network.node_weights:
            load_node_weights(network, self.config.network.node_weights)
        weights = self.config.retrieval_weights
        retrieval = self._retrieval(read_netvlad(weights) if weights else None, run)
        scene, descriptors = self._scene(dataset, run, retrieval, mapped=True)
        if options.epochs:
            scenes = [] if options.regime == "leave_one_out" else [scene]
            given = retrieval.network.state_dict() if retrieval.network else None
            scenes += [self._scene(o, run, self._retrieval(given, run))[0] for o in extra]
            run.map.details.update(PublishedTrainer(self.config, network, scenes, seed).run(run))
        nodes = self._nodes(network, scene, run)
        poses = np.stack([np.asarray(f.world_from_cam, np.float64) for f in dataset.frames])
        run.map.save("network", dict(network.state_dict()), {})
        run.map.save("vlad", retrieval.tensors(), {})
        tensors = {
            "nodes": nodes.half(),
            "descriptors": descriptors.half(),
            "poses": torch.from_numpy(poses),
            "mean": torch.from_numpy(scene.colors.mean),
            "deviation": torch.from_numpy(scene.colors.deviation),
        }
        names = [f.name for f in dataset.frames]
        run.map.save("scene", tensors, {"names": names})
        self._use(network, retrieval, tensors, names, run.runtime)

    def _network(self) -> PublishedNetwork:
        options = self.config.network
        return PublishedNetwork(
            options.channels,
            options.recursions,
            options.neighbours,
            options.dropout,
            options.scatter,
        )

    def _retrieval(self, weights: dict[str, Tensor] | None, run: Run) -> Retrieval:
        clusters, device = self.config.retrieval.clusters, run.runtime.device
        return Retrieval(self.config.resolution, clusters, weights, device)

    def _scene(
        self, dataset: Dataset, run: Run, retrieval: Retrieval, mapped: bool = False
    ) -> tuple[TrainingScene, Tensor]:
        """Rank the images of a dataset against each other; their global descriptors, too."""
        descriptors = retrieval.fit(dataset, run)
        poses = np.stack([np.asarray(f.world_from_cam, np.float64) for f in dataset.frames])
        known = self.constants
        colors = known.colors if mapped or known.everywhere else None
        vectors = known.convention.vectors(poses)
        scene = TrainingScene(dataset, colors or Colors.of(dataset), vectors, Ranking(descriptors))
        return scene, descriptors

    @torch.inference_mode()
    def _nodes(self, network: PublishedNetwork, scene: TrainingScene, run: Run) -> Tensor:
        """Node vectors (F, C): in evaluation a node does not depend on the others."""
        network.eval()
        found = []
        with run.progress("Describing references", len(scene.dataset)) as progress:
            for i in range(len(scene.dataset)):
                image = resize(scene.dataset[i].image, self.config.height) / 255.0
                normal = scene.colors.normalize(image)[None].to(run.runtime.device)
                found.append(network.nodes(normal).cpu())
                progress.advance(1)
        return torch.cat(found)

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`."""
        network = self._network()
        state, _ = scene_map.tensors("network")
        if len(state["proj_edge.bias"]) != self.config.network.channels:
            raise MapError(
                f"{scene_map.path} has {len(state['proj_edge.bias'])} channels. Leave "
                "estimator.network.channels out, or train again."
            )
        network.load_state_dict(state)
        tensors, metadata = scene_map.tensors("scene")
        known, _ = scene_map.tensors("vlad")
        retrieval = Retrieval.of(known, self.config.resolution, runtime.device)
        self._use(network.to(runtime.device), retrieval, tensors, metadata["names"], runtime)

    def _use(
        self,
        network: PublishedNetwork,
        retrieval: Retrieval,
        tensors: dict[str, Tensor],
        names: Sequence[str],
        runtime: Runtime,
    ) -> None:
        self.network, self.retrieval, self.names = network.eval(), retrieval, tuple(names)
        self.device, self.seed = runtime.device, runtime.seed
        self.nodes = tensors["nodes"].float().to(runtime.device)
        self.poses: Float64Array = tensors["poses"].numpy()
        self.colors = Colors(tensors["mean"].numpy(), tensors["deviation"].numpy())
        self.index = RetrievalIndex(tensors["descriptors"], self.config.retrieval.index)

    # --------------------------------------------------------------------------- localization

    @torch.inference_mode()
    def estimate(self, query: Query) -> RelativePoses:
        """See `Estimator.estimate`: one relative pose per edge into the query, in edge order."""
        if self.network is None or self.retrieval is None:
            raise MapError("gnn_published has no map yet: call load or fit first.")
        descriptor = self.retrieval.describe(query.image)
        found, similarity = self.index.search(descriptor, self.config.retrieval.pool)
        salt = salt_of(descriptor[0])
        rng = numpy_rng(self.seed, "thinning", salt)
        references = thin(found[0][found[0] >= 0], self.config.graph, rng)
        torch.manual_seed(salt)
        image = self.colors.normalize(resize(query.image, self.config.height) / 255.0)
        own = self.network.nodes(image[None].to(self.device))
        nodes = torch.cat([own, self.nodes[torch.from_numpy(references).to(self.device)]])
        index = fully_connected(len(nodes)).to(self.device)
        graph = torch.zeros(len(nodes), dtype=torch.long, device=self.device)
        dropping = self.config.network.test_dropout
        relative, index = self.network.relative(nodes, index, graph, dropping)
        into = index[1] == 0
        source = (index[0, into] - 1).cpu().numpy()
        world_from_ref = self.poses[references[source]]
        convention = self.constants.convention
        vectors = convention.vectors(world_from_ref) - relative[into].cpu()
        finite = vectors.isfinite().all(-1).numpy()
        world_from_ref = world_from_ref[finite]
        poses = convention.poses(vectors[torch.from_numpy(finite)])
        return RelativePoses(
            world_from_ref,
            inverse(world_from_ref) @ poses,
            names=tuple(self.names[i] for i in references[source][finite]),
            signals={"retrieval": float(similarity[0, 0])},
        )

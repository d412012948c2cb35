"""The estimator `gnn_matched`: retrieval graph and graph network on frozen XFeat features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.matched.agreement import Agreement, agreement
from gnn_relpose.matched.calibration import Calibration, calibrate, evidence
from gnn_relpose.matched.config import MatchedConfig, check
from gnn_relpose.matched.focal import believed_camera
from gnn_relpose.matched.graphs import Graph, make_batch, scene_graph
from gnn_relpose.matched.network import GraphNetwork
from gnn_relpose.matched.scene import REACH, Pairs, Scene, match_rays, pool, prepare
from gnn_relpose.matched.training import Trainer
from gnn_relpose.shared.frames import Describer
from gnn_relpose.shared.selection import salt_of, thin
from gnn_relpose.shared.training import load_weights, other_scenes
from reloc_core.errors import MapError
from reloc_core.features.retrieval import NetVlad, RetrievalIndex
from reloc_core.interfaces import Dataset, Estimator, Run, Runtime
from reloc_core.maps import Map, MapWriter, load_tensors, save_tensors
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Query, RelativePoses

_PLACES = 3  # that are tried: rooms may look alike
_AS_GOOD, _POWER = (
    0.95,
    20,
)  # share of the matches with which another place is as good, and how that fades


@dataclass(frozen=True)
class Neighbours:
    """What retrieval found for a query.

    Attributes:
        references: best first, thinned.
        similarity: of the best-ranked reference.
    """

    references: np.ndarray
    similarity: float


class MatchedEstimator(Estimator):
    """See the module docstring."""

    produces = RelativePoses

    def __init__(self, config: MatchedConfig) -> None:
        check(config)
        self.config = config
        self.scene: Scene | None = None
        self.vlad: NetVlad | None = None
        self.network: GraphNetwork | None = None
        self.describer: Describer | None = None
        self.index: RetrievalIndex | None = None
        self.calibration = Calibration()
        self.seed = 0

    # ------------------------------------------------------------------------------- mapping

    def fit(self, dataset: Dataset, run: Run) -> None:
        """See `Estimator.fit`.

        Raises:
            DataError: too few images, or no parallax between them.
            MapError: `train.warm_start` names no map of this method.
        """
        options, seed = self.config.train, run.runtime.seed
        extra = other_scenes(run, options.regime)
        self.describer = Describer(self.config.image.resolution)
        torch.manual_seed(int(numpy_rng(seed, "network").integers(1 << 62)))
        network = GraphNetwork(self.config.network)
        if options.warm_start:
            self.calibration = load_network(network, Map.open(options.warm_start))
        training = options.iterations > 0
        mapped = training and options.regime != "leave_one_out"
        scene, vlad, pairs = self._prepared("scene", dataset, run, mapped)
        scenes = [(scene, pairs)] if pairs is not None else []
        for number, other in enumerate(extra if training else []):
            found, _, more = self._prepared(f"extra{number}", other, run, True)
            assert more is not None
            scenes.append((found, more))
        trained = {}
        if training:
            trained = Trainer(self.config, network, scenes, seed).run(run)
            # The mapped scene where it was trained on, else the first of the others.
            self.calibration = calibrate(network, *scenes[0], self.config.graph.neighbours, run)
        run.map.save("scene", scene.tensors(), scene.metadata())
        run.map.save("vlad", dict(vlad.state_dict()), {})
        run.map.save(
            "network",
            dict(network.state_dict()),
            {"network": self._architecture(), "calibration": self.calibration.metadata()},
        )
        run.map.details.update(
            references=len(scene), scenes=len(scenes), depth=round(scene.depth, 4), **trained
        )
        self._use(scene, vlad, network, seed)

    def _prepared(
        self, name: str, dataset: Dataset, run: Run, training: bool
    ) -> tuple[Scene, NetVlad, Pairs | None]:
        """A prepared dataset, from the interrupted run when it got that far."""
        assert self.describer is not None
        path = run.map.scratch / f"{name}.safetensors"
        if path.is_file():
            tensors, metadata = load_tensors(path)
            return _from_scratch(tensors, metadata)
        found = prepare(dataset, self.config, self.describer, run, run.runtime.seed, training)
        if isinstance(run.map, MapWriter) and run.map.primary:
            save_tensors(path, *_to_scratch(*found))
        return found

    def _architecture(self) -> dict[str, object]:
        skipped = ("dropout", "scatter")
        network = asdict(self.config.network)
        return {key: value for key, value in network.items() if key not in skipped}

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`."""
        network = GraphNetwork(self.config.network)
        self.calibration = load_network(network, scene_map)
        scene = Scene.from_tensors(*scene_map.tensors("scene"))
        centers = scene_map.tensors("vlad")[0]
        vlad = NetVlad(centers["centroids"])
        vlad.load_state_dict(centers)
        if scene.rays.shape[1] != self.config.image.cells:
            raise MapError(
                f"{scene_map.path} was made with {scene.rays.shape[1]} cells per reference. Leave "
                "estimator.image.cells out, or train again."
            )
        self._use(scene, vlad, network, runtime.seed)

    def _use(self, scene: Scene, vlad: NetVlad, network: GraphNetwork, seed: int) -> None:
        self.scene, self.vlad, self.network = scene, vlad, network.eval()
        self.describer = self.describer or Describer(self.config.image.resolution)
        self.index = RetrievalIndex(scene.descriptors, self.config.retrieval.index)
        self.seed = seed

    # --------------------------------------------------------------------------- localization

    def neighbours(self, descriptor: Tensor, salt: int = 0) -> Neighbours:
        """References of a query with a global descriptor (D,): those of the place that looks most like it.

        Args:
            descriptor: unit vector.
            salt: of the random thinning.
        """
        return self._places(descriptor, salt)[0]

    def _places(self, descriptor: Tensor, salt: int) -> list[Neighbours]:
        """References of each place that may be the query's, the one that looks most like it first.

        A place is what lies within reach of the best reference that is in no place yet. Rooms that look
        alike share a ranking, and a graph of references of several rooms knows little of any.
        """
        if self.index is None or self.scene is None:
            raise MapError("gnn_matched has no map yet: call load or fit first.")
        found, similarity = self.index.search(descriptor[None], self.config.retrieval.pool)
        ranking = found[0][found[0] >= 0]
        scene, places = self.scene, []
        best = float(similarity[0, 0]) if len(ranking) else 0.0
        while len(places) < _PLACES and (len(ranking) or not places):
            centers = scene.poses[ranking, :3, 3]
            here = np.linalg.norm(centers - centers[:1], axis=1) <= REACH * scene.depth
            rng = numpy_rng(self.seed, "thinning", salt)
            chosen = thin(ranking[here], self.config.graph, rng, scene.poses, scene.depth)
            places.append(Neighbours(chosen, best))
            ranking = ranking[~here]
        return places

    @torch.inference_mode()
    def estimate(self, query: Query) -> RelativePoses:
        """See `Estimator.estimate`: the query relative to its neighbours in the graph."""
        scene, vlad, network, describer = self.scene, self.vlad, self.network, self.describer
        if scene is None or vlad is None or network is None or describer is None:
            raise MapError("gnn_matched has no map yet: call load or fit first.")
        frame = describer.describe(query.image)
        descriptor = vlad(frame.maps.flatten(1).T[None])[0]
        places = self._places(descriptor, salt_of(descriptor))
        similarity = places[0].similarity
        if similarity < self.config.min_similarity * scene.usual_similarity:
            return _empty("no reference image resembles the query")
        pooled, graphs, believed = pool(frame), [], []
        for references in (p.references for p in places):
            descriptors = scene.cell_descriptors(references)
            seen, stats = match_rays(descriptors, frame, query.camera)
            found = believed_camera(query.camera, scene, references, seen, stats)
            if found.camera != query.camera:
                seen, stats = match_rays(descriptors, frame, found.camera)
            graphs.append(scene_graph(scene, references, pooled, seen, stats))
            believed.append(found)
        batch, _ = make_batch(graphs)
        agreed = agreement(batch, network(batch)[-1])
        ends = np.cumsum([0, *(len(p.references) for p in places)])
        fitting = agreed.fitting[ends[:-1]]
        best = int(fitting.argmax())
        rows = slice(int(ends[best]), int(ends[best + 1]))
        names = tuple(scene.names[i] for i in places[best].references)
        given = evidence(graphs[best], agreed, rows, self.calibration, names)
        given = believed[best].in_evidence(given)
        signals = {
            "retrieval": similarity / max(scene.usual_similarity, 1e-6),
            "agreement": float(agreed.common[rows][0].clamp(min=1e-3).log()),
            "support": float(agreed.support[rows].median().clamp(min=1e-3).log()),
        }
        if believed[best].doubt:
            signals["camera"] = -believed[best].doubt
        rivals = fitting[self._apart(graphs, agreed, ends, best)]
        if len(rivals):
            share = float(rivals.max() / fitting[best].clamp(min=1)) / _AS_GOOD
            signals["alone"] = 1 - 0.5 * min(share, 1.0) ** _POWER
        camera = believed[best].camera
        changed = camera if camera != query.camera else None
        return replace(given, signals=signals, camera=changed)

    def _apart(
        self, graphs: list[Graph], agreed: Agreement, ends: np.ndarray, best: int
    ) -> np.ndarray:
        """(P,) which places have the query elsewhere than the best one; others see the same."""
        moves = agreed.poses[1]
        centers = np.stack(
            [
                (g.world_from_ref[0] @ np.append(moves[int(row)].double().numpy() * g.depth, 1))[:3]
                for g, row in zip(graphs, ends[:-1], strict=True)
            ]
        )
        assert self.scene is not None
        return np.asarray(np.linalg.norm(centers - centers[best], axis=1) > self.scene.depth / 2)


def _empty(reason: str) -> RelativePoses:
    return RelativePoses(
        np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), confidences=np.zeros(0), reason=reason
    )


def load_network(network: GraphNetwork, scene_map: Map) -> Calibration:
    """Read the network of a map; returns how far its evidence is to be believed.

    Raises:
        MapError: the map is of another method, or its network of another shape.
    """
    calibration = load_weights(network, scene_map).get("calibration")
    return Calibration(**calibration) if isinstance(calibration, dict) else Calibration()


def _to_scratch(
    scene: Scene, vlad: NetVlad, pairs: Pairs | None
) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors = {f"scene.{k}": v for k, v in scene.tensors().items()}
    tensors |= {f"vlad.{k}": v for k, v in vlad.state_dict().items()}
    if pairs is not None:
        tensors |= {f"pairs.{k}": torch.from_numpy(v) for k, v in vars(pairs).items()}
    return tensors, scene.metadata()


def _from_scratch(
    tensors: Mapping[str, Tensor], metadata: dict[str, object]
) -> tuple[Scene, NetVlad, Pairs | None]:
    def below(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    vlad = NetVlad(below("vlad.")["centroids"])
    vlad.load_state_dict(below("vlad."))
    arrays = {k: v.numpy() for k, v in below("pairs.").items()}
    return Scene.from_tensors(below("scene."), metadata), vlad, Pairs(**arrays) if arrays else None

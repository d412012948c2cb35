"""What the graph network of `gnn_relpose/matched` is worth: essential matrices in its place.

    python benchmarks/relative_poses.py --map MAP --root DIR [--step 4] [--json FILE]

MAP is a map of `gnn_matched`. Every query has the references and matches of the estimator. Rows:

  best reference     the pose of the best-retrieved reference
  network            the estimator as it is
  essential          five-point RANSAC on the matches of each reference, no depth; relative poses of unknown
                     scale, which the solver `averaging` puts together
  essential, agreed  the same as the start in place of the network's: the matches of all references, with
                     their depths, move it together from there
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gnn_relpose.matched.agreement import agreement
from gnn_relpose.matched.calibration import evidence
from gnn_relpose.matched.estimator import MatchedEstimator
from gnn_relpose.matched.graphs import Graph, make_batch, scene_graph
from gnn_relpose.matched.scene import match_rays, pool

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.geometry import inverse, rotation_angle_deg
from reloc_core.interfaces import Runtime
from reloc_core.pipeline import Pipeline
from reloc_core.solvers.config import AveragingConfig
from reloc_core.solvers.relative import estimate_relative_pose
from reloc_core.solvers.relative_poses import AveragingSolver
from reloc_core.types import Camera, Float64Array, Query, RelativePoses

FOCAL = 1000.0  # of the camera that rays are projected with
LEAST = 8  # matches of a reference


def essential(graph: Graph) -> RelativePoses:
    """Relative poses of unknown scale by five-point RANSAC on each reference's matches."""
    camera = Camera.pinhole(FOCAL, 2000, 2000)
    chosen, relative, confidences = [], [], []
    for number, (rays, seen) in enumerate(zip(graph.rays, graph.seen, strict=True)):
        known = np.isfinite(rays).all(1) & np.isfinite(seen).all(1)
        if known.sum() < LEAST:
            continue
        centre = np.array([camera.cx, camera.cy])
        a, b = (FOCAL * x[known].astype(np.float64) + centre for x in (rays, seen))
        found = estimate_relative_pose(a, b, camera, camera)
        if found.success:
            chosen.append(number)
            relative.append(inverse(found.b_from_a))
            confidences.append(found.num_inliers / known.sum())
    poses = np.stack(relative) if relative else np.zeros((0, 4, 4))
    return RelativePoses(
        graph.world_from_ref[chosen], poses, scale_known=False, confidences=np.array(confidences)
    )


class Sides:
    """Localizes a query in all ways that are compared.

    Args:
        pipeline: of a map of `gnn_matched`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        assert isinstance(pipeline.estimator, MatchedEstimator)
        self.estimator, self.runtime = pipeline.estimator, pipeline.runtime
        self.solver = AveragingSolver(AveragingConfig())

    @torch.inference_mode()
    def localize(self, query: Query) -> dict[str, Float64Array | None]:
        """Poses by the name of the row."""
        own = self.estimator
        assert own.scene is not None
        assert own.vlad is not None
        assert own.describer is not None
        frame = own.describer.describe(query.image)
        descriptor = own.vlad(frame.maps.flatten(1).T[None])[0]
        references = own.neighbours(descriptor).references
        seen, stats = match_rays(own.scene.cell_descriptors(references), frame, query.camera)
        graph = scene_graph(own.scene, references, pool(frame), seen, stats)
        result = {"best reference": graph.world_from_ref[0]}
        result["network"] = self.solved(own.estimate(query.without_ground_truth()), query)
        start = self.solved(essential(graph), query)
        result["essential"] = result["essential, agreed"] = start
        if start is not None:
            batch, _ = make_batch([graph])
            relative = inverse(graph.world_from_ref) @ start
            pose = (
                torch.from_numpy(relative[:, :3, :3]).float(),
                torch.from_numpy(relative[:, :3, 3] / graph.depth).float(),
            )
            assert own.network is not None
            found = replace(own.network(batch)[-1], aligned=pose)
            agreed = agreement(batch, found)
            names = tuple(own.scene.names[i] for i in references)
            given = evidence(graph, agreed, slice(None), own.calibration, names)
            result["essential, agreed"] = self.solved(given, query)
        return result

    def solved(self, given: RelativePoses, query: Query) -> Float64Array | None:
        """The solver's pose, None where there is none."""
        found = self.solver.solve(given, query.camera, self.runtime)
        return found.world_from_cam if found.localized else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--step", type=int, default=1, help="every so-many-th image")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sides = Sides(Pipeline.from_map(options.map, runtime=Runtime(threads=1), calibrated=False))
    dataset = AceDataset(
        AceConfig(str(options.root), split=options.split, frame_step=options.step, depth="none")
    )
    errors: dict[str, list[tuple[float, float]]] = {}
    for query in dataset:
        truth = query.world_from_cam
        assert truth is not None
        for name, pose in sides.localize(query).items():
            error = (np.inf, 180.0)
            if pose is not None:
                angle = float(rotation_angle_deg(pose[:3, :3], truth[:3, :3]))
                error = float(np.linalg.norm(pose[:3, 3] - truth[:3, 3])), angle
            errors.setdefault(name, []).append(error)
    rows = {}
    for name, found in errors.items():
        metres, degrees = np.array(found).T
        rows[name] = {
            "queries": len(found), "localized": int(np.isfinite(metres).sum()),
            "median cm": 100 * float(np.median(metres)), "median deg": float(np.median(degrees)),
            "2cm/2deg %": 100 * float(np.mean((metres < 0.02) & (degrees < 2))),
            "p90 cm": 100 * float(np.quantile(metres, 0.9, method="lower")),
        }  # fmt: skip
        print(f"{name:20s}" + ", ".join(f"{k} {v:.2f}" for k, v in rows[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

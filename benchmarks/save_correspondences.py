"""Save what an estimator gives its solver, for `benchmarks/solvers.py --correspondences`.

    python benchmarks/save_correspondences.py --map MAP --data ACE_FOLDER --out FOLDER [--step 2]

One npz per frame of the split: `points2d`, `points3d`, `world_from_cam`, the camera, the `kind` of evidence
and, where the estimator gives them, `weights` and `variances`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from reloc_core.datasets.ace import AceDataset
from reloc_core.datasets.config import AceConfig
from reloc_core.pipeline import Pipeline
from reloc_core.types import Correspondences


def main() -> None:
    """Localize and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--map", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dataset = AceDataset(AceConfig(root=str(args.data), split=args.split))
    pipeline = Pipeline.from_map(args.map)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(0, len(dataset), args.step):
        query = dataset[index]
        evidence = pipeline.estimate(query)
        if not isinstance(evidence, Correspondences):
            raise SystemExit(f"{args.map} gives {evidence.kind_name}, not Correspondences.")
        camera = query.camera
        optional = {
            name: np.asarray(value, np.float32)
            for name in ("weights", "variances")
            if (value := getattr(evidence, name)) is not None
        }
        np.savez(
            args.out / f"{index:05d}.npz",
            points2d=np.asarray(evidence.points2d, np.float32),
            points3d=np.asarray(evidence.points3d, np.float32),
            world_from_cam=query.world_from_cam,
            model=camera.model,
            size=(camera.width, camera.height),
            params=camera.params,
            kind=evidence.kind,
            **optional,
        )


if __name__ == "__main__":
    main()

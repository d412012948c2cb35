"""How far the poses of `reloc data reconstruct` are from given ones, after a similarity alignment.

    python benchmarks/reconstruction.py OUT REFERENCE

OUT is the reconstruction; REFERENCE a COLMAP workspace, or a split in the ACE layout, with images of the
same names. Prints positions in percent of the scene's median depth (of the reconstruction's own points) and
rotations in degrees; where the reconstruction is metric, also without the alignment's scale.
"""

import sys
from pathlib import Path

import numpy as np

from reloc_core.geometry import rotation_angle_deg, transform
from reloc_core.io.colmap import find_models, read_model, read_points
from reloc_core.io.poses import read_pose
from reloc_core.reconstruction.outcome import read_record
from reloc_core.reconstruction.scale import similarity


def reference_poses(root: Path) -> dict[str, np.ndarray]:
    """Poses by image name."""
    if (root / "poses").is_dir():
        images = sorted((root / "rgb").iterdir())
        poses = sorted((root / "poses").iterdir())
        return {i.name: read_pose(p) for i, p in zip(images, poses, strict=True)}
    model = read_model(find_models(root)[0])
    return dict(zip(model.names, model.world_from_cam, strict=True))


def main() -> None:
    """Print the comparison."""
    out, root = Path(sys.argv[1]), Path(sys.argv[2])
    model, reference = read_model(find_models(out)[0]), reference_poses(root)
    both = [i for i, name in enumerate(model.names) if name in reference]
    ours = model.world_from_cam[both]
    given = np.stack([reference[model.names[i]] for i in both])
    scale, rotation, shift = similarity(ours[:, :3, 3], given[:, :3, 3])
    centres = scale * ours[:, :3, 3] @ rotation.T + shift
    points = read_points(find_models(out)[0])[0]
    depths = []
    for pose in ours:
        z = transform(np.linalg.inv(pose), points)[:, 2]
        depths.append(np.median(z[z > 0]))
    depth = scale * float(np.median(depths))
    errors = np.linalg.norm(centres - given[:, :3, 3], axis=1)
    angles = rotation_angle_deg(rotation @ ours[:, :3, :3], given[:, :3, :3])
    content = read_record(out / "reconstruction.json")
    print(f"{len(both)} images in common, scene depth {depth:.4g}, unit {content.get('unit')}")
    for title, values, unit in (
        ("position / depth", 100 * errors / depth, "%"), ("rotation", angles, "degrees"),
    ):  # fmt: skip
        print(f"{title}: median {np.median(values):.3f}, worst {values.max():.3f} {unit}")
    print(f"scale of the alignment: {scale:.5f}")


if __name__ == "__main__":
    main()

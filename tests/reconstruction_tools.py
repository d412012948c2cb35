"""Renderings with known poses, and how far reconstructed ones are from them."""

import cv2
import numpy as np

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset


class Rendered:
    """Renderings of the room: the oracle knows their poses."""

    def __init__(self, folder, count, chosen, seed=0, width=320):
        dataset = SyntheticDataset(
            SyntheticConfig(
                width=width, height=width * 3 // 4, train_frames=count, depth=False, seed=seed
            )
        )
        folder.mkdir()
        self.folder, self.camera, self.poses, self.images = folder, dataset[0].camera, {}, {}
        for i in chosen:
            query, name = dataset[i], f"room{seed}_{i:03d}.png"
            cv2.imwrite(str(folder / name), query.image[..., ::-1])
            self.poses[name], self.images[name] = query.world_from_cam, query.image

    @property
    def names(self):
        return list(self.poses)


def error(model_poses, truth):
    """Largest position error, worst angle, scale and rotation of the alignment.

    The rotation comes from the cameras' rotations: positions on a short way leave it open.
    """
    from reloc_core.geometry import rotation_angle_deg

    names = sorted(set(model_poses) & set(truth))
    ours = np.stack([model_poses[n] for n in names])
    given = np.stack([truth[n] for n in names])
    u, _, vt = np.linalg.svd(sum(given[:, :3, :3] @ ours[:, :3, :3].transpose(0, 2, 1)))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    a = (ours[:, :3, 3] - ours[:, :3, 3].mean(0)) @ rotation.T
    b = given[:, :3, 3] - given[:, :3, 3].mean(0)
    scale = float((a * b).sum() / (a * a).sum())
    angles = rotation_angle_deg(rotation @ ours[:, :3, :3], given[:, :3, :3])
    return float(np.linalg.norm(scale * a - b, axis=1).max()), float(angles.max()), scale, rotation

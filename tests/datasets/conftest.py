import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation


class AceFolder:
    """Writes and breaks a small dataset in ACE's format."""

    def __init__(self, path, count=6, size=(32, 24), stem="seq-01-frame-{:06d}", depth=True):
        self.path, self.count = path, count
        self.poses = np.tile(np.eye(4), (count, 1, 1))
        self.poses[:, :3, :3] = Rotation.random(count, random_state=1).as_matrix()
        self.poses[:, :3, 3] = np.random.default_rng(1).normal(size=(count, 3))
        self.stems = [stem.format(i) for i in range(count)]
        for folder in ("rgb", "poses", "calibration", *(["depth"] if depth else [])):
            (path / folder).mkdir(parents=True)
        for i, (name, pose) in enumerate(zip(self.stems, self.poses, strict=True)):
            image = np.full((size[1], size[0], 3), 10 * i, np.uint8)
            cv2.imwrite(str(path / "rgb" / f"{name}.color.png"), image)
            np.savetxt(path / "poses" / f"{name}.pose.txt", pose)
            (path / "calibration" / f"{name}.calibration.txt").write_text("525.5\n")
            if depth:
                raw = np.full(size[::-1], 1000 + i, np.uint16)
                cv2.imwrite(str(path / "depth" / f"{name}.depth.png"), raw)

    def file(self, folder, index):
        return sorted((self.path / folder).iterdir())[index]


@pytest.fixture
def ace(tmp_path):
    """A scene with a training split of six frames."""
    return AceFolder(tmp_path / "scene" / "train")


@pytest.fixture
def ace_folder():
    return AceFolder

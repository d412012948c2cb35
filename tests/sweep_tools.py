"""Running sweeps in processes of their own."""

import subprocess
import sys

import cv2
import numpy as np


def reloc(environment, *arguments, timeout=300):
    return subprocess.run(
        [sys.executable, "-m", "reloc_core.cli", *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment,
    )  # fmt: skip


def written_scene(root, width=64, focal=60.0):
    """A scene of noise in the ACE layout, five images to map and two to localize; nothing is rendered."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for folder in ("rgb", "poses", "calibration"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            pose = np.eye(4)
            pose[0, 3] = 0.2 * i
            image = rng.integers(0, 255, (width * 3 // 4, width, 3), np.uint8)
            cv2.imwrite(str(root / split / "rgb" / f"{i}.png"), image)
            np.savetxt(root / split / "poses" / f"{i}.txt", pose)
            (root / split / "calibration" / f"{i}.txt").write_text(f"{focal}\n")
    return root

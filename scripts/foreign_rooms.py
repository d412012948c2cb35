"""Render the pictures of other rooms that calibrations are learned beside: python scripts/foreign_rooms.py.

Views of four embedded rooms of seeds that nothing else uses, written to reloc_core/calibration/rooms.
"""

from pathlib import Path

import cv2

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset

FOLDER = Path(__file__).parents[1] / "reloc_core/calibration/rooms"
for seed in (90_001, 90_002, 90_003, 90_004):
    config = SyntheticConfig(
        width=360, height=270, train_frames=30, noise=0, depth=False, seed=seed
    )
    room = SyntheticDataset(config)
    for index in (2, 11, 20, 28):
        image = room[index].image
        path = FOLDER / f"room-{seed}-{index:02d}.jpg"
        cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])

"""What mapping takes its images for."""

import numpy as np
import pytest
from landmarks.config import LandmarkConfig
from landmarks.plan import are_photographs, make_plan

from reloc_core import Camera, Frame


def frames(count, width, height, sequence=None):
    camera = Camera.pinhole(width, width, height)
    return [Frame(f"{i}.jpg", camera, world_from_cam=np.eye(4)[:3], sequence=sequence) for i in range(count)]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (frames(20, 640, 480), True),
        (frames(99, 640, 480, "walk"), True),
        (frames(100, 640, 480), False),
        (frames(128, 3072, 2304), True),
        (frames(128, 1920, 1080, "walk"), False),
        (frames(500, 3072, 2304), False),
    ],
)
def test_photographs_and_films(images, expected):
    assert are_photographs(images) is expected
    plan = make_plan(LandmarkConfig(), images)
    assert plan.kind == ("sift" if expected else "xfeat")
    assert plan.resolution <= (1080 if expected else 480)

from __future__ import annotations

import math

import pytest
from rendering.scenes import make_view


@pytest.fixture
def tilted_view():
    return make_view(twist=(0.1, -0.05, 0.2, 0.05, -0.1, math.pi / 9))

import numpy as np
import torch
import torch.nn.functional as F
from kfnet_temporal.memory.flow import average, cost_volume


def test_cost_volume_is_the_cosine_of_every_pair_of_cells():
    generator = torch.Generator().manual_seed(0)
    previous, current = (F.normalize(torch.randn(5, 6, 7, generator=generator), dim=0)
                         for _ in range(2))  # fmt: skip
    radius = 2
    found = cost_volume(previous, current, radius).numpy()
    expected = np.full((25, 6, 7), -1.0)
    for number in range(25):
        dy, dx = divmod(number, 5)
        for y in range(6):
            for x in range(7):
                v, u = y + dy - radius, x + dx - radius
                if 0 <= v < 6 and 0 <= u < 7:
                    expected[number, y, x] = float(current[:, y, x] @ previous[:, v, u])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_average_is_that_of_the_square_within_the_grid():
    maps = torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(0))
    for size in (1, 3, 7):
        expected = F.avg_pool2d(maps[None], size, 1, size // 2, count_include_pad=False)[0]
        torch.testing.assert_close(average(maps, size), expected)

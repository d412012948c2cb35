"""Images ranked one at a time."""

import numpy as np
import torch
import torch.nn.functional as F
from gnn_relpose.shared.ranking import Ranking

from reloc_core.features.retrieval import RetrievalIndex


def test_the_ranking_is_that_of_the_whole_table():
    descriptors = F.normalize(
        torch.randn(300, 32, generator=torch.Generator().manual_seed(0)), dim=1
    )
    descriptors[[7, 9, 200]] = descriptors[3].clone()  # that look the same
    found, similarity = RetrievalIndex(descriptors, "exact").search(descriptors, 300)
    others = found != np.arange(300)[:, None]
    table = found[others].reshape(300, 299)
    ranking = Ranking(descriptors)
    alike = (descriptors @ descriptors.T).numpy()
    for image in range(300):
        mine = ranking[image]
        assert sorted(mine) == sorted(table[image])
        # The same but for what differs by less than rounding.
        np.testing.assert_allclose(alike[image, mine], alike[image, table[image]], atol=1e-6)
    best = similarity[others].reshape(300, 299)[:, 0]
    np.testing.assert_allclose(ranking.best(), best, atol=1e-6)

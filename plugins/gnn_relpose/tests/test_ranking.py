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
    for image in range(300):
        np.testing.assert_array_equal(ranking[image], table[image])
    best = similarity[others].reshape(300, 299)[:, 0]
    np.testing.assert_allclose(ranking.best(), best, atol=1e-6)

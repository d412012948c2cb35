"""Descriptors of a query against those of the map, in blocks that fit the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsplat_loc.config import MatchConfig


@dataclass(frozen=True)
class Matches:
    """Matched rows.

    Attributes:
        query: (M,) rows of the query.
        map: (M,) rows of the map.
        similarity: (M,) cosine.
    """

    query: Tensor
    map: Tensor
    similarity: Tensor


@torch.inference_mode()
def match(query: Tensor, keys: Tensor, options: MatchConfig) -> Matches:
    """Nearest row of the map for each row of the query, if it passes the tests.

    Args:
        query: (N, C) unit vectors; a row of zeros matches nothing.
        keys: (M, C) unit vectors; a row of zeros is never matched.
        options: thresholds and block size.
    """
    count = len(query)
    best = torch.full((count,), -2.0)
    index = torch.zeros(count, dtype=torch.int64)
    partner = []
    for begin in range(0, len(keys), options.chunk):
        block = keys[begin : begin + options.chunk]
        similarity = query @ block.T
        similarity[:, ~block.any(1)] = -2.0
        value, where = similarity.max(1)
        better = value > best
        best = torch.where(better, value, best)
        index = torch.where(better, where + begin, index)
        if options.mutual:
            partner.append(similarity.amax(0))
    kept = (best > options.min_similarity) & (best > -1.5) & query.any(1)
    if options.mutual and len(keys):
        kept &= best >= torch.cat(partner)[index] - options.sharing
    rows = kept.nonzero()[:, 0]
    return Matches(rows, index[rows], best[rows])

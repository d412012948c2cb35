"""Descriptors of a query against those of the map, in blocks that fit the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsplat_loc.config import MatchConfig
from gsplat_loc.field.fieldmap import Anchors


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
    if not count:
        none = torch.zeros(0, dtype=torch.int64)
        return Matches(none, none, torch.zeros(0))
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


@torch.inference_mode()
def signals(
    query: Tensor, keys: Tensor, found: Matches, anchors: Anchors | None
) -> dict[str, float]:
    """What matches say about their own worth; see `Evidence.signals`.

    Args:
        query: (N, C) the query's descriptors.
        keys: (M, C) those of the map.
        found: matches of the two.
        anchors: what the keys belong to, or None for Gaussians.

    Returns:
        `similarity` (mean cosine) and `margin` (mean lead over the second best key) of the matches and
        `matched` (their share of the query's key points); of anchors also `views` (mean number of
        images that know them), `agreement` (mean of `Anchors.agreement`) and `covisible`: the share of
        the matches that one mapping image knows, less what chance gives it and a standard deviation.
    """
    count = len(found.query)
    if not count:
        return {}
    scores = query[found.query] @ keys.T
    scores.scatter_(1, found.map[:, None], -1.0)
    margin = (found.similarity.to(scores.device) - scores.amax(1)).mean()
    values = {
        "similarity": float(found.similarity.mean()),
        "margin": float(margin),
        "matched": count / max(len(query), 1),
    }
    if anchors is None:
        return values
    rows = found.map.cpu()
    images = anchors.images
    known = torch.bincount(images[images >= 0]).double() / len(images)
    mine = images[rows]
    seen = torch.bincount(mine[mine >= 0], minlength=len(known)).double() / count
    values["views"] = float(anchors.views[rows].double().mean())
    values["agreement"] = float(anchors.agreement[rows].double().mean())
    values["covisible"] = float((seen - known).max()) - count**-0.5
    return values

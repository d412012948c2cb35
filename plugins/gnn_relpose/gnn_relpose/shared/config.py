"""Options that the estimators share. Imports no PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from reloc_core.errors import ConfigError

REGIMES = ("joint", "leave_one_out", "single")
INDEX_KINDS = ("exact", "flat", "ivf", "pq", "ivfpq", "hnsw")
SCATTER = ("auto", "native", "torch_scatter")


@dataclass
class RetrievalConfig:
    """How references are ranked.

    Attributes:
        clusters: of NetVLAD; a global descriptor has 64 times as many numbers.
        index: "exact" (PyTorch), "flat", "ivf", "pq", "ivfpq" or "hnsw" (faiss).
        pool: best references that thinning chooses from.
    """

    clusters: int = 32
    index: str = "exact"
    pool: int = 100


@dataclass
class GraphConfig:
    """Which references become neighbours of a query.

    Attributes:
        neighbours: references per graph (published: 7).
        period: every period-th of the ranking is kept (published: 5 indoors, 3 outdoors).
        dropout: chance of leaving a reference out before that (published: 0.5).
        random_start: start at a random one of the first `period` (published), else at the best.
        spacing: skip references that see nearly what a kept one sees: distance / depth + angle in
            radians below this.
    """

    neighbours: int = 7
    period: int = 1
    dropout: float = 0.0
    random_start: bool = False
    spacing: float = 0.06


def check_channels(channels: int) -> None:
    """Refuse a width that the attention heads do not divide."""
    if channels < 8 or channels % 8:
        raise ConfigError("estimator.network.channels must be a multiple of 8.")


def as_dict(config: object) -> dict[str, object]:
    """A config dataclass as plain nested dicts."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]

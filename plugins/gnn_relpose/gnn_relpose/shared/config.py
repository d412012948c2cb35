"""Options that the estimators share. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reloc_core.checks import Checks
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


@dataclass
class TrainConfig:
    """The training loop.

    Attributes:
        regime: "joint" (the mapped scene and `extra_datasets`), "leave_one_out" (only
            `extra_datasets`; the mapped scene is only indexed) or "single" (only the mapped scene).
        warm_start: map directory of this method whose network training starts from.
        iterations: optimizer steps; 0 with `warm_start` only indexes the scene.
        batch_size: graphs per step.
        learning_rate: peak of Adam's one-cycle schedule.
        weight_decay: of Adam.
        translation_weight: initial s_t of the loss exp(-s_t) |dt| + s_t + exp(-s_q) |dq| + s_q.
        rotation_weight: initial s_q.
        checkpoint_seconds: wall time between checkpoints.
        log_every: iterations between log entries.
    """

    regime: str = "joint"
    warm_start: str = ""
    iterations: int = 2000
    batch_size: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    translation_weight: float = -1.0
    rotation_weight: float = -2.0
    checkpoint_seconds: float = 30.0
    log_every: int = 50


def checks_of(config: Any) -> Checks:
    """Checks of an estimator's config, after those of what all estimators have."""
    options = Checks(config)
    options.one_of("train.regime", REGIMES)
    options.one_of("retrieval.index", INDEX_KINDS)
    options.one_of("network.scatter", SCATTER)
    options.at_least(
        1, "retrieval.clusters", "retrieval.pool", "graph.neighbours", "graph.period",
        "network.recursions", "train.batch_size", "train.log_every",
    )  # fmt: skip
    options.at_least(0, "graph.spacing", "train.weight_decay", "train.checkpoint_seconds")
    options.share("graph.dropout", "network.dropout", whole=False)
    options.positive("train.learning_rate")
    if config.network.channels < 8 or config.network.channels % 8:
        raise ConfigError("estimator.network.channels must be a multiple of 8.")
    return options


def check_iterations(options: Checks, train: TrainConfig) -> None:
    """Refuse a training without steps that starts from nothing."""
    options.at_least(0, "train.iterations")
    if train.iterations == 0 and not train.warm_start:
        raise ConfigError(
            "estimator.train.iterations=0 trains nothing: give estimator.train.warm_start=MAP too."
        )

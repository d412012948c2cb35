"""Whether two pipelines differ beyond chance on the same queries: exact sign tests, corrected.

A query counts for the pipeline whose error max(cm, degrees) is smaller; equal errors count for none, and an
image without a pose has an infinite one. Under chance the wins of one of two are binomial with one half.
Queries are taken as independent: neighbouring frames of a video are not, so its p-values are too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reloc_core.evaluation.compare import METRE, SceneComparison, joint_error
from reloc_core.types import Float64Array

LEVEL = 0.05
NOTE = (
    "Paired tests: two methods on the same images, by an exact sign test of max(cm, degrees), or degrees "
    "without metres, with Holm's correction for the number of pairs. Images count as independent, which "
    "neighbouring ones of a video are not."
)


@dataclass(frozen=True)
class PairedTest:
    """One pipeline against another.

    Attributes:
        first: label.
        second: label.
        wins: queries with a smaller error of the first.
        losses: queries with a smaller error of the second.
        p: of the exact two-sided sign test.
        corrected: by Holm's method, for all pairs of the same table.
    """

    first: str
    second: str
    wins: int
    losses: int
    p: float
    corrected: float

    @property
    def differs(self) -> bool:
        """Whether the two differ beyond chance."""
        return self.corrected < LEVEL

    def __str__(self) -> str:
        words = "differs beyond chance" if self.differs else "no difference beyond chance"
        return (
            f"{self.first} against {self.second}: better in {self.wins}, worse in {self.losses} queries, "
            f"p = {self.corrected:.2g} (corrected): {words}"
        )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of a split at least as uneven, under a fair coin."""
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**count)) if count else 1.0


def holm(values: list[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    result, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        result[index] = largest
    return result


def paired_tests(errors: Mapping[str, Mapping[str, Float64Array]]) -> list[PairedTest]:
    """Every pair of pipelines that were asked the same queries.

    Args:
        errors: by pipeline and query, (R, 2) metres (or units) and degrees of R repetitions (seeds),
            of which the middle one counts.

    Returns:
        one test per pair.
    """
    middle = {
        label: {name: float(np.median(joint_error(e))) for name, e in queries.items()}
        for label, queries in errors.items()
    }
    labels = [label for label, queries in middle.items() if queries]
    found = []
    for place, first in enumerate(labels):
        for second in labels[place + 1 :]:
            if middle[first].keys() != middle[second].keys():
                continue
            pairs = [(middle[first][n], middle[second][n]) for n in middle[first]]
            wins, losses = sum(a < b for a, b in pairs), sum(b < a for a, b in pairs)
            found.append((first, second, wins, losses, sign_test(wins, losses)))
    corrected = holm([p for *_, p in found])
    return [PairedTest(*test, value) for test, value in zip(found, corrected, strict=True)]


def pairs_of_scene(scene: SceneComparison) -> list[PairedTest]:
    """Every pair of the methods compared on one scene; none for averages.

    Where the scene has no metres, the rotation alone is compared.
    """
    errors = {}
    for row in scene.rows:
        if row.errors is None:
            continue
        judged = row.errors if scene.unit == METRE else row.errors[:, 1:] * (0.01, 1.0)
        errors[row.label] = {str(i): error[None] for i, error in enumerate(judged)}
    return paired_tests(errors)

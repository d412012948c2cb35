"""Single queries shown with their evidence: predicted 3D points reprojected into the image."""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from reloc_core.errors import RelocError
from reloc_core.evaluation.results import QueryResult
from reloc_core.evaluation.svg import dots, number
from reloc_core.evaluation.units import format_angle, format_length
from reloc_core.geometry import inverse, project, transform
from reloc_core.interfaces import Dataset
from reloc_core.types import (
    Correspondences,
    Evidence,
    Float64Array,
    ImageArray,
    Localization,
    Query,
    RelativePoses,
)

PIXEL_BINS = (1.0, 2.0, 5.0, 10.0)
_IMAGE_WIDTH = 560
_MOST_INLIERS = 350
_MOST_OUTLIERS = 150


@dataclass(frozen=True)
class Explanation:
    """A query localized again, with what led to its pose.

    Attributes:
        query: with its pixels and ground truth.
        evidence: what the solver was given.
        localization: the outcome.
        pictures: titled RGB pictures of the estimator and the refiners.
    """

    query: Query
    evidence: Evidence
    localization: Localization
    pictures: Mapping[str, ImageArray]


Explain = Callable[[int], Explanation]
"""Localizes the query of an index again and explains the outcome."""


class EvidenceLocalizer(Protocol):
    """What can be asked for its evidence; a pipeline is one."""

    @property
    def history(self) -> int:
        """Preceding frames of the sequence to replay before a query is explained."""

    def start_sequence(self) -> None:
        """Forget temporal state."""

    def localize_with_evidence(self, query: Query) -> tuple[Evidence, Localization]:
        """Localize one query and return what the solver was given as well."""

    def pictures(self, query: Query, localization: Localization) -> Mapping[str, ImageArray]:
        """Titled pictures that explain the localization just made."""


def explainer(localizer: EvidenceLocalizer, dataset: Dataset) -> Explain:
    """An `Explain` that asks a pipeline again, one query at a time.

    The frames of the query's sequence that come before it are replayed, as many as the localizer
    remembers.
    """

    def explain(index: int) -> Explanation:
        query = dataset[index]
        localizer.start_sequence()
        for before in preceding(dataset, index, localizer.history):
            with contextlib.suppress(RelocError, OSError):
                localizer.localize_with_evidence(dataset[before].without_ground_truth())
        evidence, localization = localizer.localize_with_evidence(query.without_ground_truth())
        pictures = localizer.pictures(query.without_ground_truth(), localization)
        return Explanation(query, evidence, localization, pictures)

    return explain


def preceding(dataset: Dataset, index: int, count: int) -> range:
    """Indices of at most `count` frames right before one that are of its sequence."""
    frames = dataset.frames
    first = index
    while (
        first > 0
        and index - first < count
        and frames[index].sequence is not None
        and frames[first - 1].sequence == frames[index].sequence
    ):
        first -= 1
    return range(first, index)


@dataclass(frozen=True)
class Choice:
    """Indices of queries worth a look, worst and typical ones."""

    worst: tuple[int, ...]
    typical: tuple[int, ...]


def choose(results: Sequence[QueryResult], worst: int = 6, typical: int = 3) -> Choice:
    """Pick queries to show.

    The worst are those of the largest error, failures first but at most half of them, so that wrong
    poses are seen too. Without ground truth the lowest scores count as worst. Typical ones lie around
    the median. Unreadable images have nothing to show.
    """
    readable = [i for i, r in enumerate(results) if r.readable]
    failed = [i for i in readable if not results[i].localized]
    found = sorted(
        (i for i in readable if results[i].localized), key=lambda i: _badness(results[i])
    )
    refused = failed[: max(worst // 2, worst - len(found))]
    wrong = found[::-1][: max(worst - len(refused), 0)]
    rest = found[: len(found) - len(wrong)]
    middle = sorted({round(q * (len(rest) - 1)) for q in _spread(typical)}) if rest else []
    return Choice((*refused, *wrong), tuple(rest[k] for k in middle))


def card(index: int, result: QueryResult, explain: Explain | None, unit: str) -> str:
    """HTML of one query: its image, reprojected points, and numbers.

    Args:
        index: of the query in the dataset.
        result: what the evaluation kept.
        explain: gives image and evidence; None for numbers only.
        unit: of translations.
    """
    picture, remark, strip = "", "no image kept", ""
    if explain is not None:
        try:
            found = explain(index)
            picture, remark = _picture(result, found.query, found.evidence, found.localization)
            strip = _strip(found.pictures)
        except (RelocError, OSError) as error:
            remark = f"the image cannot be shown: {error}"
    if result.localized:
        errors = "score " + f"{result.score:.2f}"
        if result.translation_error_m is not None:
            errors = (
                f"{format_length(result.translation_error_m, unit)}, "
                f"{format_angle(result.rotation_error_deg)}"
            )
            remark = " · ".join(part for part in (f"score {result.score:.2f}", remark) if part)
    else:
        errors = "not localized"
        remark = " · ".join(part for part in (result.reason, remark) if part)
    state = "" if result.localized else ' class="bad"'
    return (
        f'<figure class="card">{picture}<figcaption><strong{state}>{escape(errors)}</strong>'
        f'<span class="name">{escape(result.name)}</span>'
        f"<small>{escape(remark)}</small></figcaption>{strip}</figure>"
    )


def _picture(
    result: QueryResult, query: Query, evidence: Evidence, localization: Localization
) -> tuple[str, str]:
    """The SVG of image and points, and a remark for the caption."""
    pose, judge = result.world_from_cam, ""
    if pose is None and result.truth is not None:
        pose, judge = result.truth, "reprojected with the true pose"
    layers, remark = "", ""
    if isinstance(evidence, Correspondences):
        layers, remark = _overlay(evidence, localization, query, pose)
        if judge and layers:
            remark += f", {judge}"
    elif isinstance(evidence, RelativePoses):
        references = ", ".join(evidence.names[:3])
        remark = f"relative to {references or f'{len(evidence.world_from_ref)} images'}"
    else:
        remark = f"evidence: {evidence.kind_name}"
    height, width = query.image.shape[:2]
    frame = f'x="-.5" y="-.5" width="{width}" height="{height}"'
    return (
        f'<svg viewBox="-.5 -.5 {width} {height}" role="img" aria-label="{escape(query.name)}">'
        f'<image {frame} preserveAspectRatio="none" href="{data_uri(query.image)}"/>{layers}</svg>',
        remark,
    )


def _strip(pictures: Mapping[str, ImageArray]) -> str:
    """The components' own pictures, side by side under the query."""
    if not pictures:
        return ""
    cells = "".join(
        f'<div><img src="{data_uri(image)}" alt="{escape(title)}"><small>{escape(title)}</small></div>'
        for title, image in pictures.items()
    )
    return f'<div class="strip">{cells}</div>'


def _overlay(
    evidence: Correspondences,
    localization: Localization,
    query: Query,
    world_from_cam: Float64Array | None,
) -> tuple[str, str]:
    """Dots at the observed pixels, coloured by and joined to where the 3D points reproject."""
    count = len(evidence.points2d)
    if not count or world_from_cam is None:
        return "", f"{count} correspondences"
    observed = np.asarray(evidence.points2d, np.float64)
    camera = localization.camera_of(query)
    pixels, _ = project(camera, transform(inverse(world_from_cam), evidence.points3d))
    error = np.linalg.norm(pixels - observed, axis=1)
    error = np.where(np.isfinite(error), error, math.inf)
    mask = localization.inliers
    support = mask if mask is not None and len(mask) == count else error < PIXEL_BINS[-1]
    size = query.camera.width / 180
    parts = []
    others = _even(np.flatnonzero(~support), _MOST_OUTLIERS)
    if len(others):
        parts.append(
            f'<path class="out" stroke-width="{number(size)}" d="{dots(observed[others])}"/>'
        )
    shown = _even(np.flatnonzero(support), _MOST_INLIERS)
    if len(shown):
        halo = f'stroke-width="{number(2.9 * size)}" d="{dots(observed[shown])}"'
        parts.append(f'<path class="halo" {halo}/>')
    levels = np.searchsorted(PIXEL_BINS, error[shown], "right")
    for level in range(len(PIXEL_BINS) + 1):
        chosen = shown[levels == level]
        if not len(chosen):
            continue
        parts.append(
            f'<path class="p{level}" stroke-width="{number(0.6 * size)}" '
            f'd="{_tails(observed[chosen], pixels[chosen])}"/>'
            f'<path class="p{level}" stroke-width="{number(2 * size)}" d="{dots(observed[chosen])}"/>'
        )
    typical = float(np.median(error[support])) if support.any() else math.inf
    remark = f"{int(support.sum())} of {count} points support it"
    return "".join(parts), remark + (f", median {typical:.1f} px" if math.isfinite(typical) else "")


def _tails(observed: Float64Array, predicted: Float64Array) -> str:
    return "".join(
        f"M{number(x)} {number(y)}L{number(u)} {number(v)}"
        for (x, y), (u, v) in zip(observed, predicted, strict=True)
        if math.isfinite(u) and math.hypot(u - x, v - y) < 200
    )


def data_uri(image: ImageArray, width: int = _IMAGE_WIDTH) -> str:
    """An RGB image as JPEG of at most `width` pixels width."""
    scale = min(width / image.shape[1], 1.0)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if scale < 1:
        bgr = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 78])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _badness(r: QueryResult) -> float:
    """Comparable size of a pose error: 1 at 5 cm or 5 degrees; without truth, lack of score."""
    if r.translation_error_m is None or r.rotation_error_deg is None:
        return 1 - r.score
    return max(r.translation_error_m / 0.05, r.rotation_error_deg / 5)


def _spread(count: int) -> list[float]:
    return [0.5] if count == 1 else [0.25 + 0.5 * k / (count - 1) for k in range(count)]


def _even(indices: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """An even choice of at most `count` indices."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).astype(np.intp)]

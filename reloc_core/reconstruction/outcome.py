"""What became of every image, and the record that lies beside the model."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.reconstruction.mapper import Attempt, connected
from reloc_core.reconstruction.pairs import Pair
from reloc_core.reconstruction.photos import Photo
from reloc_core.reconstruction.source import BLUR_FLOOR, FEWEST
from reloc_core.reconstruction.world import Posed, World
from reloc_core.types import Float64Array, ImageArray

_BLURRED = 0.15  # of the median sharpness
_FEW_FEATURES = 100


@dataclass(frozen=True)
class Summary:
    """A finished reconstruction.

    Attributes:
        title: name of the workspace.
        photos: all images that were offered.
        reasons: why images did not register, by name.
        images: those that did.
        points: (P, 3) in the world.
        colours: (P, 3) uint8.
        world: scale and axes.
        error_px: mean reprojection error.
        track: mean number of images that see a point.
        attempts: of the mapper.
        others: sizes of the models that were not taken.
        added: names that were added to a workspace that was there; empty otherwise.
        notes: what a user should know.
        cameras: in words.
    """

    title: str
    photos: Sequence[Photo]
    reasons: Mapping[str, str]
    images: Sequence[Posed]
    points: Float64Array
    colours: ImageArray
    world: World
    error_px: float
    track: float
    attempts: Sequence[Attempt]
    others: Sequence[int] = ()
    added: Sequence[str] = ()
    notes: Sequence[str] = ()
    cameras: Sequence[str] = field(default=())


def reasons(
    photos: Sequence[Photo],
    numbers: Mapping[str, int],
    features: Mapping[str, int],
    matched: Mapping[Pair, int],
    registered: Mapping[str, Any],
    others: Sequence[set[str]],
) -> dict[str, str]:
    """Why each image that did not register did not, by name.

    Args:
        photos: all.
        numbers: of the images in the database, by name.
        features: of the images, by name.
        matched: inliers of the verified pairs of numbers.
        registered: names that are in the model.
        others: names of each smaller model.
    """
    names = {number: name for name, number in numbers.items()}
    apart = {n: len(group) for group in elsewhere(matched, numbers, registered) for n in group}
    usual = float(np.median([p.sharpness for p in photos if not p.problem] or [0.0]))
    found = {}
    for photo in photos:
        name = photo.name
        if name in registered:
            continue
        if photo.problem:
            found[name] = photo.problem
            continue
        number = numbers.get(name, -1)
        partners = {
            names[b if a == number else a]: count
            for (a, b), count in matched.items()
            if number in (a, b)
        }
        inside = {n: count for n, count in partners.items() if n in registered}
        other = next((k for k, group in enumerate(others, 1) if name in group), None)
        blurred = photo.sharpness < max(_BLURRED * usual, BLUR_FLOOR)
        if features.get(name, 0) < _FEW_FEATURES:
            why = f"few features ({features.get(name, 0)})" + (": blurred" if blurred else "")
        elif other is not None:
            why = (
                f"belongs to another model of {len(others[other - 1])} images that does not connect to "
                "this one"
            )
        elif not partners:
            why = "matches no other image" + (": blurred" if blurred else "")
        elif name in apart:
            why = (
                f"one of {apart[name]} images that show another place, or do not overlap with these"
            )
        elif not inside:
            why = f"matches only images that did not register ({', '.join(sorted(partners)[:3])})"
        else:
            best = max(inside, key=lambda n: inside[n])
            why = (
                f"too few inliers: {inside[best]} with its best match {best}, {len(inside)} matches"
                + ("; blurred" if blurred else "")
            )
        found[name] = why
    return found


def places(matched: Mapping[Pair, int], numbers: Mapping[str, int]) -> list[int]:
    """Sizes of the sets of images that matches connect, the largest first; single images count, too."""
    groups = connected(list(matched))
    alone = len(numbers) - sum(len(group) for group in groups)
    return [*(len(group) for group in groups), *[1] * alone]


def elsewhere(
    matched: Mapping[Pair, int], numbers: Mapping[str, int], registered: Collection[str]
) -> list[set[str]]:
    """Names in each set of three images or more that matches connect, but none with the model's.

    Args:
        matched: inliers of the verified pairs of numbers.
        numbers: of the images, by name.
        registered: names that are in the model.
    """
    names = {number: name for name, number in numbers.items()}
    groups = [{names[number] for number in group} for group in connected(list(matched))]
    return [group for group in groups if len(group) >= FEWEST and group.isdisjoint(registered)]


def record(summary: Summary, options: Mapping[str, Any], video: bool) -> dict[str, Any]:
    """The content of `reconstruction.json`."""
    world = summary.world
    return {
        "format": 1,
        "unit": world.unit,
        "world": {
            "source": world.source, **world.details, "scale": world.scale,
            "world_from_model": world.rotation.tolist(), "shift": world.shift.tolist(),
        },
        "registered": len(summary.images),
        "images": [
            {**photo.as_dict(), "reason": summary.reasons.get(photo.name, "")}
            for photo in summary.photos
        ],
        "points": len(summary.points),
        "reprojection_error_px": summary.error_px,
        "track_length": summary.track,
        "cameras": list(summary.cameras),
        "attempts": [vars(attempt) for attempt in summary.attempts],
        "other_models": list(summary.others),
        "notes": list(summary.notes),
        "sequence": "order" if video else "",
        "options": dict(options),
    }  # fmt: skip


def read_record(path: Path) -> dict[str, Any]:
    """The content of a `reconstruction.json`; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
